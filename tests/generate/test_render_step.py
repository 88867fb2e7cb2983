"""Twins: the same pixels whatever the company, and no prompt that fails costs another."""

from __future__ import annotations

import functools
import io
import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.factories import photo, save_tiny_pipeline
from tests.generate.tiny_pipelines import sdxl
from vlm_detect.config import CONFIGS
from vlm_detect.errors import UserError
from vlm_detect.generate import render_step
from vlm_detect.generate import renderer as renderer_module
from vlm_detect.generate.caption_step import PHOTO_FEATURES
from vlm_detect.generate.choices import TwinKinds
from vlm_detect.generate.generator import Overflow
from vlm_detect.generate.options import RenderConfig, Sampling
from vlm_detect.generate.pipeline_files import check_pipeline, load_pipeline
from vlm_detect.generate.presets import with_preset
from vlm_detect.generate.render_step import RenderShard, _render_or_split, derive_seed
from vlm_detect.generate.renderer import Renderer, bucket
from vlm_detect.images.encode import is_blank
from vlm_detect.jobs.shards import Plan, read_rejects, read_rows, write_shard
from vlm_detect.models.registry import ResolvedModel

PRESETS = CONFIGS / "generators"


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = save_tiny_pipeline(tmp_path_factory.mktemp("models") / "sd3")
    return Renderer(ResolvedModel("tiny", str(folder)), Sampling(steps=3, guidance=2.0, max_sequence_length=8))


def test_a_pipeline_reports_its_sizes(renderer: Renderer) -> None:
    assert (renderer.native_side, renderer.size_multiple) == (16, 8)
    assert renderer.scheduler == "FlowMatchEulerDiscreteScheduler"


def test_latents_are_decoded_one_at_a_time(renderer: Renderer) -> None:
    """Of eight of 1024 pixels SD 3.5's decoder would hold 13 GB at once."""
    sizes: list[int] = []
    vae: Any = renderer.pipeline.vae
    hook = vae.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    renderer.render(renderer.encode_prompts(["a", "b", "c"]), [1, 2, 3], (16, 24))
    renderer.reconstruct([photo(0, (16, 16)), photo(1, (16, 16))])
    hook.remove()
    assert sizes == [1] * 5


def test_an_image_depends_on_its_prompt_and_seed_alone(renderer: Renderer) -> None:
    prompts = renderer.encode_prompts(["a cat", "a red car", "a cat on a green field"])
    together = renderer.render(prompts, [1, 2, 3], (16, 24))
    alone = renderer.render(prompts[1:2], [2], (16, 24))[0]
    assert alone.size == (16, 24)
    assert np.abs(np.asarray(alone, int) - np.asarray(together[1], int)).max() <= 1
    other = renderer.render(prompts[1:2], [5], (16, 24))[0]
    assert np.abs(np.asarray(other, int) - np.asarray(alone, int)).mean() > 5


def test_encoded_prompts_render_the_same_as_text(renderer: Renderer) -> None:
    ours = renderer.render(renderer.encode_prompts(["a red car"]), [7], (16, 16))[0]
    plain = renderer.pipeline(
        "a red car",
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=2.0,
        max_sequence_length=8,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(plain))


def test_reconstruction_keeps_size_and_repeats(renderer: Renderer) -> None:
    photos = [photo(i, (16, 16)) for i in range(2)]
    first, second = renderer.reconstruct(photos), renderer.reconstruct(photos[1:])
    assert first[1].size == (16, 16)
    assert np.abs(np.asarray(first[1], int) - np.asarray(second[0], int)).max() <= 1


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    for load in (check_pipeline, lambda model: Renderer(model, Sampling())):
        with pytest.raises(UserError, match="could not be loaded"):
            load(ResolvedModel("x", str(tmp_path)))


@pytest.mark.parametrize(
    ("photo_size", "expected"),
    [
        ((4000, 4000), (1024, 1024)),
        ((3000, 2000), (1248, 832)),
        ((2000, 3000), (832, 1248)),
        ((9000, 100), (1360, 768)),
        ((4000, 3000), (1184, 880)),
        ((4032, 3000), (1184, 880)),
        ((1080, 1350), (880, 1184)),
    ],
)
def test_buckets_have_a_usual_aspect_and_a_megapixel(photo_size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert bucket(photo_size, 1024, 16) == expected
    assert bucket(photo_size, 32, 8, square=True) == (32, 32)


def test_seeds_come_from_the_photo() -> None:
    assert derive_seed(0, "abc", "caption") == derive_seed(0, "abc", "caption")
    assert len({derive_seed(s, p, k) for s in (0, 1) for p in ("abc", "abd") for k in ("caption", "vae")}) == 8
    assert 0 <= derive_seed(3, "x", "vae") < 2**63


def test_presets_fill_unset_flags() -> None:
    turbo = with_preset(RenderConfig(generator="stabilityai/stable-diffusion-3.5-large-turbo"), PRESETS)
    assert (turbo.steps, turbo.guidance, turbo.dtype) == (4, 1.0, "auto")
    given = with_preset(RenderConfig(generator="stabilityai/stable-diffusion-3.5-large", steps=28), PRESETS)
    assert (given.steps, given.guidance) == (28, 4.5)
    unknown = RenderConfig(generator="my/model")
    assert with_preset(unknown, PRESETS) == unknown


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "expected"),
    [("cuda", True, "bfloat16"), ("cuda", False, "float16"), ("mps", False, "bfloat16"), ("cpu", True, "float32")],
)
def test_the_default_dtype_is_what_the_device_computes_fast(device, has_bfloat16, expected, monkeypatch) -> None:
    monkeypatch.setattr(renderer_module, "computes_in_bfloat16", lambda kind: has_bfloat16)
    assert renderer_module.default_dtype(device) == expected


def test_kinds_of_twin() -> None:
    assert TwinKinds("vae,caption").kinds == ["caption", "vae"]
    with pytest.raises(ArgumentTypeError, match="unknown cartoon; choose from caption, vae, edit"):
        TwinKinds("cartoon")


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors ..."),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasCreate(handle)`"),
    ],
)
def test_a_failed_accelerator_is_no_fault_of_the_photos(error: Exception) -> None:
    """Such an error stays: every later call fails too, and each photo would become a reject of a finished shard."""

    def draw(places: object) -> list[Image.Image]:
        raise error

    said = re.escape(str(error).splitlines()[0])
    with pytest.raises(UserError, match=f"^the accelerator failed: {said}; run the same command again"):
        list(_render_or_split(draw, range(4)))


def overflowing(folder: Path) -> Any:
    """A pipeline in float16 whose autoencoder has activations beyond it; as numbers of float32 they are normalised."""
    pipeline = load_pipeline(ResolvedModel("tiny", str(save_tiny_pipeline(folder))), dtype=torch.float16)
    weight = pipeline.vae.decoder.conv_in.weight.data
    weight.mul_(6e4 / float(weight.abs().max()))
    pipeline.vae.register_to_config(force_upcast=True)
    return pipeline


def test_an_autoencoder_that_overflows_in_float16_reconstructs_in_float32(tmp_path: Path) -> None:
    pipeline = overflowing(tmp_path / "sd3")
    photos = [photo(0, (16, 16))]
    found = Renderer.from_pipeline(pipeline, Sampling(), "cpu").reconstruct(photos)[0]
    assert pipeline.vae.dtype is torch.float16
    expected = Renderer.from_pipeline(pipeline.to(torch.float32), Sampling(), "cpu").reconstruct(photos)[0]
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert not is_blank(found)


def test_a_pipeline_that_overflows_in_float16_ends_the_run_by_name(tmp_path: Path) -> None:
    """Not each of a thousand photos as a reject."""
    sampling = Sampling(steps=1, guidance=2.0, max_sequence_length=8)
    renderer = Renderer.from_pipeline(overflowing(tmp_path / "sd3"), sampling, "cpu")
    prompts = renderer.encode_prompts(["a cat", "a red car"])

    def draw(places: Sequence[int]) -> list[Image.Image]:
        return renderer.render([prompts[i] for i in places], list(places), (16, 16))

    named = "StableDiffusion3Pipeline renders pixels that are not finite in float16: give --dtype float32"
    with pytest.raises(Overflow, match=named):
        list(_render_or_split(draw, range(2)))
    renderer.reconstruct([photo(0, (16, 16))])  # which is finite: now a photo may be to blame
    failed = [error for error, _ in _render_or_split(draw, range(2))]
    assert [str(error) for error in failed] == [named] * 2


def test_one_failing_prompt_does_not_affect_others() -> None:
    def draw(places: object) -> list[Image.Image]:
        chosen = list(places)  # type: ignore[call-overload]
        if 2 in chosen:
            raise RuntimeError("bad prompt")
        return [photo(place) for place in chosen]

    rendered = list(_render_or_split(draw, range(4)))
    assert [isinstance(image, RuntimeError) for image, _ in rendered] == [False, False, True, False]
    assert [batch for _, batch in _render_or_split(draw, [0, 1])] == ["0/2", "1/2"]


def test_other_render_settings_are_another_generator(renderer: Renderer) -> None:
    assert renderer.sampling.variant == ""
    sampling = replace(renderer.sampling, quantization="nf4")
    assert sampling.variant == "+nf4"
    assert replace(sampling, offload="stages", compile=True).variant == "+nf4+stages+compile"
    with pytest.raises(UserError, match="only on a CUDA device"):
        Renderer(ResolvedModel("tiny", "nowhere"), sampling, "cpu")


def test_the_empty_prompt_is_encoded_once(renderer: Renderer) -> None:
    original, calls = renderer.pipeline.encode_prompt, []

    @functools.wraps(original)
    def encode(**options: object) -> object:
        calls.append(options)
        return original(**options)

    with mock.patch.object(renderer.pipeline, "encode_prompt", encode):
        encoded = renderer.encode_prompts(["a cat", "a red car", "a dog"])
    given = ["negative_prompt_embeds" in options for options in calls]
    assert given == [False, True, True]
    assert len({arguments["negative_prompt_embeds"].data_ptr() for arguments in encoded}) == 1


def test_failed_or_blank_images_are_rejects_and_the_rest_continues(tmp_path: Path, renderer: Renderer) -> None:
    rows = []
    for i in range(4):
        buffer = io.BytesIO()
        photo(i, (32, 32)).save(buffer, "PNG")
        source = {"path_or_id": f"{i}.png", "width": 32, "height": 32}
        about = {"id": f"{i}", "group": f"{i}", "caption": f"thing {i}", "image": {"bytes": buffer.getvalue()}}
        rows.append(about | {"source": source})
    write_shard(tmp_path / "captions", 0, rows, PHOTO_FEATURES, [])
    config = RenderConfig(generator="tiny", twins=TwinKinds("caption"), render_batch=2)
    plan = Plan("render", 4, 4, "", {})
    draw = renderer.render

    def odd(prompts: list[dict[str, object]], seeds: list[int], size: tuple[int, int]) -> list[Image.Image]:
        if derive_seed(0, "1", "caption") in seeds:
            raise RuntimeError("this prompt is too much")
        images = draw(prompts, seeds, size)
        black = derive_seed(0, "2", "caption")
        return [Image.new("RGB", size) if seed == black else image for seed, image in zip(seeds, images, strict=True)]

    with (
        mock.patch.object(renderer, "render", odd),
        mock.patch.object(render_step, "_load_renderer", return_value=("tiny", None, renderer)),
    ):
        RenderShard(tmp_path / "captions", config, plan, tmp_path / "renders")(0)
    rendered = list(read_rows(tmp_path / "renders", 0))
    assert [row["id"] for row in rendered] == ["0", "3"]
    assert [twin["batch"] for row in rendered for twin in row["twins"]] == ["0/1", "1/2"]
    rejects = [(reject.id, reject.reason, reject.detail) for reject in read_rejects(tmp_path / "renders", 0)]
    assert rejects == [
        ("1.png", "renderer_failed", "caption: RuntimeError: this prompt is too much"),
        ("2.png", "blank", "caption: a single colour"),
    ]


class Mark:
    """A watermark that nobody could overlook."""

    def apply_watermark(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(images)


def test_the_generators_watermark_is_off() -> None:
    torch.manual_seed(0)
    pipeline = sdxl()
    pipeline.watermark = Mark()
    options = {"width": 16, "height": 16, "num_inference_steps": 2, "guidance_scale": 2.0}
    marked = pipeline("a red car", generator=torch.Generator().manual_seed(7), **options).images[0]
    assert is_blank(marked)
    renderer = Renderer.from_pipeline(pipeline, Sampling(steps=2, guidance=2.0), "cpu")
    rendered = renderer.render(renderer.encode_prompts(["a red car"]), [7], (16, 16))[0]
    assert not is_blank(rendered)
    plain = pipeline("a red car", generator=torch.Generator().manual_seed(7), **options).images[0]
    np.testing.assert_array_equal(np.asarray(rendered), np.asarray(plain))  # prompts encoded ahead are the same prompts
