"""Build preferences from a dataset with reasons: per image a checked explanation, and the same with a fault.

    preferences = make_preferences(split, name, calibration, options, seed=0)     # PREFERENCE_FEATURES
    image_of(split, preferences[0])

No annotator is needed: chosen explanations were measured, planted or checked, rejected ones are made false
(`faults.py`). An image is referenced by its row in the split and its column, not copied.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from datasets import Dataset, Features, Value

from vlm_detect.columns import REASON_COLUMNS
from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage, cell_name, undecoded
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.progress import progress
from vlm_detect.questions.kinds.explain import LENGTHS, explain_question
from vlm_detect.records import Label, Reason, label_named, label_of_twin
from vlm_detect.train.faults import FAULTS, Among, Explained, write_explanation
from vlm_detect.train.preference_options import PreferenceOptions

PREFERENCE_FEATURES = Features(
    {
        "row": Value("int64"),
        "column": Value("string"),
        "label": Value("string"),
        "prompt": Value("string"),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "fault": Value("string"),
    }
)
# Every explanation can have these faults. For half of the images they come last, or they would crowd out the others.
ALWAYS_POSSIBLE = ("omitted", "other_verdict")
_REMEDY = "add reasons with vlm-detect add-reasons {name} --out OTHER, and use OTHER"


def make_preferences(
    rows: Dataset, name: str, calibration: MeasureCalibration | None, options: PreferenceOptions, seed: int = 0
) -> Dataset:
    """The preferences of one split; random choices for an image depend only on (seed, its bytes).

    Raises UserError where no image has a checked reason.
    """
    rows = undecoded(rows)
    explained = list(_with_reasons(rows, name))
    if not explained:
        raise UserError(f"{name}: no image has a checked reason; {_REMEDY.format(name=name)}")
    pools: dict[Label, list[Reason]] = {}
    for one in explained:
        pools.setdefault(one.label, []).extend(one.reasons)
    among = Among(pools, calibration)
    found: list[dict[str, Any]] = []
    for one in progress(explained, "preferences", unit="img"):
        found += _preferences(one, rows, among, options, seed)
    return Dataset.from_list(found, features=PREFERENCE_FEATURES)


class _WithReasons(NamedTuple):
    """The location of an image, and its checked reasons, strongest first."""

    row: int
    column: str
    label: Label
    reasons: tuple[Reason, ...]


def reason_columns(rows: Dataset, name: str) -> Mapping[str, str]:
    """{image column: column of its reasons}; `UserError` where the dataset `name` has none."""
    columns = REASON_COLUMNS["pairs" if "twin" in rows.column_names else "images"]
    if missing := sorted(set(columns.values()) - set(rows.column_names)):
        raise UserError(f"{name} has no column {', '.join(missing)}: {_REMEDY.format(name=name)}")
    return columns


def _with_reasons(rows: Dataset, name: str) -> Iterator[_WithReasons]:
    """Every image with a checked reason, each photo once."""
    columns = reason_columns(rows, name)
    seen: set[str] = set()
    for i, row in enumerate(rows):
        for column, of_reasons in columns.items():
            label = _label(row, column)
            if label is None:
                continue
            reasons = [Reason.from_row(one) for one in row[of_reasons] or []]
            reasons = [reason for reason in reasons if reason.checked_by and reason.supports == label]
            key = StoredImage.from_cell(row[column], cell_name(i, column)).sha256
            if reasons and key not in seen:  # a photo has one row for each of its twins
                seen.add(key)
                yield _WithReasons(i, column, label, tuple(reasons))


def _label(row: Mapping[str, Any], column: str) -> Label | None:
    if column == "twin":
        return label_of_twin(row["kind"])
    return label_named(str(row.get("image_label") or row.get("label")))


def _preferences(
    one: _WithReasons, rows: Dataset, among: Among, options: PreferenceOptions, seed: int
) -> Iterator[dict[str, Any]]:
    row = rows[one.row]
    image = StoredImage.from_cell(row[one.column], cell_name(one.row, one.column))
    rng = random.Random(f"preference:{seed}:{image.sha256}")
    length = rng.choice(list(LENGTHS))
    stated = one.reasons[: LENGTHS[length]]
    explained = Explained(image, one.label, one.reasons, stated, row.get("edit") if one.column == "twin" else None)
    facts = {
        "row": one.row,
        "column": one.column,
        "label": one.label,
        "prompt": explain_question("edit" if one.label == "edited" else "generation", length),
        "chosen": write_explanation(one.label, stated),
    }
    left = options.preferences_per_image
    faults = rng.sample(options.faults, len(options.faults))
    if rng.random() < 0.5:
        faults.sort(key=lambda fault: fault in ALWAYS_POSSIBLE)
    for fault in faults:
        rejected = FAULTS[fault](explained, rng, among) if left else None
        if rejected is not None and rejected != facts["chosen"]:
            left -= 1
            yield {**facts, "rejected": rejected, "fault": fault}


def counts_of(preferences: Dataset) -> dict[str, int]:
    """The number of preferences of each fault."""
    return dict(sorted(Counter(preferences["fault"]).items()))


def image_of(rows: Dataset, preference: Mapping[str, Any]) -> StoredImage:
    """The image of a preference; `rows` is the undecoded split that it was made from."""
    row, column = preference["row"], preference["column"]
    return StoredImage.from_cell(rows.select_columns([column])[row][column], cell_name(row, column))
