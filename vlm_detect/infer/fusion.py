"""One verdict from several witnesses: the calibrated combination of their log-odds.

    fusion = Fusion.fit({"language_model": odds, "head": odds}, generated)
    fusion.log_odds({"language_model": 1.2, "head": 0.4})     # fused, in nats
    fusion.save(run); Fusion.load(run)                         # fusion.json next to the adapter

Stacking (Wolpert 1992, "Stacked generalization") by logistic regression on images that no witness was trained on. The
fused log-odds are an intercept and a weighted sum, so a reader sees who carries a verdict: a weight of 0 is a witness
that adds nothing, and a weight of 1 among zeros is a copy of one. No weight is negative: a witness that is wrong more
often than not has 0, and is not believed by its opposite.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression

from vlm_detect.config import write_json
from vlm_detect.errors import UserError
from vlm_detect.schema import check_schema, with_schema

FILE = "fusion.json"
WitnessName = Literal["language_model", "head", "expert"]
# An L2 penalty of a weight's square over 2 C, against the summed log loss of the images: it matters below a few dozen.
_C = 10.0


@dataclass(frozen=True)
class Witness:
    """A source of log-odds. `path` and `sha256` are those of an expert's run and of its weights, or of the head's
    file; else empty."""

    name: str
    weight: float
    path: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Fusion:
    """log-odds = intercept + the sum of weight x log-odds over the witnesses, in nats; fitted on `n` images.

    `disputed`: where witnesses disagree, a verdict counts from so many nats beyond the threshold on. `novelty_level`:
    an image whose p-value of novelty is at most this is unlike what the run was fitted on.
    """

    witnesses: tuple[Witness, ...]
    intercept: float = 0.0
    n: int = 0
    disputed: float = 0.0
    novelty_level: float = 0.01

    @classmethod
    def alone(cls, name: WitnessName = "language_model") -> Fusion:
        """One witness, taken as it is."""
        return cls((Witness(name, 1.0),))

    @classmethod
    def fit(
        cls,
        odds: Mapping[str, np.ndarray],
        generated: np.ndarray,
        sources: Mapping[str, tuple[str, str]] | None = None,
    ) -> Fusion:
        """From each witness's log-odds (N,) of validation images and the truth (N,).

        `sources` gives the path and sha256 of witnesses that lie elsewhere. `UserError` where a class is missing.
        """
        truth = np.asarray(generated, dtype=bool)
        if truth.all() or not truth.any():
            raise UserError("witnesses are combined on real and generated images; one of the classes is missing")
        x = np.stack([np.asarray(values, dtype=np.float64) for values in odds.values()], axis=1)
        if not np.isfinite(x).all():
            raise UserError(f"non-finite log-odds from {', '.join(odds)}: a witness's weights are broken")
        scale = np.maximum(np.abs(x).mean(0), 1e-9)  # so that the penalty does not depend on a witness's own scale
        weights, intercept = _non_negative(x / scale, truth)
        where = sources or {}
        found = zip(odds, (weights / scale).tolist(), strict=True)
        return cls(tuple(Witness(n, w, *where.get(n, ("", ""))) for n, w in found), intercept, len(truth))

    @property
    def names(self) -> list[str]:
        return [witness.name for witness in self.witnesses]

    @property
    def expert(self) -> Witness | None:
        return next((witness for witness in self.witnesses if witness.name == "expert"), None)

    def log_odds(self, odds: Mapping[str, np.ndarray | float]) -> np.ndarray:
        """The fused log-odds of images, of each witness's own: (N,) or a number each."""
        if missing := [name for name in self.names if name not in odds]:
            raise UserError(f"the verdict needs {', '.join(missing)} too; refit without: vlm-detect fit-head")
        weighted = [witness.weight * np.asarray(odds[witness.name], dtype=np.float64) for witness in self.witnesses]
        return self.intercept + np.sum(weighted, axis=0)

    def disagreement(self, odds: Mapping[str, float]) -> list[str]:
        """The witnesses with a weight that lean against the fused verdict on one image, the strongest first."""
        fused = float(self.log_odds(odds))
        against = [(w.weight * odds[w.name], w.name) for w in self.witnesses if w.weight * odds[w.name] * fused < 0]
        return [name for _, name in sorted(against, key=lambda one: -abs(one[0]))]

    def is_disputed(self, odds: Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether, for each image (N,), some witness disagrees with the fused verdict."""
        fused = self.log_odds(odds)
        return np.any([w.weight * np.asarray(odds[w.name]) * fused < 0 for w in self.witnesses], axis=0)

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, with_schema("fusion", asdict(self)))

    @classmethod
    def load(cls, folder: str | Path) -> Fusion | None:
        """The fusion of a run directory, or None where there is none; `UserError` for a file that is none."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            check_schema("fusion", record, path)
            witnesses = tuple(Witness(**witness) for witness in record["witnesses"])
            others = {name: float(record[name]) for name in ("disputed", "novelty_level") if name in record}
            return cls(witnesses, float(record["intercept"]), int(record["n"]), **others)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is not a fusion ({error}); fit it again with vlm-detect fit-head") from error


def _non_negative(x: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights (W,) and the intercept of logistic regression on x (N, W), without the columns that have a negative."""
    kept = np.arange(x.shape[1])
    weights = np.zeros(x.shape[1])
    while len(kept):
        fitted = LogisticRegression(C=_C, max_iter=1000).fit(x[:, kept], truth)
        found = fitted.coef_[0]
        if found.min() >= 0:
            weights[kept] = found
            return weights, float(fitted.intercept_[0])
        kept = np.delete(kept, found.argmin())
    raise UserError(
        "no witness is right more often than wrong on the validation images: look at their labels, or train more"
    )


def accuracies(odds: Mapping[str, Sequence[float] | np.ndarray], generated: np.ndarray) -> dict[str, float]:
    """The accuracy of each witness by itself, at even odds."""
    truth = np.asarray(generated, dtype=bool)
    return {name: float(((np.asarray(values) > 0) == truth).mean()) for name, values in odds.items()}
