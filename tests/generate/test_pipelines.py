"""Pipelines of every way of being called draw by their signature: guidance, prompt, size and autoencoder alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.factories import photo
from tests.generate.tiny_pipelines import PIPELINES, tiny_pipeline
from tests.generate.try_pipeline import DOCS, END, KINDS, RECORD, START, save, table, try_pipeline
from tests.models.tiny_chat import byte_tokenizer
from vlm_detect.errors import UserError
from vlm_detect.generate import pipeline_files
from vlm_detect.generate.choices import EditOperations, TwinKinds
from vlm_detect.generate.edits import random_place
from vlm_detect.generate.options import RenderConfig, Sampling
from vlm_detect.generate.pipeline_files import load_pipeline
from vlm_detect.generate.pipelines import call_of
from vlm_detect.generate.prompt_encoding import encodes_ahead
from vlm_detect.generate.render_step import check_generator
from vlm_detect.generate.renderer import Renderer
from vlm_detect.models.registry import ResolvedModel

SAMPLING = Sampling(steps=2, guidance=5.0, max_sequence_length=24)
QWEN = ("QwenImagePipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline")
FROM_CAPTIONS = [name for name in PIPELINES if not name.startswith("QwenImageEdit")]
INPAINTING = (
    "StableDiffusion3Pipeline",
    "StableDiffusionXLPipeline",
    "FluxPipeline",
    "FluxKontextPipeline",
    "Flux2KleinPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
)
TEXTS = ("a red car", "two cats on a sofa")


def renderer_of(name: str, sampling: Sampling = SAMPLING) -> Renderer:
    pipeline = tiny_pipeline(name)
    if name == "HiDreamImagePipeline":
        pipeline.default_sample_size = 4  # it renders as many pixels as this has, 32 x 32
    return Renderer.from_pipeline(pipeline, sampling, "cpu")


def size_of(name: str) -> tuple[int, int]:
    return (32, 32) if name == "HiDreamImagePipeline" else (64, 32)


def rendered(renderer: Renderer, size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    seeds = [seed + i for i in range(len(TEXTS))]
    return [np.asarray(image) for image in renderer.render(renderer.encode_prompts(TEXTS), seeds, size)]


@pytest.mark.parametrize("name", FROM_CAPTIONS)
def test_each_pipeline_renders_as_requested(name: str) -> None:
    renderer, size = renderer_of(name), size_of(name)
    assert renderer.native_side % renderer.size_multiple == 0
    first, second = rendered(renderer, size)
    assert first.shape == (size[1], size[0], 3)
    assert not np.array_equal(first, second)
    again, _ = rendered(renderer, size)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, rendered(renderer, size, seed=7)[0])

    unguided = renderer_of(name, Sampling(steps=2, guidance=1.0, max_sequence_length=24))
    assert not np.array_equal(first, rendered(unguided, size)[0])


@pytest.mark.parametrize("name", list(PIPELINES))
def test_guidance_is_called_by_its_name(name: str) -> None:
    expected = "true_cfg_scale" if name in QWEN else "guidance_scale"
    assert call_of(tiny_pipeline(name)).guidance == expected


@pytest.mark.parametrize("name", [name for name in FROM_CAPTIONS if encodes_ahead(tiny_pipeline(name))])
def test_prompts_encoded_ahead_are_the_same_prompts(name: str) -> None:
    renderer, size = renderer_of(name), size_of(name)
    plain = renderer.pipeline(
        prompt=list(TEXTS),
        **call_of(renderer.pipeline).arguments(SAMPLING, size),
        generator=[torch.Generator().manual_seed(i) for i in range(len(TEXTS))],
    ).images
    for ours, image in zip(rendered(renderer, size), plain, strict=True):
        assert np.abs(ours.astype(int) - np.asarray(image, int)).max() <= 1


@pytest.mark.parametrize("name", list(PIPELINES))
def test_each_autoencoder_reconstructs(name: str) -> None:
    renderer, size = renderer_of(name), size_of(name)
    photos = [photo(i).resize(size) for i in range(2)]
    twins = renderer.reconstruct(photos)
    assert [twin.size for twin in twins] == [size, size]
    assert not np.array_equal(*map(np.asarray, twins))
    assert all(np.array_equal(one, other) for one, other in zip(twins, renderer.reconstruct(photos), strict=True))
    assert np.array_equal(twins[0], renderer.reconstruct(photos[:1])[0])  # an image at a time, whatever the batch


@pytest.mark.parametrize("name", INPAINTING)
def test_pipelines_with_an_inpainting_class_repaint_a_box(name: str) -> None:
    renderer, size = renderer_of(name), size_of(name)
    assert renderer.can_inpaint
    (prompt,) = renderer.encode_prompts(TEXTS[:1])
    before, place = photo(0).resize(size), random_place(size, np.random.default_rng(0))
    one, again, other = (np.asarray(renderer.inpaint(before, place, seed, prompt)) for seed in (1, 1, 2))
    assert one.shape == (size[1], size[0], 3)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_pipeline_that_renders_another_size_says_so() -> None:
    renderer = renderer_of("HiDreamImagePipeline")
    with pytest.raises(UserError, match="rendered 32x16 pixels instead of 64x32; give --render_size 32"):
        rendered(renderer, (64, 32))


def index_of(folder: Path, name: str) -> ResolvedModel:
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return ResolvedModel(name, str(folder))


def test_kinds_are_refused_by_the_class_before_any_weights_are_loaded(tmp_path: Path) -> None:
    editor = index_of(tmp_path / "editor", "QwenImageEditPipeline")
    Renderer.check_kinds(editor, ["vae"])
    with pytest.raises(UserError, match="--twins caption: QwenImageEditPipeline edits an image and renders none from"):
        Renderer.check_kinds(editor, ["caption", "vae"])
    with pytest.raises(UserError, match=r"cannot render twins: its call takes no width, height; give"):
        Renderer.check_kinds(index_of(tmp_path / "upscaler", "StableDiffusionUpscalePipeline"), ["caption"])
    with pytest.raises(UserError, match=r"diffusers \S+ has no UnheardOfPipeline; another version may have it"):
        Renderer.check_kinds(index_of(tmp_path / "unheard", "UnheardOfPipeline"), ["caption"])
    aura_flow = index_of(tmp_path / "aura_flow", "AuraFlowPipeline")
    config = RenderConfig(generator=aura_flow.path_or_id, twins=TwinKinds("edit"))
    check_generator(config)
    with pytest.raises(UserError, match="inpaint: diffusers has no inpainting pipeline for AuraFlowPipeline; give"):
        check_generator(replace(config, edit_operations=EditOperations("inpaint")))
    broken = index_of(tmp_path / "broken", "")
    (tmp_path / "broken" / "model_index.json").write_text("[]")
    with pytest.raises(UserError, match=r"its model_index\.json names no class"):
        Renderer.check(broken)


def test_hidreams_language_model_is_loaded_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its repository has none: `text_encoder_4` and `tokenizer_4` are empty in its index."""
    save("HiDreamImagePipeline", tmp_path / "hidream")
    (tmp_path / "hidream" / "text_encoder_4").rename(tmp_path / "llama")
    for file in (tmp_path / "hidream" / "tokenizer_4").iterdir():
        file.rename(tmp_path / "llama" / file.name)
    index = json.loads((tmp_path / "hidream" / "model_index.json").read_text())
    index |= {"text_encoder_4": [None, None], "tokenizer_4": [None, None]}
    (tmp_path / "hidream" / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(pipeline_files, "LLAMA", str(tmp_path / "llama"))
    pipeline = load_pipeline(ResolvedModel("hidream", str(tmp_path / "hidream")), dtype=torch.float32)
    pipeline.default_sample_size = 4
    # The weights and not the pixels: a random model this small enlarges how weights elsewhere in memory are rounded.
    expected = tiny_pipeline("HiDreamImagePipeline").text_encoder_4.state_dict()
    loaded = pipeline.text_encoder_4.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert pipeline.tokenizer_4("a red barn").input_ids == byte_tokenizer()("a red barn").input_ids
    image = rendered(Renderer.from_pipeline(pipeline, SAMPLING, "cpu"), (32, 32))[0]
    assert image.shape == (32, 32, 3)


def test_a_pipeline_without_text_input_is_refused_with_what_it_lacks() -> None:
    class Upscaler:
        def __call__(self, image: Any, num_inference_steps: int = 4, generator: Any = None) -> None: ...

    with pytest.raises(
        UserError, match="Upscaler cannot render twins: its call takes no prompt, width, height, output"
    ):
        call_of(Upscaler())


def test_a_sample_of_pipelines_makes_what_its_record_says(tmp_path: Path) -> None:
    found = try_pipeline("FluxKontextPipeline", tmp_path)
    assert found == recorded()["FluxKontextPipeline"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PIPELINES))
def test_every_pipeline_makes_what_its_record_says(name: str, tmp_path: Path) -> None:
    assert try_pipeline(name, tmp_path) == recorded()[name]


def recorded() -> dict[str, dict[str, Any]]:
    return {row["pipeline"]: row for row in json.loads(RECORD.read_text(encoding="utf-8"))}


def test_the_record_has_every_pipeline_and_a_reason_for_what_is_refused() -> None:
    rows = recorded()
    assert list(rows) == list(PIPELINES)
    for name, row in rows.items():
        assert bool(row["reason"]) != all(row[kind] for kind in KINDS), name


def test_the_docs_have_the_table_of_the_record() -> None:
    shown = DOCS.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    assert shown.strip() == table(json.loads(RECORD.read_text(encoding="utf-8")))
