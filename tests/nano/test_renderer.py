"""The nano SD 3.5: untrained but whole, it trains, exports, and loads and renders as the real one does."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from vlm_detect.data.image_sets import CIFAR_CLASSES
from vlm_detect.errors import UserError
from vlm_detect.models.nano import nano_path
from vlm_detect.nano.autoencoder import encode_all, psnr_db, train_autoencoder
from vlm_detect.nano.captions import named_class
from vlm_detect.nano.config import RendererConfig, VaeConfig
from vlm_detect.nano.photos import Photos
from vlm_detect.nano.renderer import export, render, sample_caption, train_renderer

FIRST_WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
TINY: dict[str, Any] = {"steps": 3, "batch": 4, "lr": 1e-3, "warmup": 1, "save_every": 2}


@pytest.fixture(scope="module")
def photos() -> Photos:
    """Ten blobs of colour, two a class for five classes."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.repeat(rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8), 8, 1), 8, 2)
    return Photos(images, np.arange(10) // 2)


@pytest.fixture(scope="module")
def trained(photos: Photos, tmp_path_factory: pytest.TempPathFactory) -> tuple[StableDiffusion3Pipeline, Path]:
    folder = tmp_path_factory.mktemp("nano")
    vae, figures = train_autoencoder(VaeConfig(channels=(8, 8, 16), **TINY), photos, photos, folder, seed=0)
    assert figures["psnr_db"] == pytest.approx(psnr_db(vae, photos.images), abs=0.01)
    config = RendererConfig(**TINY, layers=2, heads=1, clip_width=32, clip_layers=1)
    pipeline, _ = train_renderer(config, vae, photos, folder, seed=0)
    return pipeline, folder


def test_latents_are_scaled_to_unit_variance(trained: tuple[StableDiffusion3Pipeline, Path], photos: Photos) -> None:
    vae = trained[0].vae
    scaled = (encode_all(vae, photos.images) - vae.config.shift_factor) * vae.config.scaling_factor
    assert scaled.shape == (10, 16, 8, 8)
    assert scaled.mean().item() == pytest.approx(0, abs=1e-3)
    assert scaled.std().item() == pytest.approx(1, abs=1e-3)


def test_plain_from_pretrained_loads_the_trained_weights(trained: tuple[StableDiffusion3Pipeline, Path]) -> None:
    pipeline, folder = trained
    loaded = StableDiffusion3Pipeline.from_pretrained(folder / "sd35")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.text_encoder_3 is not None
    assert {part.dtype for part in (loaded.transformer, loaded.vae, loaded.text_encoder, loaded.text_encoder_3)} == {
        torch.float32
    }
    options = {"seed": 3, "num_inference_steps": 2, "guidance_scale": 2.0}
    prompts = ["A red ship.", "A cat on grey."]
    difference = render(loaded, prompts, **options).astype(int) - render(pipeline, prompts, **options)
    assert np.abs(difference).max() <= 2  # weights in fp16
    alone = render(loaded, prompts[1:], **{**options, "seed": 4})
    assert np.abs(alone[0].astype(int) - render(loaded, prompts, **options)[1]).max() <= 1  # a batch changes no image


@pytest.mark.parametrize(("width", "height"), [(64, 64), (48, 32)])
def test_other_sizes_render(trained: tuple[StableDiffusion3Pipeline, Path], width: int, height: int) -> None:
    pipeline, _ = trained
    tokens = pipeline.tokenizer_3.model_max_length
    made = pipeline("A dog.", width=width, height=height, num_inference_steps=2, max_sequence_length=tokens)
    assert made.images[0].size == (width, height)


def test_export_is_readable_by_others(trained: tuple[StableDiffusion3Pipeline, Path], tmp_path: Path) -> None:
    export(trained[0], tmp_path)
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in tmp_path.rglob("*.safetensors")} == {(tmp_path / "any").stat().st_mode}


def test_training_continues_from_exported_weights(
    trained: tuple[StableDiffusion3Pipeline, Path], photos: Photos, tmp_path: Path
) -> None:
    pipeline, folder = trained
    start = StableDiffusion3Pipeline.from_pretrained(folder / "sd35")
    untouched = train_renderer(RendererConfig(**TINY | {"steps": 0}), start, photos, tmp_path / "none", seed=0)[0]
    options = {"seed": 3, "num_inference_steps": 2, "guidance_scale": 2.0}
    same = render(untouched, ["A cat."], **options).astype(int) - render(pipeline, ["A cat."], **options)
    assert np.abs(same).max() <= 2  # weights in fp16
    more, figures = train_renderer(RendererConfig(**TINY), start, photos, tmp_path / "more", seed=0)
    assert figures["steps"] == TINY["steps"]
    before, after = (load_file(where / "sd35" / FIRST_WEIGHTS) for where in (folder, tmp_path / "more"))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert more.vae.config.scaling_factor == pipeline.vae.config.scaling_factor


def test_prompts_differ_in_the_encoders(trained: tuple[StableDiffusion3Pipeline, Path]) -> None:
    pipeline, _ = trained
    prompts = [f"A {colour} {name}." for colour in ("red", "green") for name in CIFAR_CLASSES]
    tokens, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, max_sequence_length=12)
    assert tokens.shape == (20, pipeline.tokenizer.model_max_length + 12, 64)
    assert torch.pdist(pooled).min() > 1e-4


def test_captions_of_a_class_name_it() -> None:
    from vlm_detect.nano.captions import read_facts

    facts = read_facts(np.zeros((32, 32, 3), np.uint8), "truck")
    assert {named_class(sample_caption(facts, Random(seed))) for seed in range(20)} == {"truck"}


def test_an_error_about_a_missing_model_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vlm_detect.models.nano.__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(UserError, match=r"nano_pretrain\.py"):
        nano_path("sd35")
    with pytest.raises(UserError, match="choose from"):
        nano_path("flux")
