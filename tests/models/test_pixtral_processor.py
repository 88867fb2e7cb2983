"""Our processor of Pixtral's images against transformers' own, which is imported here without torchvision."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PixtralImageProcessorPil
from transformers.models.pixtral import image_processing_pil_pixtral

from tests.models.tiny_chat import byte_tokenizer
from tests.models.try_type import photo
from vlm_detect.models.generic.pixtral import PixtralProcessor

MODULES = "transformers.models.pixtral"
WORDS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """transformers' class; of the module that imports torchvision it uses nothing that images need."""
    monkeypatch.setitem(sys.modules, f"{MODULES}.image_processing_pixtral", image_processing_pil_pixtral)
    monkeypatch.delitem(sys.modules, f"{MODULES}.processing_pixtral", raising=False)
    yield importlib.import_module(f"{MODULES}.processing_pixtral").PixtralProcessor
    sys.modules.pop(f"{MODULES}.processing_pixtral")


def made_by(cls: Any) -> Any:
    image_processor = PixtralImageProcessorPil(size={"longest_edge": 140}, patch_size=14)
    return cls(image_processor, byte_tokenizer(*WORDS), patch_size=14, spatial_merge_size=2)


def test_ids_and_pixels_are_those_of_transformers(reference: type) -> None:
    images = [photo(0, (64, 48)), photo(1, (200, 90)), photo(2, (20, 300))]
    texts = ["[IMG]What is it?", "One [IMG] and [IMG]: which one is real?"]
    options = {"padding": True, "return_tensors": "pt"}
    ours = made_by(PixtralProcessor)(images=images, text=texts, **options)
    theirs = made_by(reference)(images=[images[:1], images[1:]], text=texts, **options)
    assert ours.keys() >= {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, torch.as_tensor(theirs[name])), name


def test_settings_are_those_of_transformers(reference: type) -> None:
    ours, theirs = made_by(PixtralProcessor), made_by(reference)
    assert ours.to_dict() == theirs.to_dict()
    assert ours.image_token_ids == theirs.image_token_ids


def test_an_image_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="1 images for 2 places"):
        made_by(PixtralProcessor)(images=[photo()], text=["[IMG] and [IMG]"], return_tensors="pt")
