"""Which column of a set tells the label, and what its values mean: by words, never by a guess.

    reader = LabelReader.choose(["image", "is_real"], named="owner/set")
    reader({"is_real": True})       # "real"
    reader.told()                   # 'is_real: true = real (1)'

Words and names of classes are read by the one list in `records.py`, also inside a name (AiArtData). Numbers and truth
values are read where the column's name asks (is_fake, is_real). A bare 0 or 1 under "label" says nothing, as public
sets differ in what it means: there the answer has to be given, `--labels 0=real 1=generated`.
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

# Columns that ask a question, and the label of those that say yes.
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
    """Reads the labels of rows, and counts what it read."""

    column: str
    names: Sequence[str] | None = None  # of a column of classes
    given: Mapping[str, Label] = field(default_factory=dict)
    named: str = ""  # the set, for messages
    remedy: str = ""  # what to do about a value whose meaning is not known; by default --labels
    counts: Counter[tuple[str, Label]] = field(default_factory=Counter)
    without: int = 0  # rows that have no label

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
        """By `column` or the first that is called like one; `names` are those of columns of classes.

        `given` are meanings of the set's own words. A dot in a column's name leads into a struct.
        """
        columns = list(columns)
        chosen = _chosen(columns, column)
        if chosen is None:
            asked = f"no column {column}" if column else f"no label column (such as {', '.join(LABEL_COLUMNS[:8])})"
            raise UserError(f"{named}: {asked}; it has {', '.join(columns)}: name one with --label_column")
        plain = {key.strip().lower(): label for key, label in (given or {}).items()}
        return cls(chosen, (names or {}).get(chosen), plain, named, **options)

    def __call__(self, row: Mapping[str, Any]) -> Label | None:
        """The label of a row, None where it has none; UserError for a value whose meaning is not known."""
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
        """What a cell says, in a word: a class by its name, 1.0 as 1; None where it says nothing."""
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
            return f"{self.column} {word} is no label known here"
        hint = next((f" (the row's {name} is {row[name]})" for name in GENERATOR_COLUMNS if row.get(name)), "")
        return f"{self.column} {word} does not say whether an image is real{hint}"

    def told(self) -> str:
        """Such as "label: 0 = real (12), 1 = generated (12); 1 without a label"."""
        return f"{self.column}: {told(self.counts)}" + (f"; {self.without} without a label" if self.without else "")


GENERATOR_COLUMNS = ("generator", "model", "model_name", "source_model", "generator_name")


def told(counts: Mapping[tuple[str, Label], int]) -> str:
    """How words were read, and how often: "FAKE = generated (12), REAL = real (12)"."""
    return ", ".join(f"{word} = {label} ({count})" for (word, label), count in sorted(counts.items()))


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; of "json.label" that of a struct's field."""
    if column in row:
        return row[column]
    outer, _, inner = column.partition(".")
    held = row.get(outer)
    return value_at(held, inner) if inner and isinstance(held, Mapping) else None


def label_within(name: str) -> Label | None:
    """The one label that a name of several words holds: AiArtData is generated, RealArt real, real_vs_fake neither."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    if len(words) < 2 or _NEGATION & set(words):
        return None
    labels = {label_named(word) for word in words if word not in DEPICTED} - {None}
    return labels.pop() if len(labels) == 1 else None


def _remedy(word: str) -> str:
    """The flags that say what a value means; of a pair of values for both."""
    no, yes = next((pair for pair in _PAIRS if word.lower() in pair), (word, ""))
    if not yes:
        return f"say which it is with --labels {word}=real or --labels {word}=generated"
    return f"look at some, and give --labels {no}=real {yes}=generated, or {no}=generated {yes}=real"


def _chosen(columns: Sequence[str], column: str) -> str | None:
    if column:
        return next((name for name in columns if name.lower() == column.lower()), None)
    return next((name for known in LABEL_COLUMNS for name in columns if _last(name) == known), None)


def _last(column: str) -> str:
    return re.sub(r"\W+", "_", column.rpartition(".")[2].lower())
