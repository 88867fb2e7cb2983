"""The rows that pass between the stages in memory, and their vocabulary; `columns.py` has those on disk.

photos --caption--> captions --render--> twins --write--> pairs --questions--> Question
Item (a benchmark's question) --benchmark--> Result
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from vlm_detect.places import place_of

Label = Literal["real", "generated", "edited"]
TwinKind = Literal["caption", "vae", "edit", "instruct"]
EDITED_KINDS: tuple[TwinKind, ...] = ("edit", "instruct")  # twins that are a photo or a twin, changed
Polarity = Literal["fake", "real"]  # the class that "Yes." means
Topic = Literal["generation", "edit"]
FROM_PROMPTS = "prompts"  # the captioner of prompted images, which are twins of no photo
# Kinds of reasons; docs/explanations.md defines them.
MeasuredKind = Literal["fine_detail", "noise", "spectrum", "edges", "texture", "colour", "repetition", "compression"]
SeenKind = Literal["anatomy", "text", "geometry", "light", "reflection", "background", "physics"]
EditKind = Literal["operation", "place"]
ReasonKind = MeasuredKind | SeenKind | EditKind
REASON_KINDS: tuple[ReasonKind, ...] = (*get_args(MeasuredKind), *get_args(SeenKind), *get_args(EditKind))
ReasonSource = Literal["measured", "edit", "teacher", "imported"]
REASON_SOURCES: tuple[ReasonSource, ...] = get_args(ReasonSource)
TextsLayout = Literal["conversations", "loki", "synthscars", "x_aigd", "plain"]  # of imported texts

# Names of the labels in folders, columns and classes of datasets, in the form of `_plain`; the package's only list.
_NAMES: dict[Label, str] = {
    "real": "real 0_real nature natural photo photos photograph photographs human authentic genuine original pristine",
    "generated": "generated fake 1_fake ai ai_generated aigc synthetic artificial artificially_generated deepfake",
    "edited": "edited 2_edited tampered manipulated altered forged doctored",
}
LABEL_NAMES: dict[str, Label] = {name: label for label, names in _NAMES.items() for name in names.split()}
# In a name of several words these describe the content: an "ai_human" is generated.
DEPICTED = {"photo", "photos", "photograph", "photographs", "human", "nature", "natural", "original"}
# Values of a generator column for photos. "camera" alone names an object in many datasets' folders.
_NO_GENERATOR = {"", "none", "null", "nan", "n_a", "camera"}


def label_named(name: str) -> Label | None:
    """The label for the name of a folder, a column's value or a class; None if the name is unknown."""
    return LABEL_NAMES.get(_plain(name))


def label_of_twin(kind: str) -> Label:
    """The label of a twin of this kind."""
    return "edited" if kind in EDITED_KINDS else "generated"


def instruction_of(row: Mapping[str, Any]) -> str:
    """The instruction of an edit by instruction, from its row of a pair dataset; empty for other rows."""
    return str(row.get("prompt") or "") if row.get("kind") == "instruct" else ""


def is_real_name(generator: str | None) -> bool:
    """Whether a generator's name says that the image is a photo: "natural", "Camera", an empty field."""
    name = re.sub(r"^(?:an?|the)_", "", _plain(generator or ""))
    return name in _NO_GENERATOR or LABEL_NAMES.get(name) == "real"


def _plain(name: str) -> str:
    """Lower case with "_" between words: "AI-generated" is ai_generated."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


@dataclass(frozen=True)
class Reject:
    """A rejected item: `reason` is one of a few words, `detail` the particulars."""

    id: str
    stage: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Reason:
    """One sentence that supports a label of its image, and its evidence.

    `box` (x0, y0, x1, y1, the last two exclusive) is its place, None if there is none.
    A measured reason has the measure's `value`, its `percentile` among photos of its size (0 to 100) and the name of
    the measure in `checked_by`; other sources name their check there. `margin` is the log-likelihood ratio in nats for
    the label that it supports.
    """

    text: str
    kind: ReasonKind
    supports: Label
    source: ReasonSource
    box: tuple[int, int, int, int] | None = None
    value: float | None = None
    percentile: float | None = None
    margin: float | None = None
    checked_by: str = ""

    def to_row(self) -> dict[str, Any]:
        """As `columns.REASON_FEATURES`."""
        return {**asdict(self), "box": list(self.box) if self.box else None}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Reason:
        return cls(**{**row, "box": tuple(row["box"]) if row["box"] else None})

    def mirrored(self, width: int) -> Reason:
        """The reason for the mirrored image, `width` pixels wide: left and right are swapped in text and box."""
        text = re.sub(r"\b(left|right)\b", lambda found: {"left": "right", "right": "left"}[found[0]], self.text)
        box = self.box and (width - self.box[2], self.box[1], width - self.box[0], self.box[3])
        return replace(self, text=text, box=box)


@dataclass(frozen=True)
class Subject:
    """The known facts about one image. `edit` is a row's `edit` column; `size` is (width, height) in pixels.

    `reasons` are those of the row, the strongest first; None if the dataset has no such column.
    """

    label: Label
    kind: TwinKind | None = None
    generator: str = ""
    caption: str = ""
    edit: Mapping[str, Any] | None = None
    size: tuple[int, int] | None = None
    reasons: tuple[Reason, ...] | None = None
    instruction: str = ""  # that an editing model followed

    def mirrored(self) -> Subject:
        """The same of the mirrored image."""
        if not self.reasons or not self.size:
            return self
        return replace(self, reasons=tuple(reason.mirrored(self.size[0]) for reason in self.reasons))

    @property
    def place(self) -> str:
        """The place of a planted edit; empty if unknown."""
        box = self.edit.get("box") if self.edit else None
        return place_of(box, self.size) if box and self.size else ""

    @property
    def operation(self) -> str:
        """The wording of a planted edit's operation; empty if unknown."""
        return str(self.edit.get("operation") or "").replace("_", " ") if self.edit else ""


@dataclass(frozen=True)
class Question:
    """A training question about one image, and its target answer."""

    kind: str  # a name of `questions.kind.KINDS`
    question: str
    answer: str
    polarity: Polarity | None = None  # only for questions whose answer is a verdict
    # Earlier questions and answers of a conversation.
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Source:
    """One image of the dataset from which a benchmark is built; `ref` opens it."""

    ref: str
    label: Label
    generator: str
    group: str
    kind: TwinKind | None = None  # of a twin
    caption: str = ""
    object_class: str = ""
    edit: Mapping[str, Any] | None = None
    size: tuple[int, int] | None = None

    @property
    def subject(self) -> Subject:
        return Subject(self.label, self.kind, self.generator, self.caption, self.edit, self.size)

    @property
    def edit_words(self) -> dict[str, str] | None:
        """The operation and place of a planted edit, in words; None if either is unknown."""
        known = self.subject
        return {"operation": known.operation, "place": known.place} if known.operation and known.place else None

    @property
    def facts(self) -> dict[str, Any]:
        """The metadata of an item about this image."""
        generator = self.generator or ("real" if self.label == "real" else "unknown")
        about = {"label": self.label, "generator": generator, "group": self.group}
        known = {"twin_kind": self.kind, "object_class": self.object_class, "edit": self.edit_words}
        return about | {name: value for name, value in known.items() if value}

    def changed(self, operation: str) -> str:
        """The entry in an item's `images` after an operation on the image; "" for none."""
        return f"{self.ref}#{operation}" if operation else self.ref


Pair = tuple[Source, Source]  # a photo and its generated or edited twin


@dataclass(frozen=True)
class Item:
    """One benchmark item; `DESIGN.md` (Benchmark) gives the JSON."""

    id: str
    kind: str  # a name of `questions.kind.KINDS`
    images: tuple[str, ...]  # paths, or the references of `Source` while a benchmark is built
    question: str
    ground_truth: str
    options: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The unit of resampling: the source photo if known, else the item's own images."""
        return str(self.metadata.get("group") or "|".join(self.images))


@dataclass(frozen=True)
class Result:
    """One answered prompt: a line of `results.jsonl`, keyed by (id, scoring, polarity, rotation).

    `options` are the answers to choose from, in the order shown: texts of a multiple choice (`ground_truth`, `answer`
    and `parsed` are then letters), else the candidate answers themselves. `logprobs` (natural, summed over `n_tokens`
    tokens, end of text included) stand in the same order.

    All of these come from the language model. If its run has other witnesses, `witness_odds` are their log-odds of
    "generated" in nats, and `fused_odds` are fused from all, with the language model's from this prompt.
    """

    id: str
    kind: str
    scoring: Literal["logprob", "generate"]
    polarity: str
    rotation: int
    question: str
    options: list[str]
    ground_truth: str
    answer: str
    parsed: str | None
    correct: bool
    p_fake: float | None
    logprobs: list[float] | None
    n_tokens: list[int] | None
    is_fake: bool | None  # the truth about the image; None if the question is not about it
    group: str
    generator: str
    object_class: str = ""
    topic: Topic = "generation"  # edits have separate questions and figures
    instructed: bool = False  # the edit in question follows an instruction
    witness_odds: dict[str, float] | None = None
    fused_odds: float | None = None
    refused: str = ""  # why the model cannot read the image; there is no answer then

    @property
    def key(self) -> tuple[str, str, str, int]:
        return (self.id, self.scoring, self.polarity, self.rotation)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
