"""The operating point of a scan: where "generated" begins, who chose that, and what it guarantees.

    set_operating_point(detector, threshold=None, max_fpr=0.01)
    OperatingPoint.of(detector, chosen_by="--max_fpr 0.01").lines()

Of several choices the first counts: `--threshold`, `--max_fpr`, the run's calibration. A threshold of one's own has no
unsure band and no guaranteed rate; images are still unsure that are unlike the run's, on which the witnesses disagree,
or whose verdict depends on their encoding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vlm_detect.infer.detector import Detector
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.guarantee import percent

BY_CALIBRATION = "the run's calibration"
BY_NOBODY = "no calibration: even odds"


@dataclass(frozen=True)
class OperatingPoint:
    """`threshold` and `unsure_band` are in p_fake; `max_fpr` is guaranteed for photos like the `n_real` of its own."""

    chosen_by: str
    threshold: float
    unsure_band: tuple[float, float]
    max_fpr: float | None
    reached: float | None
    bound: float | None
    confidence: float | None
    n_real: int
    n: int
    reliable: bool
    views: int
    caveat: str

    @classmethod
    def of(cls, detector: Detector, chosen_by: str = "") -> OperatingPoint:
        """That of a detector; `chosen_by` names the flag, where one chose it."""
        found = detector.calibration
        return cls(
            chosen_by=chosen_by or (BY_CALIBRATION if found.n else BY_NOBODY),
            threshold=found.threshold,
            unsure_band=(found.unsure_low, found.unsure_high),
            max_fpr=found.max_fpr,
            reached=found.reached,
            bound=found.bound,
            confidence=found.confidence,
            n_real=found.n_real,
            n=found.n,
            reliable=found.reliable,
            views=detector.views,
            caveat=detector.caveat,
        )

    def lines(self) -> list[tuple[str, str]]:
        """(name, value) for a page."""
        low, high = self.unsure_band
        guarantee = "none"
        if self.max_fpr is not None:
            guarantee = (
                f"at most {percent(self.max_fpr)} of photos like the {self.n_real} of its calibration, at "
                f"{percent(self.confidence or 0)} confidence (bound {percent(self.bound or 0)})"
            )
        return [
            ("Generated above", f"p_fake {self.threshold:.3f}, chosen by {self.chosen_by}"),
            ("Unsure band", f"p_fake {low:.3f} to {high:.3f}" if high > low else "none"),
            ("Guaranteed false-alarm rate", guarantee),
            ("Calibrated on", f"{self.n} images" if self.n else "nothing"),
            ("Re-encoded copies", f"{self.views} of each image" if self.views else "not judged"),
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def set_operating_point(detector: Detector, threshold: float | None, max_fpr: float | None) -> str:
    """Set what these flags ask for, and return which of them chose; empty where neither is given.

    Raises:
        UserError: where the run's photos cannot guarantee `max_fpr`.
    """
    if threshold is not None:
        detector.calibration = detector.calibration.at_threshold(threshold)
        return f"--threshold {threshold:g}"
    if max_fpr is not None:
        detector.calibration = detector.calibration.guaranteeing(max_fpr)
        return f"--max_fpr {max_fpr:g}"
    return ""


def worth(calibration: Calibration) -> str:
    """What a run's calibration guarantees, and whether it means anything; empty where neither is to be said."""
    guaranteed = ""
    if calibration.max_fpr is not None:
        guaranteed = (
            f"; at most {percent(calibration.max_fpr)} of photos like the {calibration.n_real} of its calibration are "
            f"called generated ({percent(calibration.confidence or 0)} confidence)"
        )
    doubt = f"; its calibration is not reliable: {calibration.doubt}" if not calibration.reliable else ""
    return guaranteed + doubt
