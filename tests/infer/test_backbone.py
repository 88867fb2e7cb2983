"""Features of vision models of transformers: tiny DINOv3, SigLIP 2 and ResNet folders with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextImageProcessorPil,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    Siglip2VisionModel,
)

from vlm_detect.errors import UserError
from vlm_detect.infer.backbone import Backbone

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}


def save_dinov3(folder: Path) -> Path:
    """Its image processor as the Hub's repositories state it: transformers has it for torchvision alone."""
    DINOv3ViTModel(DINOv3ViTConfig(**SMALL, image_size=16, num_register_tokens=4)).save_pretrained(folder)
    stated = {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "size": {"height": 16, "width": 16},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return folder


def save_siglip2(folder: Path) -> Path:
    Siglip2VisionModel(Siglip2VisionConfig(**SMALL, num_patches=16)).save_pretrained(folder)
    Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16).save_pretrained(folder)
    return folder


def save_resnet(folder: Path) -> Path:
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(folder)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[save_dinov3, save_siglip2, save_resnet])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone.load(str(request.param(tmp_path_factory.mktemp("backbone"))), "cpu")


def test_features_are_those_of_each_image_alone(backbone: Backbone) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in [(16, 16), (40, 20)] * 9]
    together = backbone.pooled(images)
    assert together.shape == (18, 32)
    np.testing.assert_allclose(together, np.concatenate([backbone.pooled([image]) for image in images]), atol=1e-4)
    assert np.abs(together[0] - together[2]).max() > 1e-4, "two images have one description"


def test_class_and_register_tokens_are_left_out(tmp_path: Path) -> None:
    backbone = Backbone.load(str(save_dinov3(tmp_path)), "cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    pixels = backbone.processor([image], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    with torch.inference_mode():
        hidden = backbone.model(pixel_values=pixels).last_hidden_state[0]
    assert len(hidden) == 1 + 4 + 16
    np.testing.assert_allclose(backbone.pooled([image])[0, :16], hidden[5:].mean(0).numpy(), atol=1e-5)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "config.json").write_text("{}")])
def test_a_model_without_vision_is_one_line(make, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match="no vision model"):
        Backbone.load(str(tmp_path), "cpu")
