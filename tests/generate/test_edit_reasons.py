"""What is said of a planted edit is what the row says was done, and is read back as that and nothing else."""

import pytest

from vlm_detect.benchmark.explanations import claimed_faults, names, operation_words
from vlm_detect.generate.edit_reasons import edit_reasons, operation_wordings, place_wordings
from vlm_detect.images.edits import EDITS
from vlm_detect.places import PLACES, box_of, places_in


def edit(operation: str | None, box: list[int] | None) -> dict[str, object]:
    return {"of": "photo", "operation": operation, "box": box, "strength": 0.1, "donor": None, "attempt": 0}


@pytest.mark.parametrize("operation", EDITS.own)
def test_every_wording_names_only_its_operation(operation):
    written = operation_wordings(operation)
    assert len(set(written)) == len(written) >= 12
    for sentence in written:
        assert names(sentence, operation.replace("_", " "), operation_words()), sentence
        assert places_in(sentence) == []


@pytest.mark.parametrize("place", PLACES)
def test_every_wording_names_only_its_place(place):
    written = place_wordings(place)
    assert len(set(written)) == len(written) >= 12
    for sentence in written:
        assert places_in(sentence) == [place]
        assert claimed_faults(sentence) == 0
    with pytest.raises(ValueError, match="somewhere: not one of upper left"):
        place_wordings("somewhere")


def test_contents_of_the_row():
    box = list(box_of("lower right", (96, 64)))
    operation, place = edit_reasons(edit("smear", box), (96, 64), seed="a")
    assert (operation.kind, operation.box) == ("operation", None)
    assert (place.kind, list(place.box)) == ("place", box)
    assert {(one.supports, one.source) for one in (operation, place)} == {("edited", "edit")}
    assert places_in(place.text) == ["lower right"]
    assert edit_reasons(edit("smear", box), (96, 64), seed="a") == [operation, place]
    sampled = {edit_reasons(edit("smear", box), (96, 64), seed=str(i))[0].text for i in range(100)}
    assert sampled <= set(operation_wordings("smear"))
    assert len(sampled) > 6


def test_unknown_facts_are_not_stated():
    assert edit_reasons(None, (96, 64), seed="") == []
    assert edit_reasons(edit(None, None), (96, 64), seed="") == []
    assert [reason.kind for reason in edit_reasons(edit("blur", None), (96, 64), seed="")] == ["operation"]
    assert [reason.kind for reason in edit_reasons(edit("unheard_of", [0, 0, 9, 9]), (96, 64), seed="")] == ["place"]
