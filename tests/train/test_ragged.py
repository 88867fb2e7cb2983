"""Tensors of several images in one file: each image has its own again, whatever the shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vlm_detect.train.ragged import packed, unpacked

LENGTHS = ([2, 2], [3, 1, 4, 0])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_each_image_has_its_own_tensors(lengths: list[int], tmp_path: Path) -> None:
    images = [
        {
            "levels.0": torch.randn(n, 3).bfloat16(),
            "positions": torch.arange(3 * n).view(3, 1, n),
            "grid": torch.tensor([[1, n, n]]),
            "shift": torch.tensor(-n),
        }
        for n in lengths
    ]
    save_file(packed([dict(image) for image in images]), tmp_path / "file")
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert (f"{'levels.0'}@shapes" in file.keys()) == (len(set(lengths)) > 1)  # noqa: SIM118
        for index, image in enumerate(images):
            found = unpacked(file, index)
            assert found.pop("shift") == image.pop("shift").item()
            torch.testing.assert_close(found, image, rtol=0, atol=0)
