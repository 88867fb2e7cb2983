"""Pixels that travel as bytes are the processor's own numbers once they are normalised on the device."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from tests.models.tiny_chat import ARCHITECTURES, save_tiny
from tests.models.tiny_types import save_tiny_type
from tests.models.try_type import photo
from vlm_detect.models.generic.levels import GreyLevels
from vlm_detect.models.registry import load_vlm

TYPES = ("internvl", "llava_onevision", "qwen3_vl", "smolvlm")
PHOTOS = [photo(seed, size) for seed, size in enumerate([(64, 48), (48, 80), (200, 90), (16, 16)])]


def pixels_of(prepared: Any) -> list[torch.Tensor]:
    images = [prepared] if isinstance(prepared, dict) else prepared
    return [tensor for image in images for name, tensor in image.items() if name.startswith("pixel_values")]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", [*ARCHITECTURES, "tinyllava", *TYPES])
def test_bytes_give_the_same_pixels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "tinyllava":
        folder = "tinyllava-nano"
    else:
        folder = str((save_tiny_type if name in TYPES else save_tiny)(name, tmp_path / name))
    vlm: Any = load_vlm(folder, device="cpu")
    assert vlm.levels is not None
    sent = vlm.prepare(PHOTOS)
    received = [vlm._normalized(image) for image in ([sent] if isinstance(sent, dict) else sent)]
    again = [vlm._normalized(image) for image in received]  # of a batch that is encoded twice
    monkeypatch.setattr(type(vlm), "levels", None)
    vlm.__dict__.pop("levels")
    plain = vlm.prepare(PHOTOS)
    assert all(tensor.dtype == torch.uint8 for tensor in pixels_of(sent))
    assert len(pixels_of(received)) == len(pixels_of(plain)) > 0
    for got, expected, levels in zip(pixels_of(received), pixels_of(plain), pixels_of(sent), strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, expected)
        assert levels.nbytes * 4 == expected.nbytes
    assert all(map(torch.equal, pixels_of(again), pixels_of(plain)))


class Processor(SiglipImageProcessorPil):
    """What a processor may do that bytes do not give back."""

    odd = ""

    def __call__(self, images: Any, **settings: Any) -> Any:
        if self.odd == "refuses" and settings.get("do_rescale") is False:
            raise ValueError("do_rescale is always True")
        made = super().__call__(images, **settings)
        if self.odd == "pads" and settings.get("do_rescale", True):  # with zeros, after it has normalised
            made["pixel_values"][..., -2:] = 0
        if self.odd == "ignores":
            made = super().__call__(images, **{**settings, "do_rescale": True, "do_normalize": True})
        return made


@pytest.mark.parametrize("odd", ["refuses", "pads", "ignores", "rescales nothing", ""])
def test_pixels_that_do_not_follow_from_bytes_travel_as_numbers(odd: str) -> None:
    processor: Any = Processor(size={"height": 16, "width": 16})
    processor.odd = odd
    if odd == "rescales nothing":
        processor.do_rescale = False

    def make(image: Image.Image, settings: dict[str, bool]) -> dict[str, torch.Tensor]:
        return dict(processor([image], return_tensors="pt", **settings))

    assert (GreyLevels.find(processor, make) is None) == bool(odd)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 3, 4, 5), (6, 24)])
def test_a_table_is_read_by_channel(shape: tuple[int, ...]) -> None:
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    table = torch.arange(3 * 256, dtype=torch.float32).view(3, 256)
    images = len(shape) > 2
    found = GreyLevels(table, "images" if images else "channels", frozenset({"pixel_values"}))
    got = found.normalize({"pixel_values": levels, "mask": levels})
    channel = torch.arange(3)[:, None, None] if images else torch.arange(24) // 8
    assert torch.equal(got["pixel_values"], levels + 256.0 * channel)
    assert got["mask"] is levels
    again = pickle.loads(pickle.dumps(found)).normalize({"pixel_values": levels})
    assert torch.equal(again["pixel_values"], got["pixel_values"])
