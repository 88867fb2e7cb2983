"""What a label column says: words, names of classes and questions are read, a bare number is asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlm_detect.data.image_sets import open_image_set
from vlm_detect.data.label_reading import LabelReader, label_within
from vlm_detect.errors import UserError


def read(column: str, *values: Any, **options: Any) -> list[str | None]:
    reader = LabelReader.choose(["image", column], named="set", **options)
    return [reader({column: value}) for value in values]


@pytest.mark.parametrize(
    ("column", "values", "labels"),
    [
        ("label", ["REAL", "fake", "AI-generated", "tampered", None, ""], "real generated generated edited - -"),
        ("is_fake", [1, 0, True, False, 1.0, "0", "Yes"], "generated real generated real generated real generated"),
        ("is_real", [True, False, 1, 0.0, "true"], "real generated real generated real"),
        ("Is_Tampered", [1, 0], "edited real"),
        ("real", [1, 0, float("nan")], "real generated -"),
        ("json.label", ["fake"], "generated"),
        ("Label_A", ["AiArtData", "RealArt", "ai_human"], "generated real generated"),
    ],
)
def test_values(column: str, values: list[Any], labels: str) -> None:
    rows = [{"json": {"label": value}} if "." in column else {column: value} for value in values]
    reader = LabelReader.choose(["image", column], named="set")
    assert [reader(row) or "-" for row in rows] == labels.split()


def test_classes_by_their_names() -> None:
    assert read("label", 0, 1, -1, None, names={"label": ["REAL", "1_fake"]}) == ["real", "generated", None, None]
    assert read("label", 0, 1, names={"label": ["AiArtData", "RealArt"]}) == ["generated", "real"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0, r"label 0 does not say whether an image is real; .*--labels 0=real 1=generated, or 0=generated 1=real"),
        (1.0, "label 1 does not say"),
        (True, "label true does not say .*--labels false=real true=generated"),
        ("cat", "label cat is not a known label"),
        ("real_vs_fake", "label real_vs_fake is not a known label"),
        ("not_real", "label not_real is not a known label"),
        (7, "label 7 does not say"),
    ],
)
def test_ambiguous_labels_are_refused(value: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"^set: {says}"):
        read("label", value)


def test_other_label_columns_are_reported_and_not_used() -> None:
    reader = LabelReader.choose(["label", "model_name"], named="set")
    with pytest.raises(UserError, match=r"label 0 does not say .* \(the row's model_name is real\)"):
        reader({"label": 0, "model_name": "real"})


@pytest.mark.parametrize("given", [{"0": "real", "1": "generated"}, {" 0": "real", "1 ": "generated"}])
def test_given_meanings_apply_to_every_notation_of_a_number(given: Any) -> None:
    assert read("label", 0, 1, 0.0, 1.0, "0", given=given) == ["real", "generated", "real", "generated", "real"]
    assert read("label", False, True, given={"True": "generated", "false": "real"}) == ["real", "generated"]
    assert read("is_fake", 1, 0, given={"1": "real", "0": "generated"}) == [
        "real",
        "generated",
    ]  # it is the user's word


def test_the_column_is_chosen_by_its_name_or_given() -> None:
    columns = ["image", "label", "is_fake", "kind"]
    assert LabelReader.choose(columns).column == "is_fake"  # which asks a question, where a label may be of an object
    assert LabelReader.choose(columns, column="LABEL").column == "label"
    for options, says in (({}, "no label column"), ({"column": "other"}, "no column other")):
        with pytest.raises(UserError, match=rf"set: {says}.*it has image, kind: name one with --label_column"):
            LabelReader.choose(["image", "kind"], named="set", **options)


def test_the_interpretation_is_reported() -> None:
    reader = LabelReader.choose(["label"], given={"0": "real", "1": "generated"})
    for value in (0, 1, 1, None):
        reader({"label": value})
    assert reader.describe() == "label: 0 = real (1), 1 = generated (2); 1 without a label"


def test_the_interpretation_of_folders_is_reported(tmp_path: Path) -> None:
    """Also of an object's folder that is called like a label, which decides where it lies further inside."""
    for place in ("REAL", "FAKE/dogs", "FAKE/human"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.jpg").touch()
    reading = open_image_set("folders", str(tmp_path)).reading
    assert reading == "folders: FAKE = generated (1), REAL = real (1), human = real (1)"


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("AiArtData", "generated"),
        ("RealArt", "real"),
        ("real_images", "real"),
        ("FakeFaces2", "generated"),
        ("photos_of_cats", None),
        ("real_or_fake", None),
        ("human_faces", None),
        ("unrealistic things", None),
        ("cat", None),
    ],
)
def test_labels_within_names(name: str, label: str | None) -> None:
    assert label_within(name) == label
