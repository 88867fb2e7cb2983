"""The detector: from an image to a verdict that can explain itself and answer questions.

    from vlm_detect import Detector

    verdict = Detector("runs/moondream_lora")("photo.jpg")
    verdict.p_fake, verdict.label          # 0.93, "generated"
    verdict.explain()
    for reason in verdict.explanation().reasons:     # of many: detector.explanations(verdicts)
        print(reason.text, reason.note)    # confirmed, contradicted or unchecked by measurement
    verdict.ask("What is in the picture?")
    verdict.map().overlay(verdict.image).save("where.png")
    Detector("runs/moondream_lora")(["a.jpg", "b.jpg"])       # a list of verdicts
    for box in verdict.detect("hand"):     # moondream2 only; the crop gets its own verdict
        print(box, verdict.look_at(box).p_fake)
    verdict.provenance                     # what the file says of itself; never part of p_fake
    verdict.witnesses["head"].log_odds     # what each witness says, where the run has several
    verdict.why_unsure, verdict.novelty_p

The run's own calibration gives the probability, the threshold and the "unsure" band; a model without one is taken at
its word (temperature 1, threshold 0.5), and the verdict says so. Of a run with a fusion the verdict is that of all of
its witnesses together, and so is what it is explained as.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.provenance import Fact
from vlm_detect.images.views import views
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.evidence import EvidenceMap, evidence_map
from vlm_detect.infer.explanation import Explanation, check_explanation
from vlm_detect.infer.locate import MAX_OBJECTS, needs_moondream
from vlm_detect.infer.picture import Openable, Picture, open_picture
from vlm_detect.infer.reasoning import REASONING_TOKENS, ReasonedAnswer
from vlm_detect.infer.steady import why_unsteady
from vlm_detect.infer.text_stream import TextStream
from vlm_detect.infer.verdict import (
    AGAINST_VERDICT,
    BEGINNINGS,
    Label,
    Odds,
    contradictions,
    contradicts,
    in_band,
    read_odds,
)
from vlm_detect.infer.witnesses import LANGUAGE_MODEL, Witnesses, WitnessScores
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.models.base import VLM
from vlm_detect.models.regions import Box, Point
from vlm_detect.models.registry import load_vlm
from vlm_detect.questions.ask import EXPLAIN_QUESTION
from vlm_detect.records import Topic
from vlm_detect.stats.calibration import Calibration
from vlm_detect.version import __version__

ANSWER_TOKENS = 128


class Testimony(NamedTuple):
    """What one witness says: log-odds of "generated" in nats, and what each of them counts in the verdict."""

    log_odds: float
    weight: float

    @property
    def says(self) -> str:
        return "generated" if self.log_odds > 0 else "real"


@dataclass(frozen=True)
class Verdict:
    """The result for one image.

    `log_odds` are the fused ones of all `witnesses`, in nats, `odds` the language model's own; calibrated, `log_odds`
    are `p_fake`. `dissent` names the witnesses that lean against the verdict, `why_unsure` says why it is "unsure";
    `views` is how many re-encoded copies had to have the same label. `novelty_p` is the part of the images that the run
    was calibrated on that are as strange as this one; None where the run cannot say. `calibrated` is False where no
    validation set stands behind `p_fake`, and `reliable` where that set does not show that the model beats chance. The
    operating point is `threshold` and `unsure_band`, both in p_fake; `max_fpr` is the part of photos that it guarantees
    to call generated at most. `contradictions` are sentences on what the model says against itself; `provenance` is
    what the file says, which had no part in the verdict; `notes` what is odd about the file.
    """

    p_fake: float
    label: Label
    why_unsure: str | None
    log_odds: float
    calibrated: bool
    reliable: bool
    threshold: float
    unsure_band: tuple[float, float]
    max_fpr: float | None
    views: int
    odds: Odds
    witnesses: dict[str, Testimony]
    dissent: tuple[str, ...]
    novelty_p: float | None
    contradictions: tuple[str, ...]
    provenance: tuple[Fact, ...]
    notes: tuple[str, ...]
    model: str
    version: str
    caveat: str  # why the label says little, of a model without a calibration; else empty
    jpeg_quality: int | None  # of the file; None where it is no JPEG
    image: Image.Image = field(repr=False, compare=False)
    _detector: Detector = field(repr=False, compare=False)

    def ask(
        self, question: str, max_new_tokens: int = ANSWER_TOKENS, references: Sequence[Sequence[float]] = ()
    ) -> str:
        """The model's answer to a question about the image, whose prefix is reused.

        `references` are points or boxes that the question refers to, as fractions of width and height (moondream2
        only).
        """
        return self._detector.ask(self.image, question, max_new_tokens, references)

    def reason(self, question: str, max_new_tokens: int = REASONING_TOKENS) -> ReasonedAnswer:
        """The reasoning, with the places it refers to, and then the answer (moondream2 only)."""
        return self._detector.engine.reason([self.image], [[question]], max_new_tokens)[0][0]

    def detect(self, phrase: str, max_objects: int = MAX_OBJECTS) -> list[Box]:
        """The boxes of what `phrase` names, as fractions of width and height (moondream2 only)."""
        return self._detector.engine.detect([self.image], [[phrase]], max_objects)[0][0]

    def point(self, phrase: str, max_objects: int = MAX_OBJECTS) -> list[Point]:
        """A point on each object that `phrase` names, as fractions of width and height (moondream2 only)."""
        return self._detector.engine.point([self.image], [[phrase]], max_objects)[0][0]

    def look_at(self, box: Box, margin: float = 0.1) -> Verdict:
        """The verdict on the content of `box`, cropped with a margin and read at its own size.

        It is marked as not calibrated: the calibration was fitted on complete images.
        """
        crop = self.image.crop(box.pixels(*self.image.size, margin))
        return replace(self._detector(crop), calibrated=False)

    def explain(self, max_new_tokens: int = ANSWER_TOKENS) -> str:
        """The model's own reasons for this verdict; without a given verdict where it is unsure."""
        return "".join(self._detector.stream_explanation(self.image, self.label, max_new_tokens))

    def explanation(self, max_new_tokens: int = ANSWER_TOKENS, *, only_confirmed: bool = False) -> Explanation:
        """The explanation sentence by sentence, each confirmed, contradicted or unchecked by measurement.

        Where the verdict is "unsure", the measured reasons for either side follow. `UserError` for `only_confirmed`
        of a run without measures.
        """
        if only_confirmed:
            self._detector.require_measures()
        found = self.check(self.explain(max_new_tokens))
        return found.only_confirmed() if only_confirmed else found

    def check(self, text: str) -> Explanation:
        """Check each sentence of an explanation against this image's measurements."""
        found = check_explanation(
            text,
            self.image,
            self._detector.measures,
            jpeg_quality=self.jpeg_quality,
            either_side=self.label == "unsure",
        )
        return replace(found, against_verdict=contradicts(self.label, text))

    def contradictions_with(self, explanation: Explanation) -> tuple[str, ...]:
        """The verdict's `contradictions`, and that of its explanation."""
        against = [AGAINST_VERDICT] if explanation.against_verdict else []
        return (*self.contradictions, *against)

    def map(self, topic: Topic = "generation") -> EvidenceMap:
        """The evidence map: where in the image the verdict comes from."""
        return evidence_map(self._detector.engine, self.image, topic=topic)

    def to_json(self) -> dict[str, Any]:
        """All fields except the image."""
        return {
            "p_fake": self.p_fake,
            "label": self.label,
            "why_unsure": self.why_unsure,
            "calibrated": self.calibrated,
            "reliable": self.reliable,
            "threshold": self.threshold,
            "unsure_band": list(self.unsure_band),
            "max_fpr": self.max_fpr,
            "views": self.views,
            "log_odds": self.log_odds,
            "free_log_odds": self.odds.free,
            "witnesses": {name: said._asdict() for name, said in self.witnesses.items()},
            "dissent": list(self.dissent),
            "novelty_p": self.novelty_p,
            "contradictions": list(self.contradictions),
            "provenance": [vars(fact) for fact in self.provenance],
            "notes": list(self.notes),
            "model": self.model,
            "version": self.version,
            "caveat": self.caveat,
        }


class Detector:
    """Judges images by one model: a Hub id, a folder, a run directory, `nano`, or what `load_vlm` has loaded.

    `expert` is the run of a CNN in place of the one that the run's fusion names. With `views` as many re-encoded copies
    of an image (`images.views.VIEWS`) are judged too: where their labels differ from the image's own, it is "unsure".
    """

    def __init__(
        self,
        model: str | VLM = "auto",
        *,
        adapter: str | None = None,
        expert: str | None = None,
        views: int = 0,
        **load_options: Any,
    ) -> None:
        self.views = views
        if isinstance(model, VLM):
            self.engine, model = Engine(model), model.name
        else:
            self.engine = Engine(load_vlm(model, adapter=adapter, **load_options))
        run = Path(adapter or model)
        self.name = adapter or (model if run.is_dir() else self.engine.vlm.name)
        self.calibration = Calibration.load(run)
        self.measures = MeasureCalibration.load(run)
        self.witnesses = Witnesses.load(run, self.engine, expert)
        if self.witnesses.has_stand_in:
            self.calibration = self.calibration.without_guarantee()
        self._is_finetuned = any((run / name).is_file() for name in ("adapter_config.json", "run.json"))

    @property
    def caveat(self) -> str:
        """Why its verdicts say little, in a sentence without its full stop; empty of a reliable calibration."""
        if self.calibration.n > 0:
            return "" if self.calibration.reliable else f"the calibration is not reliable: {self.calibration.doubt}"
        if self._is_finetuned:
            return f"{self.name} was never calibrated: p_fake ranks images, and the label is a guess at where to cut"
        return f"{self.name} was never finetuned or calibrated to tell generated images from photos"

    @property
    def checks_nothing(self) -> str:
        """Why no sentence of its explanations is checked, without its full stop; empty of a run with measures."""
        return "" if self.measures is not None else unchecked(self.name)

    def require_measures(self) -> None:
        """`UserError` where only confirmed sentences are wanted, and none can be: an empty answer would say nothing."""
        if self.checks_nothing:
            raise only_unchecked(self.name)

    @overload
    def __call__(self, image: Openable) -> Verdict: ...
    @overload
    def __call__(self, image: list[Any] | tuple[Openable, ...]) -> list[Verdict]: ...
    def __call__(self, image: Openable | list[Any] | tuple[Openable, ...]) -> Verdict | list[Verdict]:
        """The verdict on one image; of a list or tuple of images a list of verdicts, as `judge`."""
        if isinstance(image, list | tuple):
            return self.judge(image)
        return self.judge([image])[0]

    def judge(self, images: Sequence[Openable]) -> list[Verdict]:
        """The verdicts on several images, computed in batches."""
        pictures = [open_picture(image) for image in images]
        for number, picture in enumerate(pictures):
            if refusal := self.refusal(picture):
                which = f"image {number + 1} of {len(pictures)}: " if len(pictures) > 1 else ""
                raise ImageRejected("shape", which + refusal)
        verdicts = self._judge(pictures)
        if not self.views:
            return verdicts
        copies = [copy for picture in pictures for copy in views(picture.image, self.views)]
        # By their probability alone: that a copy is unlike other images says nothing of the image.
        judged = self._judge([Picture(image) for _, image in copies])
        labels = iter([self.calibration.label(verdict.p_fake) for verdict in judged])
        names = [name for name, _ in copies[: self.views]]
        return [self._held_against(verdict, [(name, next(labels)) for name in names]) for verdict in verdicts]

    def _judge(self, pictures: Sequence[Picture]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for some in self.engine.images_at_once.batches(pictures):  # the engine keeps what a head reads
            seen = [picture.image for picture in some]
            odds = read_odds(self.engine, seen)
            verdicts += map(self._verdict, some, odds, self.witnesses.others(seen))
        return verdicts

    def _held_against(self, verdict: Verdict, copies: Sequence[tuple[str, Label]]) -> Verdict:
        """The verdict, "unsure" where it depends on the copies."""
        why = why_unsteady(verdict.label, copies)
        if why is None:
            return replace(verdict, views=len(copies))
        against = contradictions("unsure", verdict.odds)
        return replace(verdict, label="unsure", why_unsure=why, views=len(copies), contradictions=against)

    def explanations(
        self, verdicts: Sequence[Verdict], max_new_tokens: int = ANSWER_TOKENS, *, only_confirmed: bool = False
    ) -> list[Explanation]:
        """As `Verdict.explanation` of each of this detector's verdicts, written in batches."""
        if only_confirmed:
            self.require_measures()
        begun = [self.explanation_prompt(verdict.label) for verdict in verdicts]
        room = min((self.engine.room(prompt) for _, prompt in begun), default=0)
        images, prompts = [verdict.image for verdict in verdicts], [[prompt] for _, prompt in begun]
        written = self.engine.continue_prompts(images, prompts, min(max_new_tokens, room))
        texts = [f"{beginning} {rest}".strip() for (beginning, _), (rest,) in zip(begun, written, strict=True)]
        found = [verdict.check(text) for verdict, text in zip(verdicts, texts, strict=True)]
        return [one.only_confirmed() for one in found] if only_confirmed else found

    def prepare_ahead(self, pictures: Sequence[Picture]) -> None:
        """Have threads prepare pictures that will be judged soon, while the GPU computes; returns at once."""
        self.engine.prepare_ahead([picture.image for picture in pictures])

    def refusal(self, picture: Picture) -> str | None:
        """Why the model cannot read this picture; None where it can."""
        return self.engine.vlm.refusal(picture.image.size)

    def _verdict(self, picture: Picture, odds: Odds, others: WitnessScores) -> Verdict:
        calibration, fusion = self.calibration, self.witnesses.fusion
        said = {LANGUAGE_MODEL: odds.mean, **others.odds}
        fused = float(fusion.log_odds(said))
        dissent = tuple(fusion.disagreement(said))
        p_fake = float(calibration.p_fake(fused))
        label: Label = calibration.label(p_fake)
        why = self._why_unsure(label, fused, dissent, others.novelty_p)
        label = "unsure" if why else label
        low, high = calibration.unsure_low, calibration.unsure_high
        return Verdict(
            p_fake=p_fake,
            label=label,
            why_unsure="; ".join(why) or None,
            log_odds=fused,
            calibrated=calibration.n > 0,
            reliable=calibration.reliable,
            threshold=calibration.threshold,
            unsure_band=(low, high),
            max_fpr=calibration.max_fpr,
            views=0,
            odds=odds,
            witnesses={one.name: Testimony(said[one.name], one.weight) for one in fusion.witnesses},
            dissent=dissent,
            novelty_p=others.novelty_p,
            contradictions=contradictions(label, odds),
            provenance=picture.provenance,
            notes=picture.notes,
            model=self.name,
            version=__version__,
            caveat=self.caveat,
            jpeg_quality=picture.jpeg_quality,
            image=picture.image,
            _detector=self,
        )

    def _why_unsure(self, label: Label, fused: float, dissent: Sequence[str], novelty_p: float | None) -> list[str]:
        """What speaks against a label; nothing where it stands."""
        fusion, calibration, found = self.witnesses.fusion, self.calibration, []
        if label == "unsure":
            found.append(in_band(calibration.unsure_low, calibration.unsure_high))
        elif dissent and abs(float(calibration.margin(fused))) < fusion.disputed:
            against = " and ".join(name.replace("_", " ") for name in dissent)
            found.append(f"the witnesses disagree, {against} against the verdict, and too little outweighs that")
        if novelty_p is not None and novelty_p <= fusion.novelty_level:
            strange = f"{100 * novelty_p:.2g} % of those images are as strange"
            found.append(f"unlike anything that this run was calibrated on: {strange}")
        return found

    def ask(
        self,
        image: Openable | None,
        question: str,
        max_new_tokens: int = ANSWER_TOKENS,
        references: Sequence[Sequence[float]] = (),
    ) -> str:
        """The model's answer to `question` about `image`, or without one; `references` as in `Verdict.ask`."""
        opened = None if image is None else open_picture(image).image
        return "".join(self.stream_answer(opened, question, max_new_tokens, references))

    def stream_answer(
        self,
        image: Image.Image | None,
        question: str,
        max_new_tokens: int = ANSWER_TOKENS,
        references: Sequence[Sequence[float]] = (),
    ) -> Iterator[str]:
        """As `ask`, streamed."""
        yield from self._stream(image, self.question_prompt(question, references), max_new_tokens)

    def stream_explanation(
        self, image: Image.Image, label: Label, max_new_tokens: int = ANSWER_TOKENS
    ) -> Iterator[str]:
        """The reasons for the verdict `label`, streamed."""
        beginning, prompt = self.explanation_prompt(label)
        if beginning:
            yield beginning
        for i, piece in enumerate(self._stream(image, prompt, max_new_tokens)):
            yield f" {piece}" if beginning and i == 0 else piece

    def question_prompt(self, question: str, references: Sequence[Sequence[float]] = ()) -> list[int]:
        """The prompt ids after the image for `question`; UserError where it is empty, too long, or not text."""
        if not question.strip():
            raise UserError("the question is empty: ask something, for example 'Is this image AI-generated?'")
        if any("\ud800" <= c <= "\udfff" for c in question):
            raise UserError("the question contains bytes that are not UTF-8: encode it as UTF-8")
        if references:
            return needs_moondream(self.engine.vlm, "spatial references").question_ids(question, references)
        return self.engine.vlm.question_ids(question)

    def explanation_prompt(self, label: Label) -> tuple[str, list[int]]:
        """The beginning of an explanation under `label`, and the prompt ids for the rest."""
        prompt = self.engine.vlm.question_ids(EXPLAIN_QUESTION)
        if label == "unsure":
            return "", prompt
        beginning = BEGINNINGS[label]
        return beginning, [*prompt, *self.engine.vlm.answer_ids(beginning)[:-1]]

    def _stream(self, image: Image.Image | None, prompt: list[int], max_new_tokens: int) -> Iterator[str]:
        text = TextStream(self.engine.vlm)
        room = self.engine.room(prompt, with_image=image is not None)
        for step in self.engine.stream([image], [[prompt]], min(max_new_tokens, room)):
            token = int(step[0, 0])
            if token == self.engine.vlm.eos_token_id:
                break
            if piece := text.push(token):
                yield piece
        if rest := text.finish():
            yield rest


def unchecked(name: str) -> str:
    """That no sentence of a model without measures is checked, without its full stop."""
    remedy = "train on a dataset with reasons (vlm-detect add-reasons)"
    return f"no sentence is checked: {name} has no measures.json; {remedy}"


def only_unchecked(name: str) -> UserError:
    """The error where confirmed sentences alone are wanted of such a model."""
    return UserError(f"only_confirmed: {unchecked(name)}, or leave only_confirmed out")
