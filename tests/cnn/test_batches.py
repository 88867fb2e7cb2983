"""The batched moves against the plain ones, and what the order of images depends on."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from vlm_detect.cnn.batches import AUGMENTATIONS, GREY, Batches, GroupSampler, reference_batch
from vlm_detect.cnn.pixels import Entry, Shots
from vlm_detect.errors import UserError


def shots(n: int = 12, side: int = 9, groups: int | None = None) -> Shots:
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return Shots(images, [Entry("real", "", "", str(i % (groups or n)), str(i)) for i in range(n)], [])


def batches(augment, **options) -> Batches:
    made = shots(**options)
    return Batches(made, {"verdict": np.arange(len(made))}, augment=augment, seed=1)


@pytest.mark.parametrize("augment", [(), ("flip",), ("rotate",), ("shift",), ("erase",), AUGMENTATIONS])
def test_a_batch_equals_the_reference_image_by_image(augment):
    made = batches(augment, n=40)
    index = torch.randperm(40)
    pixels, targets = made.batch(index, epoch=3)
    torch.testing.assert_close(pixels, reference_batch(made, index, epoch=3))
    assert targets["verdict"].tolist() == index.tolist()
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_every_augmentation_moves_something_and_no_pixel_is_new():
    made = batches(("flip", "rotate"), n=40)
    pixels, _ = made.batch(torch.arange(40), epoch=0)
    plain, _ = batches((), n=40).batch(torch.arange(40), epoch=0)
    moved = (pixels != plain).flatten(1).any(1)
    assert 20 < moved.sum() <= 40
    torch.testing.assert_close(pixels.flatten(1).sort().values, plain.flatten(1).sort().values)


def test_a_grey_square_of_half_the_side_hides_a_place_of_each_image_and_nothing_else():
    made = batches(("erase",), n=40)
    pixels, _ = made.batch(torch.arange(40), epoch=0)
    plain, _ = batches((), n=40).batch(torch.arange(40), epoch=0)
    grey, side = (pixels == GREY).all(1), pixels.shape[-1]
    torch.testing.assert_close(torch.where(grey[:, None], plain, pixels), plain)
    assert grey.flatten(1).sum(1).max() == (side // 2) ** 2  # where the square lies wholly in the image
    assert grey.flatten(1).sum(1).min() >= (side // 4) ** 2


def test_a_photo_and_its_twin_are_moved_alike_and_differently_in_the_next_epoch():
    made = batches(AUGMENTATIONS, n=40, groups=20)
    first, second, later = (
        astuple(made.moves(index, epoch))
        for index, epoch in ((torch.arange(20), 0), (torch.arange(20, 40), 0), (torch.arange(20), 1))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, later, strict=True))


def test_the_order_keeps_groups_together_and_follows_from_seed_and_epoch():
    made = batches((), n=12, groups=6)

    def order(seed, epoch):
        sampler = GroupSampler(made.groups, seed)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert sorted(order(0, 0)) == list(range(12))
    assert all(a % 6 == b % 6 for a, b in zip(order(0, 0)[::2], order(0, 0)[1::2], strict=True))
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_an_unknown_augmentation_is_one_line():
    with pytest.raises(UserError, match="--augment blur: unknown; choose from flip, rotate, shift, erase"):
        batches(("blur",))
