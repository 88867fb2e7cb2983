"""Score free explanations without a judge model: by their words, against the known edits and labels.

    rows = read_explanations(items, results)      # with a dataset and a calibration also checked against measurements
    explanations(rows)                            # {"n": 200, "verdict_accuracy": {...}, "measured": {...}, ...}

The answers to open items are parsed for a verdict, for faults that they claim to see, and, for planted edits, for the
operation and the place. Claims are found by the word lists below, without negated ones ("no distortion"): claims in
other words are missed, equally for every model, and nothing is credited that was not stated. An answer that names
several places or operations counts as naming none.

ROUGE-L against references is computed in addition if the package rouge-score is installed (the extra `eval`).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_detect.benchmark.checked import Checked, check
from vlm_detect.benchmark.dataset_images import DatasetImages
from vlm_detect.benchmark.item_scores import item_scores
from vlm_detect.benchmark.summary import rounded
from vlm_detect.benchmark.truth import ratio, truth_figures
from vlm_detect.images.edits import EDITS
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.places import PLACE_PATTERNS
from vlm_detect.progress import progress
from vlm_detect.questions.kind import KINDS
from vlm_detect.questions.prompts import topic_of
from vlm_detect.questions.read import parse_explanation, sentences
from vlm_detect.records import Item, Result
from vlm_detect.stats.intervals import RESAMPLES

# Faults attributed to generated images. "Blurry" is not included: photos can be blurry, too.
_FAULTS = (
    r"arti?e?facts?",
    r"anomal(?:y|ies|ous)",
    r"distort\w*",
    r"deform\w*|malformed|misshapen",
    r"warp(?:ed|ing|s)?",
    r"melt(?:ed|ing)",
    r"garbled|gibberish|illegible",
    r"inconsisten\w*|mismatched",
    r"implausible|impossible|unnatural(?:ly)?|unrealistic(?:ally)?",
    r"(?:extra|additional|missing|fused|too many|six) (?:fingers?|limbs?|hands?|arms?|legs?|teeth|eyes?)",
    r"(?:overly|too|unusually|excessively) (?:smooth|perfect|symmetrical|sharp|uniform)",
    r"plastic-?(?:like|looking)|waxy",
    r"glitch\w*|flaws?|defects?",
)
_NOT = re.compile(r"\b(?:no|not|never|nothing|none|without|free of|free from|lacks?|absence of|\w+n't)\b")
_CLAUSE = re.compile(r"[,;:]|\b(?:but|although|however|while)\b")


@dataclass(frozen=True)
class Explained:
    """One free answer and its claims; `verdict` (generated, or altered) is None where it is unclear."""

    item: Item
    truth: bool | None
    verdict: bool | None
    scored: bool | None  # the same model's verdict on the same image by probability
    faults: int
    contradicts_itself: bool
    answer: str
    checked: Checked | None = None  # its sentences against its image's measurements

    @property
    def contradicts(self) -> bool:
        """Whether its words, or what it says of measures, speak against its own verdict."""
        if self.contradicts_itself or self.checked is None or topic_of(self.item) == "edit":
            return self.contradicts_itself
        return self.checked.speaks_against(self.verdict)

    @property
    def false_faults(self) -> int:
        """Of a photo: faults that it claims to see by words that nothing checks, or against the measurements."""
        if self.checked is None:
            return self.faults
        return claimed_faults(" ".join(one.text for one in self.checked.unchecked)) + self.checked.false_faults

    def to_json(self) -> dict[str, Any]:
        """A line of `explanations.jsonl`."""
        return {
            "id": self.item.id,
            "label": self.item.metadata.get("label"),
            "question": self.item.question,
            "answer": self.answer,
            "verdict": self.verdict,
            "contradicts": self.contradicts,
            "false_faults": self.false_faults if self.truth is False else None,
            "reasons": [reason.to_json() for reason in self.checked.reasons] if self.checked else None,
        }


def explanations(rows: Sequence[Explained], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """Every figure on explanations, with intervals over groups; None where there are none.

    `seed` chooses the other images that an explanation is checked against.
    """
    if not rows:
        return None
    known = [row for row in rows if row.truth is not None]
    scored = [row for row in rows if row.scored is not None]
    about_images = [row for row in known if topic_of(row.item) == "generation"]
    edits = [row for row in rows if row.item.metadata.get("label") == "edited" and _has_named_edit(row.item)]
    found: dict[str, Any] = {
        "n": len(rows),
        "unparsed": sum(row.verdict is None for row in rows),
        "verdict_accuracy": _share(known, [row.verdict == row.truth for row in known], resamples),
        # An unparsed verdict agrees with nothing.
        "agreement": _share(scored, [row.verdict == row.scored for row in scored], resamples),
        "contradictions": _share(rows, [row.contradicts for row in rows], resamples),
    }
    for name, side in (("faults_on_photos", False), ("faults_on_generated", True)):
        some = [row for row in about_images if row.truth == side]
        shares = _share(some, [row.faults > 0 for row in some], resamples)
        found[name] = shares and {**shares, "mean": float(np.mean([row.faults for row in some]))}
    if edits:
        planted_edits = [row.item.metadata["edit"] for row in edits]
        operation = [
            names(row.answer, edit["operation"], operation_words())
            for row, edit in zip(edits, planted_edits, strict=True)
        ]
        place = [
            names(row.answer, edit["place"], PLACE_PATTERNS) for row, edit in zip(edits, planted_edits, strict=True)
        ]
        found["edits"] = {
            "operation_named": _share(edits, operation, resamples),
            "place_named": _share(edits, place, resamples),
            "both_named": _share(edits, np.logical_and(operation, place).tolist(), resamples),
        }
    checked = [row.checked for row in rows if row.checked and row.checked.calibration.photos]
    if measured := truth_figures(checked, seed=seed, resamples=resamples):
        photos = [row for row in about_images if row.checked and row.truth is False]
        measured["false_faults_on_photos"] = _share(photos, [row.false_faults > 0 for row in photos], resamples)
        found["measured"] = measured
    found["rouge_l"] = rouge_l([(row.item.ground_truth, row.answer) for row in rows])
    return rounded(found)


def claimed_faults(text: str) -> int:
    """The number of distinct faults that `text` claims."""
    return sum(any(_claims(text, pattern)) for pattern in _FAULTS)


def operation_words() -> dict[str, str]:
    """{edit in words: pattern of its mention in an answer}."""
    return {one.spoken: one.words for one in EDITS.values()}


def names(text: str, truth: str, words: Mapping[str, str]) -> bool:
    """Whether `text` names `truth` and nothing else of its kind; a truth without patterns is matched by its name."""
    patterns = {**words, truth: words.get(truth, re.escape(truth))}
    return {name for name, pattern in patterns.items() if any(_claims(text, pattern))} == {truth}


def contradicts_itself(text: str, verdict: bool | None, topic: str, faults: int) -> bool:
    """Whether the reasons contradict the verdict: a real photo with faults, or a sentence with the other verdict."""
    if verdict is None:
        return False
    later = (parse_explanation(sentence, topic) for sentence in sentences(text)[1:])  # type: ignore[arg-type]
    return (not verdict and faults > 0) or any(state is not None and state != verdict for state in later)


def rouge_l(pairs: Iterable[tuple[str, str]]) -> float | None:
    """Mean ROUGE-L F1 of (reference, answer); None without references longer than one word, or without the package."""
    known = [(reference, answer) for reference, answer in pairs if len(reference.split()) > 1]
    if not known or importlib.util.find_spec("rouge_score") is None:
        return None
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return float(np.mean([scorer.score(reference, answer)["rougeL"].fmeasure for reference, answer in known]))


def _has_named_edit(item: Item) -> bool:
    """Whether the item has its edit's operation and place in words."""
    edit = item.metadata.get("edit")
    return isinstance(edit, Mapping) and all(isinstance(edit.get(name), str) for name in ("operation", "place"))


def read_explanations(
    items: Sequence[Item],
    results: Sequence[Result],
    *,
    dataset: DatasetImages | None = None,
    calibration: MeasureCalibration | None = None,
) -> list[Explained]:
    """The free answers to open items; of images of `dataset` sentence by sentence, checked by `calibration`."""
    by_id = {item.id: item for item in items if KINDS[item.kind].is_open}
    scores = {score.id: score for score in item_scores([r for r in results if KINDS[r.kind].is_open], "logprob")}
    answers = [result for result in results if result.scoring == "generate" and result.id in by_id]
    calibration = calibration or MeasureCalibration()
    rows = []
    for result in progress(answers, "measured explanations", unit="img"):
        item, score = by_id[result.id], scores.get(result.id)
        verdict = parse_explanation(result.answer, result.topic)
        truth = item.metadata.get("label") == "edited" if result.topic == "edit" else result.is_fake
        faults = claimed_faults(result.answer)
        rows.append(
            Explained(
                item=item,
                truth=truth,
                verdict=verdict,
                scored=score.said_fake if score else None,
                faults=faults,
                contradicts_itself=contradicts_itself(result.answer, verdict, result.topic, faults),
                answer=result.answer,
                checked=check(item, result.answer, dataset.measured(item.images[0], calibration), calibration)
                if dataset
                else None,
            )
        )
    return rows


def _claims(text: str, pattern: str) -> Iterable[bool]:
    """For every clause whether it claims `pattern`: contains it, with no negation before it."""
    word = re.compile(rf"\b(?:{pattern})\b")
    for sentence in sentences(text.lower()):
        for clause in _CLAUSE.split(sentence):
            match = word.search(clause)
            yield bool(match and not _NOT.search(clause[: match.start()]))


def _share(rows: Sequence[Explained], values: Sequence[bool], resamples: int) -> dict[str, Any] | None:
    """The share of the rows whose value is true; None for no rows."""
    if not rows:
        return None
    sums = np.stack([np.asarray(values, float), np.ones(len(rows))], axis=1)
    return ratio([row.item.group for row in rows], sums, resamples)
