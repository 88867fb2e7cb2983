"""Audit a dataset: probes of its wrapping find leaks of the label, probes of its content give content baselines.

    audit = audit_dataset("data/pairs")      # vlm-detect audit data/pairs [--json]
    audit.findings                           # one sentence per leak, worst first; empty for an aligned set
    audit.floors                             # content baselines: never leaks, a detector has to beat them

Each probe is a small classifier, cross-validated over source photos, on one kind of feature (`measures.py`). Its
interval is corrected for the number of probes (Bonferroni): one leak-free set in twenty has any interval that excludes
0.5. A wrapping probe whose interval is entirely above 0.55 is a leak. Real images are compared with generated ones, and
edited with unedited ones by separate probes. At most `max_images` are read: the result says how many.

An audit cannot find a leak that is only visible with knowledge of the content.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from vlm_detect.config import write_json
from vlm_detect.data.audit.measures import CONTENT, WRAPPING, measure
from vlm_detect.data.audit.probe import cross_validate
from vlm_detect.data.audit.samples import Sample, Samples, read_samples
from vlm_detect.data.audit.words import baseline_sentence, leak_sentence
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected
from vlm_detect.machine import cpu_cores
from vlm_detect.progress import progress
from vlm_detect.records import Label
from vlm_detect.stats.areas import auc, auc_interval, make_folds

MAX_IMAGES = 2000
FAULT = 0.55  # a wrapping probe with an interval above this is a leak
_ALPHA = 0.05
_CARD_HEAD = "## Audit"


class TooLittle(UserError):
    """A dataset with too few images, or with only one class."""


@dataclass(frozen=True)
class Probe:
    """`ci95` is corrected for the number of probes; only probes of kind "wrapping" can be leaks."""

    name: str
    auc: float
    ci95: tuple[float, float]
    n: int
    groups: int
    kind: str  # wrapping | content


@dataclass(frozen=True)
class Audit:
    """`probes` in order of descending AUC; `images` of the set's `total` were measured, `unread` could not be read."""

    probes: list[Probe]
    findings: list[str]
    floors: list[str]
    images: int
    total: int
    unread: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.summary}."]
        lines += [f"  leak: {sentence}." for sentence in self.findings] or ["  No leak of the wrapping was found."]
        lines += [f"  baseline: {sentence}." for sentence in self.floors]
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        part = f"{self.images} images" if self.images == self.total else f"{self.images} of {self.total} images"
        unread = ", ".join(f"{count} {label}" for label, count in self.unread.items())
        return f"Audit of {part}, {len(self.probes)} probes" + (f"; could not be read: {unread}" if unread else "")


@dataclass(frozen=True)
class _Comparison:
    """Class 1 against class 0; `prefix` precedes the names of its probes."""

    prefix: str
    ones: str
    zeros: str
    places: list[int]
    y: np.ndarray


def audit_dataset(spec: str | Path, *, max_images: int = MAX_IMAGES) -> Audit:
    """Audit a pair or image dataset, a folder of class folders, or a Hub dataset; raises `UserError` for anything
    else."""
    read = read_samples(spec, max_images)
    samples, facts, unread = _measure(read)
    comparisons = _comparisons(samples)
    if not comparisons:
        counts = ", ".join(f"{count} {label}" for label, count in Counter(s.label for s in samples).items())
        raise TooLittle(f"{spec}: nothing to compare ({counts or 'no images'}); an audit needs real and other images")
    judged = []
    for comparison in comparisons:
        groups = np.unique([samples[i].group for i in comparison.places], return_inverse=True)[1]
        folds = make_folds(comparison.y, groups)
        if not folds:
            continue
        for name in (*WRAPPING, *CONTENT):
            places = [j for j, i in enumerate(comparison.places) if name in facts[i]]
            if name == "tables" and places:  # JPEG files only
                y = comparison.y[places]
                probe_folds = make_folds(y, groups[places]) if 0 < y.sum() < len(y) else []
            else:
                probe_folds = folds if len(places) == len(comparison.places) else []
            if probe_folds:
                values = [facts[comparison.places[j]][name] for j in places]
                y = comparison.y[places]
                scores = cross_validate(values, y, probe_folds)
                judged.append((comparison, name, values, y, groups[places], scores))
    if not judged:
        raise TooLittle(f"{spec}: a class has fewer than two photos; an audit needs at least two, preferably fifty")
    probes, sentences = [], []
    for comparison, name, values, y, groups, scores in judged:
        kind = "wrapping" if name in WRAPPING else "content"
        area = auc(scores, y)
        low, high = auc_interval(scores, y, groups, _ALPHA / len(judged))
        ci95 = (round(low, 4), round(high, 4))
        probe = Probe(comparison.prefix + name, round(area, 4), ci95, len(y), len(set(groups.tolist())), kind)
        score = f"AUC {area:.2f} ({low:.2f} to {high:.2f})"
        if kind == "content":
            sentence = baseline_sentence(probe.name, score)
        elif low > FAULT:
            sentence = leak_sentence(name, values, y, comparison.ones, comparison.zeros, score)
        else:
            sentence = ""
        probes.append(probe)
        sentences.append(sentence)
    order = sorted(range(len(probes)), key=lambda i: (-probes[i].auc, probes[i].name))
    return Audit(
        probes=[probes[i] for i in order],
        findings=[sentences[i] for i in order if sentences[i] and probes[i].kind == "wrapping"],
        floors=[sentences[i] for i in order if sentences[i] and probes[i].kind == "content"],
        images=len(samples),
        total=read.total,
        unread=dict(sorted(unread.items())),
    )


def write_audit(folder: Path, *, max_images: int = MAX_IMAGES) -> Audit | None:
    """Audit a dataset folder, write `audit.json` into it and the result into its card.

    None if there is too little to compare: a dataset may have few photos or only one class.
    """
    try:
        audit = audit_dataset(folder, max_images=max_images)
    except TooLittle:
        return None
    _record(folder, audit)
    return audit


def read_audit(folder: Path) -> Audit | None:
    """The saved audit of a dataset folder."""
    path = folder / "audit.json"
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    probes = [Probe(**{**probe, "ci95": tuple(probe["ci95"])}) for probe in values.pop("probes")]
    return Audit(probes=probes, **values)


def _record(folder: Path, audit: Audit) -> None:
    write_json(folder / "audit.json", audit.to_json())
    card = folder / "README.md"
    if card.is_file():
        text, _, before = card.read_text(encoding="utf-8").partition(_CARD_HEAD)
        _, head, others = before.partition("\n## ")  # sections after the audit's are kept
        text = f"{text.rstrip()}\n\n{_CARD_HEAD}\n\n{_card_section(audit)}\n{head}{others}"
        card.write_text(text, encoding="utf-8")


def _card_section(audit: Audit) -> str:
    leaks = [f"- leak: {sentence}" for sentence in audit.findings] or ["- no leak of the wrapping was found"]
    floors = [f"- baseline: {sentence}" for sentence in audit.floors]
    return "\n".join(
        [f"{audit.summary} (`audit.json`), areas with intervals corrected for their number.\n", *leaks, *floors]
    )


def _measure(read: Samples) -> tuple[list[Sample], list[dict[str, Any]], Counter[str]]:
    """The decodable samples, their features by probe, and the number of undecodable ones by label."""

    # If some images have a name or a caption, a missing one is informative, too.
    are_named, are_captioned = (any(getattr(sample, fact) for sample in read.samples) for fact in ("name", "caption"))

    def facts(sample: Sample) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = dict(measure(sample.data))
        except ImageRejected:
            return None
        if are_named:
            found["extension"] = {"extension": PurePath(sample.name).suffix.lower()}
        if are_captioned:
            found["caption"] = sample.caption
        if sample.scale is not None:  # downscaling leaves only traces of content; upscaling leaves no fine detail
            found["scale"] = {"enlarged": max(1.0, round(sample.scale, 2))}
        return found

    unread = read.unread.copy()
    kept, measured = [], []
    with ThreadPoolExecutor(cpu_cores()) as pool:
        bar = progress(pool.map(facts, read.samples), "audit", total=len(read.samples), unit="img")
        for sample, found in zip(read.samples, bar, strict=True):
            if found is None:
                unread[sample.label] += 1
            else:
                kept.append(sample)
                measured.append(found)
    return kept, measured, unread


def _comparisons(samples: Sequence[Sample]) -> list[_Comparison]:
    """Real against generated; edits, and edits by instruction, against unedited images: of the same photos, or all."""
    by_label: dict[Label, list[int]] = {}
    for place, sample in enumerate(samples):
        by_label.setdefault(sample.label, []).append(place)
    real, generated, edited = (by_label.get(label, []) for label in ("real", "generated", "edited"))
    found = []
    if real and generated:
        found.append(_comparison("", "generated", "real", generated, real))
    local = [i for i in edited if samples[i].kind != "instruct"]
    instructed = [i for i in edited if samples[i].kind == "instruct"]
    for name, some in (("edited", local), ("instructed", instructed)):
        if some and (real or generated):
            photos = {samples[i].group for i in some}
            untouched = [i for i in (*real, *generated) if samples[i].group in photos] or [*real, *generated]
            found.append(_comparison(f"{name}: " if found else "", name, "unedited", some, untouched))
    return found


def _comparison(prefix: str, ones: str, zeros: str, of_one: list[int], of_zero: list[int]) -> _Comparison:
    y = np.array([1.0] * len(of_one) + [0.0] * len(of_zero))
    return _Comparison(prefix, ones, zeros, [*of_one, *of_zero], y)


def print_audit(spec: str, *, as_json: bool, max_images: int) -> None:
    """`vlm-detect audit`: print the audit, and save it if `spec` is a dataset folder written by this package."""
    audit = audit_dataset(spec, max_images=max_images)
    if (Path(spec) / "run.json").is_file():
        try:
            _record(Path(spec), audit)
        except OSError as error:
            print(f"{spec}: the audit cannot be saved there ({error.strerror})", file=sys.stderr)
    print(json.dumps(audit.to_json(), indent=2) if as_json else audit)
