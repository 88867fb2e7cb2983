"""Find the label column of a set and the meaning of its values: by words, never by guessing.

    reader = LabelReader.choose(["image", "is_real"], named="owner/set")
    reader({"is_real": True})       # "real"
    reader.describe()               # 'is_real: true = real (1)'

Words and class names are read by the list in `records.py`, also within a name (AiArtData). Numbers and booleans are
read where the column's name defines them (is_fake, is_real). A bare 0 or 1 in "label" is ambiguous, because public sets
differ: there `--labels 0=real 1=generated` is required.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_detect.errors import UserError
from vlm_detect.records import DEPICTED, Label, label_named

# Boolean columns, and the label of a true value.
_QUESTIONS: dict[str, Label] = {
    **dict.fromkeys(
        ("is_fake", "is_ai", "is_generated", "is_ai_generated", "ai_generated", "is_synthetic"), "generated"
    ),
    **dict.fromkeys(("fake", "generated", "synthetic", "is_deepfake"), "generated"),
    **dict.fromkeys(("is_real", "is_photo", "is_human", "is_authentic", "real", "authentic"), "real"),
    **dict.fromkeys(("is_edited", "is_tampered", "is_manipulated", "tampered", "manipulated"), "edited"),
}
_OTHERWISE: dict[Label, Label] = {"generated": "real", "edited": "real", "real": "generated"}
LABEL_COLUMNS = (
    *_QUESTIONS,
    "label",
    "labels",
    "label_a",
    "target",
    "class",
    "cls",
    "binary_label",
    "ground_truth",
    "gt",
)
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_PAIRS = (("0", "1"), ("false", "true"), ("no", "yes"))
_NEGATION = {"not", "non", "no", "without"}


@dataclass
class LabelReader:
    """Reads the labels of rows, and counts them."""

    column: str
    names: Sequence[str] | None = None  # of a ClassLabel column
    given: Mapping[str, Label] = field(default_factory=dict)
    named: str = ""  # name of the set, for messages
    remedy: str = ""  # remedy for an unknown value; default: --labels
    always: Label | None = None  # the label of every row, of a set without a label column
    counts: Counter[tuple[str, Label]] = field(default_factory=Counter)
    without: int = 0  # rows without a label

    @classmethod
    def choose(
        cls,
        columns: Iterable[str],
        *,
        column: str = "",
        names: Mapping[str, Sequence[str]] | None = None,
        given: Mapping[str, Label] | None = None,
        named: str = "",
        **options: Any,
    ) -> LabelReader:
        """Use `column`, or the first column with a known name; `names` are the class names of ClassLabel columns.

        `given` maps the set's own words to labels. A dot in a column's name selects a field of a struct.
        """
        columns = list(columns)
        chosen = _chosen(columns, column)
        if chosen is None:
            asked = f"no column {column}" if column else f"no label column (such as {', '.join(LABEL_COLUMNS[:8])})"
            raise UserError(f"{named}: {asked}; it has {', '.join(columns)}: name one with --label_column")
        plain = {key.strip().lower(): label for key, label in (given or {}).items()}
        return cls(chosen, (names or {}).get(chosen), plain, named, **options)

    def __call__(self, row: Mapping[str, Any]) -> Label | None:
        """The label of a row, None without one; raises UserError for an unknown value."""
        if self.always is not None:
            self.counts["as published", self.always] += 1
            return self.always
        value = value_at(row, self.column)
        word = self.word(value)
        if word is None:
            self.without += 1
            return None
        label = self.given.get(word.lower()) or self.given.get(str(value).lower()) or self._meaning(word)
        if label is None:
            raise UserError(f"{self.named}: {self._unknown(word, row)}; {self.remedy or _remedy(word)}")
        self.counts[word, label] += 1
        return label

    def word(self, value: Any) -> str | None:
        """A cell's value as a word: a class by its name, 1.0 as 1; None if empty."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, bool):
            return str(value).lower()
        if self.names and isinstance(value, int):
            return self.names[value] if 0 <= value < len(self.names) else None
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        return str(value).strip() or None

    def _meaning(self, word: str) -> Label | None:
        asked = _QUESTIONS.get(_last(self.column))
        if asked is not None and (truth := _TRUTH.get(word.lower())) is not None:
            return asked if truth else _OTHERWISE[asked]
        return label_named(word) or label_within(word)

    def _unknown(self, word: str, row: Mapping[str, Any]) -> str:
        if word.lower() not in _TRUTH and not word.lstrip("-").isdigit():
            return f"{self.column} {word} is not a known label"
        hint = next((f" (the row's {name} is {row[name]})" for name in GENERATOR_COLUMNS if row.get(name)), "")
        return f"{self.column} {word} does not say whether an image is real{hint}"

    def describe(self) -> str:
        """Such as "label: 0 = real (12), 1 = generated (12); 1 without a label"."""
        return f"{self.column}: {describe_counts(self.counts)}" + (
            f"; {self.without} without a label" if self.without else ""
        )


GENERATOR_COLUMNS = ("generator", "model", "model_name", "source_model", "generator_name")


def describe_counts(counts: Mapping[tuple[str, Label], int]) -> str:
    """How words were read, with counts: "FAKE = generated (12), REAL = real (12)"."""
    return ", ".join(f"{word} = {label} ({count})" for (word, label), count in sorted(counts.items()))


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; "json.label" is a field of a struct."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    held = row.get(outer)
    return value_at(held, inner) if inner and isinstance(held, Mapping) else None


def label_within(name: str) -> Label | None:
    """The only label within a name of several words: AiArtData is generated, RealArt real, real_vs_fake neither."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    if len(words) < 2 or _NEGATION & set(words):
        return None
    labels = {label_named(word) for word in words if word not in DEPICTED} - {None}
    return labels.pop() if len(labels) == 1 else None


def _remedy(word: str) -> str:
    """The flags that define a value; both values of a known pair."""
    no, yes = next((pair for pair in _PAIRS if word.lower() in pair), (word, ""))
    if not yes:
        return f"define it with --labels {word}=real or --labels {word}=generated"
    return f"inspect some images, then give --labels {no}=real {yes}=generated, or {no}=generated {yes}=real"


def _chosen(columns: Sequence[str], column: str) -> str | None:
    if column:
        return next((name for name in columns if name.lower() == column.lower()), None)
    return next((name for known in LABEL_COLUMNS for name in columns if _last(name) == known), None)


def _last(column: str) -> str:
    return re.sub(r"\W+", "_", column.rpartition(".")[2].lower())
