"""The detector: an image in, a verdict that can be questioned out.

    from vlm_detect import Detector

    verdict = Detector("runs/moondream_lora")("photo.jpg")
    verdict.p_fake, verdict.label          # 0.93, "generated"
    verdict.explain()
    verdict.ask("What is in the picture?")

The run's own calibration gives the probability, the threshold and the "unsure" band; a model without one is taken at
its word (temperature 1, threshold 0.5), and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from .. import __version__
from ..data.decode import ImageRejected, decode_image
from ..data.questions import EXPLAIN_QUESTION
from ..errors import UserError
from ..models.registry import load_vlm
from ..train.calibration import Calibration
from .engine import Engine
from .verdict import log_odds


@dataclass(frozen=True)
class Verdict:
    """What was found about one image; `calibrated` is False where no validation set stands behind `p_fake`."""

    p_fake: float
    label: Literal["real", "generated", "unsure"]
    calibrated: bool
    threshold: float
    unsure_band: tuple[float, float]
    model: str
    version: str
    _detector: Detector = field(repr=False, compare=False)
    _image: Image.Image = field(repr=False, compare=False)

    def ask(self, question: str, max_new_tokens: int = 64) -> str:
        """The model's answer to a question about the image, which it does not read again."""
        return self._detector.ask(self._image, question, max_new_tokens)

    def explain(self, max_new_tokens: int = 64) -> str:
        """The model's reasons in its own words."""
        return self.ask(EXPLAIN_QUESTION, max_new_tokens)

    def to_json(self) -> dict[str, Any]:
        """Everything but the image."""
        names = ("p_fake", "label", "calibrated", "threshold", "unsure_band", "model", "version")
        return {name: getattr(self, name) for name in names}


class Detector:
    """Judges images by one model: a Hub id, a folder, a run directory, or `nano`."""

    def __init__(self, model: str = "auto", *, adapter: str | None = None, **load_options: Any) -> None:
        self.engine = Engine(load_vlm(model, adapter=adapter, **load_options))
        run = Path(adapter or model)
        self.name = adapter or (model if run.is_dir() else self.engine.vlm.name)
        self.calibration = Calibration.load(run)

    def __call__(self, image: Image.Image | str | Path) -> Verdict:
        return self.judge([image])[0]

    def judge(self, images: Sequence[Image.Image | str | Path]) -> list[Verdict]:
        """The verdicts on several images, which are read in batches."""
        opened = [open_image(image) for image in images]
        calibration = self.calibration
        verdicts = []
        for image, odds in zip(opened, log_odds(self.engine, opened), strict=True):
            p_fake = float(calibration.p_fake(odds))
            verdicts.append(
                Verdict(
                    p_fake=p_fake,
                    label=calibration.label(p_fake),
                    calibrated=calibration.n > 0,
                    threshold=calibration.threshold,
                    unsure_band=(calibration.unsure_low, calibration.unsure_high),
                    model=self.name,
                    version=__version__,
                    _detector=self,
                    _image=image,
                )
            )
        return verdicts

    def ask(self, image: Image.Image | str | Path, question: str, max_new_tokens: int = 64) -> str:
        """The model's answer to `question` about `image`."""
        if not question.strip():
            raise UserError("the question is empty: ask something, for example 'Is this image AI-generated?'")
        return self.engine.generate([open_image(image)], [[question]], max_new_tokens)[0][0]


def open_image(image: Image.Image | str | Path) -> Image.Image:
    """A decoded image as it is, or a file decoded within bounds; UserError where it cannot be read."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not Path(image).is_file():
        raise UserError(f"{image}: no such file")
    try:
        return decode_image(Path(image)).image
    except ImageRejected as error:
        raise UserError(f"{image}: {error}") from error
