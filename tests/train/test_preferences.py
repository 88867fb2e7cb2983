"""Preferences of a dataset with reasons: what is chosen is so of its image, what is rejected is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.train.reasoned import SIDE, reasoned_edits, reasoned_images
from vlm_detect.errors import UserError
from vlm_detect.generate.edit_reasons import operation_wordings
from vlm_detect.images.stored import undecoded
from vlm_detect.measures.claims import check_claim, read_claim
from vlm_detect.measures.registry import measure_image
from vlm_detect.places import PLACES, place_of, places_in
from vlm_detect.questions.kinds.explain import LENGTHS, explain_question
from vlm_detect.questions.read import sentences
from vlm_detect.records import Reason
from vlm_detect.train.faults import FAULTS
from vlm_detect.train.preference_options import FAULT_NAMES, PreferenceOptions
from vlm_detect.train.preferences import counts_of, image_of, make_preferences


def statuses(explanation: str, image: np.ndarray, calibration: Any) -> list[str]:
    """What the image's own measurement says of each sentence behind the verdict."""
    measured = measure_image(image)
    found: list[str] = []
    for sentence in sentences(explanation)[1:]:
        claim = read_claim(sentence)
        assert claim is not None, sentence
        found.append(check_claim(claim, measured, calibration).status)
    return found


@pytest.fixture(scope="module")
def made() -> Dataset:
    rows, calibration = reasoned_images()
    return make_preferences(rows, "toy", calibration, PreferenceOptions(preferences_per_image=5))


def test_chosen_explanations_are_true_and_rejected_ones_have_their_fault(made: Dataset) -> None:
    rows, calibration = reasoned_images()
    assert set(counts_of(made)) == set(FAULTS)
    stored = undecoded(rows)
    for one in made:
        image = np.asarray(image_of(stored, one).open())
        verdict = {"real": "Real.", "generated": "AI-generated."}[one["label"]]
        counts = {explain_question(length=length): count for length, count in LENGTHS.items()}
        reasons = [reason["text"] for reason in rows[one["row"]]["reasons"]]
        # As explanations are learned: the strongest reasons, as many as are asked for.
        assert one["chosen"] == " ".join([verdict, *reasons[: counts[one["prompt"]]]])
        chosen = statuses(one["chosen"], image, calibration)
        assert chosen
        assert set(chosen) == {"confirmed"}
        rejected = one["rejected"]
        assert rejected != one["chosen"]
        if one["fault"] == "other_verdict":
            assert rejected.partition(" ")[2] == one["chosen"].partition(" ")[2]
            assert not rejected.startswith(verdict)
            continue
        assert rejected.startswith(verdict)
        if one["fault"] == "omitted":
            left = sentences(rejected)[1:]
            assert len(left) == len(chosen) - 1
            assert set(left) < set(sentences(one["chosen"]))
            continue
        # One sentence of the others is contradicted by the image's own pixels.
        found = statuses(rejected, image, calibration)
        assert len(found) == len(chosen)
        assert found.count("contradicted") == 1
        assert found.count("confirmed") == len(found) - 1
        if one["fault"] == "fault_on_photo":
            assert one["label"] == "real"
        if one["fault"] == "wrong_place":
            moved = [s for s in sentences(rejected) if s not in sentences(one["chosen"])]
            (place,) = places_in(moved[0])
            assert [s.replace(place, "?") for s in moved] == [
                s.replace(places_in(s)[0], "?") for s in sentences(one["chosen"]) if s not in sentences(rejected)
            ]


def test_preferences_depend_only_on_the_seed_and_the_image(made: Dataset) -> None:
    rows, calibration = reasoned_images()
    options = PreferenceOptions(preferences_per_image=5)
    assert make_preferences(rows, "toy", calibration, options).to_list() == made.to_list()
    assert make_preferences(rows, "toy", calibration, options, seed=1).to_list() != made.to_list()
    one = make_preferences(rows, "toy", calibration, PreferenceOptions(faults=["omitted"]))
    assert set(counts_of(one)) == {"omitted"}
    assert len(one) <= len(rows)


def test_edits_are_explained_by_their_record() -> None:
    rows = reasoned_edits()
    made = make_preferences(rows, "edits", None, PreferenceOptions(preferences_per_image=5))
    assert {"wrong_place", "omitted", "other_image", "other_verdict"} == set(counts_of(made))
    for one in made:
        edit = rows[one["row"]]["edit"]
        assert (one["column"], one["label"]) == ("twin", "edited")
        assert one["prompt"] in {explain_question("edit", length) for length in LENGTHS}
        assert one["chosen"].startswith("Altered. ")
        place = place_of(edit["box"], (SIDE, SIDE))
        assert set(places_in(one["chosen"])) <= {place}
        if one["fault"] == "wrong_place":
            (other,) = places_in(one["rejected"])
            assert touches(place, other) is False
        if one["fault"] == "other_verdict":
            assert one["rejected"].startswith("Not altered. ")
        if one["fault"] == "other_image":
            said = sentences(one["rejected"])[1:]
            false_places = [s for s in said if places_in(s) and not touches(place, places_in(s)[0])]
            false_operations = [s for s in said if not places_in(s) and s not in operation_wordings(edit["operation"])]
            assert len(false_places) + len(false_operations) == 1


def touches(one: str, other: str) -> bool:
    (row, column), (other_row, other_column) = (divmod(PLACES.index(place), 3) for place in (one, other))
    return max(abs(row - other_row), abs(column - other_column)) <= 1 and "centre" not in (one, other)


def test_only_checked_reasons_of_a_teacher_count() -> None:
    rows, calibration = reasoned_images()
    said = {"kind": "anatomy", "supports": "generated", "source": "teacher"}
    checked = Reason("The left hand has six fingers.", **said, checked_by="judge").to_row()
    unchecked = Reason("The light is wrong.", **{**said, "kind": "light"}).to_row()

    def add(row: dict[str, Any], index: int) -> dict[str, Any]:
        extra = [checked, unchecked] if row["label"] == "generated" and index % 4 == 1 else []
        return {"reasons": [*row["reasons"], *extra]}

    mixed = rows.map(add, with_indices=True, load_from_cache_file=False)
    made = make_preferences(mixed, "toy", calibration, PreferenceOptions(preferences_per_image=5))
    texts = [text for one in made for text in (one["chosen"], one["rejected"])]
    assert any("six fingers" in text for text in texts)
    assert not any("The light" in text for text in texts)
    for one in made:
        if "six fingers" in one["rejected"] and "six fingers" not in one["chosen"]:
            assert one["row"] % 4 != 1, "what is said of this image is called wrong"


def test_a_dataset_without_reasons_is_refused_with_the_way_to_get_some() -> None:
    rows, calibration = reasoned_images()
    with pytest.raises(UserError, match=r"has no column reasons: add reasons with vlm-detect add-reasons toy"):
        make_preferences(rows.remove_columns("reasons"), "toy", calibration, PreferenceOptions())
    bare = rows.map(lambda row: {"reasons": []}, load_from_cache_file=False)
    with pytest.raises(UserError, match="no image has a checked reason"):
        make_preferences(bare, "toy", calibration, PreferenceOptions())
    assert tuple(FAULTS) == FAULT_NAMES
    with pytest.raises(UserError, match="choose from wrong_place"):
        PreferenceOptions(faults=["typos"])
