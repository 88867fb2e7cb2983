"""Both members of a unit go through the same; every augmentation does what its name says; cached views are finite."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.factories import tiny_vlm
from tests.train.toys import stored, toy_images, toy_pair, toy_pairs
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.errors import UserError
from vlm_detect.images.encode import through_jpeg
from vlm_detect.train import augment
from vlm_detect.train.augment import AugmentedImage, sample_augmentation
from vlm_detect.train.examples import Units
from vlm_detect.train.features import Features
from vlm_detect.train.options import AUGMENTATIONS, QuestionOptions


def gradient(width=40, height=30):
    """Colours that change from place to place, so that every change of pixels shows."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([5 * x, 7 * y, 100 + x + y], -1).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_is_applied_to_half_and_changes_the_image(name):
    draws = [sample_augmentation([name], random.Random(i)) for i in range(200)]
    assert 70 < sum(map(bool, draws)) < 130
    image = stored(gradient())
    sampled = next(draw for draw in draws if draw)
    assert [step for step, _ in sampled] == [name]
    changed = AugmentedImage(image.content, augmentation=sampled)
    assert changed.open().mode == "RGB"
    assert changed.open().tobytes() != image.open().tobytes()
    assert changed.open().tobytes() == AugmentedImage(image.content, augmentation=sampled).open().tobytes()
    assert changed.key != image.key == AugmentedImage(image.content, augmentation=()).key


def test_effect_of_each_augmentation():
    image = gradient()
    pixels = np.asarray(image, dtype=int)
    assert np.array_equal(augment.flip(image), pixels[:, ::-1])
    assert augment.rotate(image, 1).size == (30, 40)
    assert np.array_equal(augment.crop(image, 0.5, 1.0, 0.0), pixels[:15, 20:])
    assert augment.rescale(image, 0.5).size == (20, 15)
    assert np.abs(np.diff(np.asarray(augment.blur(image, 1.5)), axis=1)).max() <= np.abs(np.diff(pixels, axis=1)).max()
    assert 2 < (np.asarray(augment.noise(image, 3.0, 1), dtype=int) - pixels)[pixels < 240].std() < 4
    assert np.abs(np.asarray(through_jpeg(image, 95), dtype=int) - pixels).mean() < 3
    grey = Image.new("RGB", (4, 4), (90, 90, 90))
    assert np.array_equal(augment.invert_saturate(grey), ImageOps.invert(grey))  # grey has no colour to drive
    vivid = np.asarray(augment.invert_saturate(Image.new("RGB", (4, 4), (155, 120, 100))))
    assert vivid[0, 0, 0] == 0
    assert vivid[0, 0, 2] == 255
    grey = (np.asarray(augment.erase(image, 0.5, 1.0)) == 128).all(-1)
    assert (grey[8:23, 30:].all(), grey.sum()) == (True, 15 * 10)  # the other half of it lies outside


def test_one_augmentation_does_not_affect_the_sampling_of_another():
    alone, both = (sample_augmentation(names, random.Random(3)) for names in (["jpeg"], ["noise", "jpeg"]))
    assert [step for step in both if step[0] == "jpeg"] == list(alone)


def draws_of(unit):
    return [getattr(example.image, "augmentation", ()) for example in unit]


def test_members_share_a_sample_that_changes_with_the_epoch():
    units = Units(toy_pairs(20), QuestionOptions(), augment=AUGMENTATIONS)
    sampled = [[draws_of(units[epoch, i]) for i in range(20)] for epoch in range(2)]
    assert all(photo == twin for epoch in sampled for photo, twin in epoch)
    assert len({str(photo) for epoch in sampled for photo, _ in epoch}) > 30


def test_an_edit_stays_in_its_place():
    edit = {"operation": "blur", "box": [0, 0, 4, 4], "strength": 1.0}
    rows = [toy_pair(i, np.random.default_rng(i), kind="edit", edit=edit) for i in range(8)]
    units = Units(toy_pairs(1).from_list(rows, features=PAIR_FEATURES), QuestionOptions(), augment=AUGMENTATIONS)
    assert all(draws_of(units[0, i]) == [(), ()] for i in range(8))


@pytest.mark.parametrize("rows", [toy_pairs(4), toy_images(["real"] * 3 + ["generated"] * 5)], ids=["pairs", "images"])
def test_every_sampled_view_is_cached(rows, tmp_path):
    units = Units(rows, QuestionOptions(), augment=["noise", "rotate"], views=3)
    vlm = tiny_vlm()
    vlm.model.requires_grad_(False)
    features = Features.build(vlm, units.images, tmp_path)
    seen = {example.image.key for epoch in range(6) for i in range(len(units)) for example in units[epoch, i]}
    assert seen <= set(features.places)
    assert len(seen) > len(rows) * 2
    assert all(first == second for i in range(len(units)) for first, second in [draws_of(units[1, i])])


def test_every_augmentation_of_the_flag_is_implemented():
    assert tuple(augment._APPLY) == AUGMENTATIONS


def test_unknown_augmentation():
    with pytest.raises(UserError, match="mixup: unknown; choose from flip"):
        Units(toy_pairs(1), QuestionOptions(), augment=["mixup"])
