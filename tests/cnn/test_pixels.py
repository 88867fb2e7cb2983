"""Decoding a dataset once: what stands in the array, what is left out, and what is said of each image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.cnn.toys import image_row, save_images, save_rows
from tests.train.toys import save_toy_pairs
from vlm_detect.cnn import pixels
from vlm_detect.cnn.pixels import common_side, decode_split
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected
from vlm_detect.models.cnn.squares import to_square


def test_pixels_and_entries_are_those_of_the_dataset_and_the_second_time_nothing_is_decoded(tmp_path, monkeypatch):
    data = str(save_images(tmp_path / "set", n=6))
    first = decode_split(data, "train", size=32, cache=tmp_path / "cache")
    monkeypatch.setattr(pixels, "_decode", None)
    again = decode_split(data, "train", size=32, cache=tmp_path / "cache")
    np.testing.assert_array_equal(first.images, again.images)
    assert first.entries == again.entries
    rng = np.random.default_rng(0)
    rows = [image_row(i, ("real", "generated")[i % 2], rng) for i in range(6)]
    for row, image in zip(rows, first.images, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))))
    assert list(first.column("label")) == ["real", "generated"] * 3
    assert list(first.column("generator")) == ["", "sd", "", "gan", "", "sd"]
    assert first.entries[0].group == "train-real0"


def test_a_changed_dataset_is_decoded_again(tmp_path):
    for n in (4, 6):
        data = str(save_images(tmp_path / "set", n=n))
        assert len(decode_split(data, "train", size=32, cache=tmp_path / "cache")) == n


def test_each_photo_of_pairs_is_included_once(tmp_path):
    save_toy_pairs(tmp_path / "pairs", n_train=5, n_validation=3)
    shots = decode_split(str(tmp_path / "pairs"), "train", size=16, cache=tmp_path / "cache")
    assert sorted(shots.column("label")) == ["generated"] * 5 + ["real"] * 5
    groups = shots.column("group")
    assert all((groups == name).sum() == 2 for name in set(groups))


def test_bad_images_are_left_out_with_their_reason(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [image_row(i, "real", rng) for i in range(3)]
    rows[1]["image"] = {"bytes": b"not an image", "path": None}
    save_rows(tmp_path / "set", "train", rows)
    shots = decode_split(str(tmp_path / "set"), "train", size=32, cache=tmp_path / "cache")
    assert [entry.id for entry in shots.entries] == ["0", "2"]
    assert shots.rejects[0].startswith("1: not_an_image")
    assert "1 images left out (1 not_an_image)" in capsys.readouterr().out


def test_a_square_is_cut_from_the_middle_and_only_resize_computes_pixels():
    wide = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3))
    np.testing.assert_array_equal(np.asarray(to_square(wide, 8, "crop")), np.asarray(wide)[:, 2:10])
    assert to_square(wide, 4, "resize").size == (4, 4)
    assert to_square(wide, 16, "resize").size == (16, 16)
    with pytest.raises(ImageRejected, match="too_small: 12x8 pixels, at least 16x16 are needed"):
        to_square(wide, 16, "crop")


def test_no_image_large_enough_is_one_line(tmp_path):
    data = str(save_images(tmp_path / "set", n=4))
    assert common_side(data) == 32
    with pytest.raises(UserError, match="no image of its train split can be used at 64 pixels"):
        decode_split(data, "train", size=64, cache=tmp_path / "cache")
    with pytest.raises(UserError, match="has no unseen split"):
        decode_split(data, "unseen", size=32, cache=tmp_path / "cache")
