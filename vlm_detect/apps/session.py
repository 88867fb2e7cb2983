"""A conversation about an image: questions, answers, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector, Verdict
from vlm_detect.infer.explanation import CheckedReason, Explanation
from vlm_detect.infer.picture import Picture, open_picture
from vlm_detect.printable import printable

_BOXES_SIDE = 288  # pixels: a ninth of it has room for a number


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str
    stopped: bool = False


class Session:
    """Holds one image at a time; its verdict is computed on first use.

    With `only_confirmed` nothing of an explanation is shown that no measurement confirms; `UserError` where none can.
    """

    def __init__(self, detector: Detector, image: str, *, only_confirmed: bool = False) -> None:
        if only_confirmed:
            detector.require_measures()
        self.detector = detector
        self.only_confirmed = only_confirmed
        self.open(image)

    def open(self, image: str) -> None:
        """Switch to another image; `UserError` where it cannot be read, and the old image stays."""
        self._picture = open_picture(image)
        self.name = image
        self._verdict: Verdict | None = None
        self.explanation = Explanation("", ())
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
        """The contradictions of the verdict, and of its explanation once there is one."""
        return self.verdict.contradictions_with(self.explanation)

    def explain(self) -> Iterator[str]:
        """Stream the reasons for the verdict; what was generated before a stop is kept, and checked.

        With `only_confirmed` nothing is streamed, because the remaining sentences are known only at the end.
        """
        text = ""
        try:
            for piece in self.detector.stream_explanation(self.image, self.verdict.label):
                text += piece
                if not self.only_confirmed:
                    yield piece
        finally:
            found = self.verdict.check(text)
            self.explanation = found.only_confirmed() if self.only_confirmed else found

    def boxes(self) -> Image.Image:
        """The image with the places that the reasons name, large enough for their numbers."""
        return self.explanation.draw(self.image, min_side=_BOXES_SIDE)

    def ask(self, question: str) -> Iterator[str]:
        """Stream the answer; it becomes a turn of the conversation even if stopped halfway."""
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
        """Clear questions and answers; image and verdict are kept."""
        self.turns = []

    def save(self, path: Path) -> None:
        """Save the conversation as JSON (`.json`) or as text."""
        lines = [describe(self.verdict, self.name), *details(self.verdict, self.contradictions), self.explanation.text]
        lines += reason_lines(self.explanation.reasons)
        for turn in self.turns:
            lines += ["", f"> {turn.question}", turn.answer + (" [stopped]" if turn.stopped else "")]
        record = {
            "image": self.name,
            "verdict": self.verdict.to_json() | {"contradictions": list(self.contradictions)},
            **self.explanation.to_json(),
            "turns": [vars(turn) for turn in self.turns],
        }
        as_json = path.suffix.lower() == ".json"
        text = json.dumps(record, indent=2, ensure_ascii=False) if as_json else "\n".join(lines)
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def describe(verdict: Verdict, name: str) -> str:
    """One line: the verdict, its probability, and what stands behind it; the caveat in place of a verdict."""
    name, facts = printable(name), f"{verdict.model}, {verdict.version}"
    if verdict.caveat:
        leaning = f"it leans to {verdict.label}, p_fake {verdict.p_fake:.2f}"
        return f"{name}: no verdict, {leaning}: {verdict.caveat} ({facts})"
    note = "calibrated on validation images" if verdict.calibrated else "not calibrated"  # as of a crop
    return f"{name}: {verdict.label}, p_fake {verdict.p_fake:.2f} ({note}; {facts})"


def details(verdict: Verdict, contradictions: tuple[str, ...]) -> list[str]:
    """Context of the verdict: its operating point, contradictions, and notes on the file."""
    low, high = verdict.unsure_band
    band = f", unsure between {low:.2f} and {high:.2f}" if high > low else ""
    lines = [f"  generated above {verdict.threshold:.2f}{band}"]
    lines += [f"  unsure: {verdict.why_unsure}"] if verdict.why_unsure else []
    lines += witness_lines(verdict)
    lines += [f"  contradiction: {sentence}" for sentence in contradictions]
    lines += [f"  the file: {note}" for note in verdict.notes]
    lines += [f"  metadata (not part of the verdict): {fact.source}, {fact.text}" for fact in verdict.provenance]
    return lines


def witness_lines(verdict: Verdict) -> list[str]:
    """One line a witness, where there are several: what it says, how surely, and what that counts."""
    if len(verdict.witnesses) < 2:
        return []
    lines = []
    for name, said in verdict.witnesses.items():
        against = ", against the verdict" if name in verdict.dissent else ""
        shown = f"{said.says} ({said.log_odds:+.2f} nats, weight {said.weight:.2f}{against})"
        lines.append(f"  {name.replace('_', ' ')}: {shown}")
    if verdict.novelty_p is not None:
        lines.append(f"  as strange as this: {100 * verdict.novelty_p:.2g} % of the images that it was calibrated on")
    return lines


def reason_lines(reasons: Sequence[CheckedReason]) -> list[str]:
    """One line per sentence, numbered as its box: the sentence, its status by measurement, and the label that it
    supports."""
    lines = []
    for number, reason in enumerate(reasons, start=1):
        side = f", supports {reason.supports}" if reason.supports else ""
        text = "".join(c for c in reason.text if c.isprintable())  # a model's answer must not steer the terminal
        lines.append(f"  {number}. {text} [{reason.note}{side}]")
    return lines
