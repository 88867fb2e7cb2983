"""Planted edits: known operation, known box, visible, repeatable, and not a pixel outside."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.data.factories import photo
from vlm_detect.generate.edits import MAX_STRENGTH, MIN_STRENGTH, random_edit, random_place, strength_of
from vlm_detect.images.decode import ImageRejected
from vlm_detect.images.edits import EDITS, Place
from vlm_detect.places import PLACES, place_of


def textured(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Shapes with fine detail, as a photo has."""
    grain = np.random.default_rng(seed).normal(0, 14, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(photo(seed, size), float) + grain).clip(0, 255).astype(np.uint8))


def painted(image: Image.Image, place: Place, seed: int) -> Image.Image:
    return textured(seed % 1000, image.size)


@pytest.mark.parametrize("operation", EDITS.own)
@pytest.mark.parametrize("size", [(96, 64), (32, 32), (33, 47)])
def test_only_the_box_changes_and_visibly(operation: str, size: tuple[int, int]) -> None:
    for seed in range(4):
        image = textured(seed, size)
        edited = random_edit(image, seed, operations=[operation], donor=textured(90 + seed, (24, 50)), paint=painted)
        before, after = np.asarray(image, int), np.asarray(edited.image, int)
        changed = np.abs(after - before).max(axis=-1) > 0
        x0, y0, x1, y1 = edited.box
        assert edited.operation == operation
        assert changed[y0:y1, x0:x1].mean() > 0.2
        changed[y0:y1, x0:x1] = False
        assert not changed.any()
        assert MIN_STRENGTH <= edited.strength <= MAX_STRENGTH
        assert edited.strength == pytest.approx(strength_of(image, edited.image, edited.box))


def test_an_edit_follows_from_its_seed() -> None:
    image, donor = textured(1), textured(2)
    once, again = (random_edit(image, 5, donor=donor) for _ in range(2))
    assert (once.operation, once.box, once.image.tobytes()) == (again.operation, again.box, again.image.tobytes())
    assert len({random_edit(image, seed, donor=donor).box for seed in range(10)}) > 5


def test_operations_and_places_are_equally_frequent() -> None:
    image, donor = textured(1), textured(2)
    sampled = [random_edit(image, seed, donor=donor, paint=painted) for seed in range(240)]
    operations = Counter(edited.operation for edited in sampled)
    places = Counter(place_of(edited.box, image.size) for edited in sampled)
    assert set(operations) == set(EDITS.own)
    assert set(places) == set(PLACES)
    assert min(operations.values()) > 240 / 8 / 2
    assert min(places.values()) > 240 / 9 / 2


def test_the_mask_fades_out_at_the_border_of_the_box() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        place = random_place((200, 100), rng)
        border = np.concatenate([place.mask[0], place.mask[-1], place.mask[:, 0], place.mask[:, -1]])
        assert border.max() < 0.01
        assert place.mask.max() == 1


def test_images_that_cannot_be_edited_are_rejected_with_a_reason() -> None:
    with pytest.raises(ImageRejected, match="too_small: 31x40"):
        random_edit(textured(0, (31, 40)), 0)
    with pytest.raises(ImageRejected, match="no_operation: splice need another photo"):
        random_edit(textured(0), 0, operations=["splice"])
    with pytest.raises(ImageRejected, match="edit_invisible"):
        random_edit(Image.new("RGB", (64, 64), "grey"), 0, operations=["blur", "warp", "copy_move"])


def test_an_invisible_edit_is_sampled_again_with_another_operation() -> None:
    plain = Image.new("RGB", (64, 64), "grey")
    assert {random_edit(plain, seed, operations=["blur", "recolour"]).operation for seed in range(6)} == {"recolour"}


def test_removal_fills_the_box_from_its_surroundings() -> None:
    """A dark spot on a bright ramp: the ramp is what the border tells."""
    ramp = np.repeat(np.linspace(100, 220, 96)[None, :, None], 96, axis=0).repeat(3, axis=2)
    for seed in range(40):
        edited = random_place((96, 96), np.random.default_rng([seed, 0]))
        spotted = ramp.copy()
        x0, y0, x1, y1 = edited.box
        spotted[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6] = 20
        image = Image.fromarray(spotted.astype(np.uint8))
        found = random_edit(image, seed, operations=["removal"])
        if found.box != edited.box:
            continue  # the first draw was out of bounds
        middle = slice((y0 + y1) // 2 - 2, (y0 + y1) // 2 + 2), slice((x0 + x1) // 2 - 2, (x0 + x1) // 2 + 2)
        np.testing.assert_allclose(np.asarray(found.image, float)[middle], ramp[middle], atol=25)
        return
    pytest.fail("no seed kept its first draw")
