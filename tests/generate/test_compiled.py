"""`--compile`: few shapes reach the compiled denoiser, and none of them is left uncompiled."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.data.factories import photo, tiny_sd3
from tests.generate.tiny_pipelines import PIPELINES, tiny_pipeline
from vlm_detect.errors import UserError
from vlm_detect.generate import render_step
from vlm_detect.generate.caption_step import PHOTO_FEATURES
from vlm_detect.generate.choices import TwinKinds
from vlm_detect.generate.compiled import compile_blocks
from vlm_detect.generate.options import RenderConfig, Sampling
from vlm_detect.generate.pipelines import denoiser_of
from vlm_detect.generate.render_step import RenderShard, derive_seed
from vlm_detect.generate.renderer import ASPECTS, Renderer
from vlm_detect.jobs.shards import Plan, read_rejects, read_rows, write_shard

SAMPLING = Sampling(steps=1, guidance=2.0, max_sequence_length=8, compile=True)
BATCH = 3
# Of cameras, screens and crops: 23 sizes, of every aspect.
SIZES = [(120, 68), (68, 120), (120, 80), (80, 121), (120, 90), (91, 120), (100, 100), (130, 70), (90, 127), (111, 99)]
SIZES += [(100 + 7 * i, 90) for i in range(13)]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Renderer, list[dict[str, object]], str]:
    """A renderer that is compiled, the rows of two shards that it rendered, and what that printed.

    Torch is asked to run what is compiled without compiling it, which would take a minute: shapes are counted alike.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        renderer = Renderer.from_pipeline(tiny_sd3(), SAMPLING, "cpu")
    folder = tmp_path_factory.mktemp("compiled")
    for shard, sizes in enumerate((SIZES, SIZES[:5])):
        rows = [captioned(i, size) for i, size in enumerate(sizes)]
        write_shard(folder / "captions", shard, rows, PHOTO_FEATURES, [])
    config = RenderConfig(
        generator="tiny", twins=TwinKinds("caption,vae"), render_batch=BATCH, render_size=64, allow_small=True
    )
    shard_of = RenderShard(folder / "captions", config, Plan("render", 28, 23, "", {}), folder / "renders")
    render = renderer.render

    def fails(prompts: list[dict[str, object]], seeds: list[int], size: tuple[int, int]) -> list[Image.Image]:
        if derive_seed(0, "4", "caption") in seeds and len(set(seeds)) > 1:
            raise RuntimeError("this prompt fails in company")  # its batch is rendered one by one
        return render(prompts, seeds, size)

    with (
        mock.patch.object(renderer, "render", fails),
        mock.patch.object(render_step, "_load_renderer", return_value=("tiny", None, renderer)),
        mock.patch("sys.stderr", new_callable=io.StringIO) as said,
        torch.compiler.set_stance("force_eager"),
    ):
        shard_of(0)
        shard_of(1)
    assert not list(read_rejects(folder / "renders", 0))
    return renderer, list(read_rows(folder / "renders", 0)), said.getvalue()


def captioned(number: int, size: tuple[int, int]) -> dict[str, object]:
    buffer = io.BytesIO()
    photo(number, size).save(buffer, "PNG")
    source = {"path_or_id": f"{number}.png", "width": size[0], "height": size[1]}
    about = {"id": f"{number}", "group": f"{number}", "caption": f"thing {number}"}
    return about | {"image": {"bytes": buffer.getvalue()}, "source": source}


def test_photos_of_many_sizes_are_few_shapes(rendered: tuple[Renderer, list[dict[str, object]], str]) -> None:
    renderer, rows, said = rendered
    assert len(rows) == len(SIZES)
    assert renderer.compiled_shapes == len(ASPECTS) <= 8
    assert said == "tiny: compiled, 7 shapes so far\n"  # and nothing more for the second shard


def test_a_batch_that_is_filled_up_has_the_pixels_of_its_receipt(
    rendered: tuple[Renderer, list[dict[str, object]], str],
) -> None:
    """Rendered as `receipts` does: its copies, as many as the receipt says."""
    renderer, rows, _ = rendered
    twins = [twin for row in rows for twin in row["twins"] if twin["kind"] == "caption"]  # type: ignore[attr-defined]
    by_batch = {twin["batch"]: twin for twin in twins}
    assert by_batch.keys() == {"0/3", "1/3", "2/3"}
    for batch, twin in by_batch.items():
        place, count = map(int, batch.split("/"))
        kept = Image.open(io.BytesIO(twin["image"]["bytes"]))
        with torch.compiler.set_stance("force_eager"):
            copies = renderer.encode_prompts([twin["prompt"]]) * count
            again = renderer.render(copies, [twin["seed"]] * count, kept.size)
        np.testing.assert_array_equal(np.asarray(again[place]), np.asarray(kept))


class Block(nn.Module):
    """Of one of several kinds, as the last block of a denoiser often is."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(4, 4)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden) * self.kind


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(kind) for kind in (1, 2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def test_every_shape_of_every_kind_of_block_is_compiled() -> None:
    """Torch compiles a function eight times and then runs it as it is, without an error."""
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    denoiser = Blocks()
    shapes = compile_blocks(denoiser, dynamic=False, backend=count)
    for _ in range(2):
        for tokens in range(2, 7):
            denoiser(torch.zeros(1, tokens, 4))
    torch.compiler.reset()
    assert (len(shapes), len(graphs)) == (5, 10)


@pytest.mark.parametrize("name", list(PIPELINES))
def test_each_pipeline_compiles(name: str) -> None:
    """diffusers does not say of all of them which blocks repeat: of Stable Diffusion 3's it does not."""
    compile_blocks(denoiser_of(tiny_pipeline(name)), dynamic=None)


def test_a_denoiser_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="--compile: Linear has no repeated blocks to compile; omit it"):
        compile_blocks(nn.Linear(2, 2), dynamic=None)
