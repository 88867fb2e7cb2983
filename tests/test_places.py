"""Places in words, and back."""

import pytest

from vlm_detect.places import PLACES, box_of, place_of, places_in


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ([0, 0, 10, 10], "upper left"),
        ([40, 0, 60, 30], "top"),
        ([60, 10, 90, 30], "upper right"),
        ([0, 40, 40, 60], "left"),
        ([40, 40, 60, 60], "centre"),
        ([80, 30, 100, 60], "right"),
        ([0, 90, 50, 100], "lower left"),
        ([30, 60, 90, 100], "bottom"),
        ([99, 99, 100, 100], "lower right"),
    ],
)
def test_place_of(box, place):
    assert place_of(box, (100, 100)) == place


@pytest.mark.parametrize("size", [(100, 100), (32, 32), (47, 31), (3, 3)])
def test_the_box_of_a_place_is_at_that_place(size):
    assert [place_of(box_of(place, size), size) for place in PLACES] == list(PLACES)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box_of(place, size) for place in PLACES)]
    assert sum(areas) == size[0] * size[1]


@pytest.mark.parametrize("size", [(160, 160), (32, 32), (47, 31), (3, 3)])
def test_the_centre_of_a_box_is_in_its_place(size):
    """Also where a third of a side is not a whole number of pixels."""
    for side, of_side in ((0, size[0]), (1, size[1])):
        for start in range(of_side):
            for stop in range(start + 1, of_side + 1):
                box = [0, 0, 1, 1]
                box[side], box[side + 2] = start, stop
                named = box_of(place_of(box, size), size)
                assert named[side] <= (start + stop) / 2 < named[side + 2]


def test_places_are_parsed_from_their_wording():
    assert [places_in(f"It is so at the {place}.") for place in PLACES] == [[place] for place in PLACES]
    assert places_in("In the top-left corner and the Middle.") == ["upper left", "centre"]
    assert places_in("It was altered at the top centre.") == ["top"]
    assert places_in("In its lower half, and the upper middle.") == ["top", "bottom"]
    assert places_in("It is lower than the upper bound.") == []
    assert places_in("The topping was brightly lit.") == []
