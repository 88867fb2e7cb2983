"""A conversation about an image: what was asked and answered, and the verdict above it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector, Picture, Verdict, open_picture
from vlm_detect.infer.explanation import CheckedReason
from vlm_detect.infer.verdict import contradicts


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str
    stopped: bool = False


class Session:
    """One image at a time; its verdict is given when it is first asked for."""

    def __init__(self, detector: Detector, image: str) -> None:
        self.detector = detector
        self.open(image)

    def open(self, image: str) -> None:
        """Go over to another image; `UserError`, and the old one stays, where it cannot be read."""
        self._picture = open_picture(image)
        self.name = image
        self._verdict: Verdict | None = None
        self.explanation = ""
        self.turns: list[Turn] = []

    @property
    def picture(self) -> Picture:
        return self._picture

    @property
    def image(self) -> Image.Image:
        return self._picture.image

    @property
    def verdict(self) -> Verdict:
        if self._verdict is None:
            self._verdict = self.detector(self._picture)
        return self._verdict

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Those of the verdict, and that of its explanation once there is one."""
        against = contradicts(self.verdict.label, self.explanation)
        return (*self.verdict.contradictions, *(["Its explanation states the other verdict"] if against else []))

    def explain(self) -> Iterator[str]:
        """The reasons under the verdict, piece by piece; what came until it was stopped is kept."""
        self.explanation = ""
        for piece in self.detector.stream_explanation(self.image, self.verdict.label):
            self.explanation += piece
            yield piece

    @property
    def reasons(self) -> tuple[CheckedReason, ...]:
        """The sentences of the explanation, each held against a measurement; empty without a run that has measures."""
        return self.verdict.check(self.explanation).reasons if self.detector.measures else ()

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece; a turn of the conversation even where it is stopped halfway."""
        answer, whole = "", False
        try:
            for piece in self.detector.stream_answer(self.image, question):
                answer += piece
                yield piece
            whole = True
        finally:
            if answer or whole:
                self.turns.append(Turn(question, answer, stopped=not whole))

    def reset(self) -> None:
        """Forget the questions and answers; image and verdict stay."""
        self.turns = []

    def save(self, path: Path) -> None:
        """The conversation as JSON (`.json`) or as text."""
        lines = [describe(self.verdict, self.name), *details(self.verdict, self.contradictions), self.explanation]
        lines += reason_lines(self.reasons)
        for turn in self.turns:
            lines += ["", f"> {turn.question}", turn.answer + (" [stopped]" if turn.stopped else "")]
        record = {
            "image": self.name,
            "verdict": self.verdict.to_json() | {"contradictions": list(self.contradictions)},
            "explanation": self.explanation,
            "reasons": [reason.to_json() for reason in self.reasons],
            "turns": [vars(turn) for turn in self.turns],
        }
        as_json = path.suffix.lower() == ".json"
        text = json.dumps(record, indent=2, ensure_ascii=False) if as_json else "\n".join(lines)
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def describe(verdict: Verdict, name: str) -> str:
    """One line: the verdict, its probability, and what stands behind it."""
    note = "calibrated on validation images" if verdict.calibrated else "not calibrated"
    return f"{name}: {verdict.label}, p_fake {verdict.p_fake:.2f} ({note}; {verdict.model}, {verdict.version})"


def details(verdict: Verdict, contradictions: tuple[str, ...]) -> list[str]:
    """What else has to be known to read the verdict: its operating point, its contradictions, what the file is like."""
    low, high = verdict.unsure_band
    band = f", unsure between {low:.2f} and {high:.2f}" if high > low else ""
    lines = [f"  generated above {verdict.threshold:.2f}{band}"]
    lines += [f"  contradiction: {sentence}" for sentence in contradictions]
    lines += [f"  the file: {note}" for note in verdict.notes]
    lines += [f"  the file says (no part of the verdict): {fact.source}, {fact.text}" for fact in verdict.provenance]
    return lines


def reason_lines(reasons: Sequence[CheckedReason]) -> list[str]:
    """One line per sentence: what measurement says of it, then the sentence."""
    return [
        f"  {reason.note}{f', for {reason.supports}' if reason.supports else ''}: {reason.text}" for reason in reasons
    ]
