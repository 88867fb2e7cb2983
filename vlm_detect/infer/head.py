"""A closed-form head on a tower's features: class means and one shared covariance, fitted in seconds.

    head = Head.fit(features, generated, about={"features": "tower"})     # (N, F) floats, (N,) bools
    head.log_odds(features)                 # of "generated", in nats: linear discriminant analysis
    head.distance(features)                 # Mahalanobis distance to the nearest class mean: how strange an image is
    head.save(run); Head.load(run)          # head.safetensors next to the adapter
    head.combined(other, weight=3.0)        # the same head after new images were added, old ones kept

The sums behind means and covariance are kept, so that images can be added without the ones before. The covariance is
shrunk towards its diagonal by Ledoit and Wolf's estimate (2004, "A well-conditioned estimator for large-dimensional
covariance matrices"; scikit-learn), so that it can be inverted where images are fewer than features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from sklearn.covariance import ledoit_wolf_shrinkage

from vlm_detect.config import make_readable
from vlm_detect.errors import UserError
from vlm_detect.stats.conformal import least_n, p_values

FILE = "head.safetensors"
CLASSES = ("real", "generated")
_LEAST_EACH = 2  # images of a class, for a covariance within it


@dataclass(frozen=True)
class Head:
    """Sums over the fitted images, from which everything else follows. F is the number of features.

    `ordinary` holds the distances of images that were not fitted: the p-values of `novelty` come from them.
    """

    counts: np.ndarray  # (2,) images of each of `CLASSES`
    means: np.ndarray  # (2, F)
    scatter: np.ndarray  # (F, F): the sum over images of the outer product of their difference from their class mean
    shrinkage: float  # 0: the covariance as it is; 1: its diagonal alone
    ordinary: np.ndarray = field(default_factory=lambda: np.zeros(0))
    about: dict[str, Any] = field(default_factory=dict)  # what it reads and was fitted on

    @classmethod
    def fit(cls, features: np.ndarray, generated: np.ndarray, about: dict[str, Any] | None = None) -> Head:
        """From features (N, F) and the truth (N,); `UserError` where a class has fewer than two images."""
        x, y = np.asarray(features, dtype=np.float64), np.asarray(generated, dtype=bool)
        if not np.isfinite(x).all():
            raise UserError("the features hold non-finite values: the model's weights are broken or overflow")
        counts = np.array([(~y).sum(), y.sum()])
        if counts.min() < _LEAST_EACH:
            raise UserError(
                f"a head needs at least {_LEAST_EACH} real and {_LEAST_EACH} generated images, these are "
                f"{counts[0]} and {counts[1]}"
            )
        means = np.stack([x[~y].mean(0), x[y].mean(0)])
        centred = x - means[y.astype(int)]
        scale = _scale(np.einsum("nf,nf->f", centred, centred) / len(x))
        shrinkage = float(ledoit_wolf_shrinkage(centred / scale, assume_centered=True))
        return cls(counts, means, centred.T @ centred, shrinkage, about=about or {})

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def width(self) -> int:
        return self.means.shape[1]

    @cached_property
    def _whitener(self) -> np.ndarray:
        """W (F, F) with W W^T the inverse of the shrunk covariance."""
        covariance = self.scatter / self.n
        scale = _scale(np.diag(covariance))
        correlation = covariance / np.outer(scale, scale)
        shrunk = (1 - self.shrinkage) * correlation + self.shrinkage * np.eye(self.width)
        values, vectors = np.linalg.eigh(shrunk)
        kept = np.maximum(values, 1e-9 * values.max())
        return (vectors / np.sqrt(kept)) / scale[:, None]

    def _whitened(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise UserError(f"this head reads {self.width} features and was given {x.shape[-1]}: it is another tower's")
        return x @ self._whitener, self.means @ self._whitener

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of "generated" (N,) in nats, both classes held equally likely beforehand."""
        x, means = self._whitened(features)
        return x @ (means[1] - means[0]) - (means[1] @ means[1] - means[0] @ means[0]) / 2

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance (N,) to the nearest class mean."""
        x, means = self._whitened(features)
        return np.sqrt(((x[:, None] - means[None]) ** 2).sum(-1).min(1))

    def with_ordinary(self, features: np.ndarray) -> Head:
        """The same head with the distances of images that it was not fitted on, for `novelty`."""
        return replace(self, ordinary=np.sort(self.distance(features)))

    def can_judge_novelty(self, level: float) -> bool:
        return len(self.ordinary) >= least_n(level)

    def novelty(self, features: np.ndarray) -> np.ndarray:
        """Conformal p-values (N,): the part of ordinary images that are at least as far from what was fitted."""
        return p_values(self.distance(features), self.ordinary)

    def combined(self, other: Head, weight: float = 1.0) -> Head:
        """This head's images and those of `other`, each of which counts `weight` times.

        The old distances describe another head, so `ordinary` is empty: refill it by `with_ordinary`.
        """
        if other.width != self.width:
            raise UserError(f"heads of {self.width} and {other.width} features cannot be combined: two towers")
        added = weight * other.counts
        counts = self.counts + added
        means = (self.counts[:, None] * self.means + added[:, None] * other.means) / counts[:, None]
        apart = other.means - self.means
        between = np.einsum("c,cf,cg->fg", self.counts * added / counts, apart, apart)
        return Head(counts, means, self.scatter + weight * other.scatter + between, self.shrinkage, about=self.about)

    def save(self, folder: Path) -> Path:
        """Write `head.safetensors` into `folder`."""
        path = folder / FILE
        # The covariance is symmetric: its upper half is enough.
        tensors: dict[str, np.ndarray] = {
            "counts": self.counts.astype(np.float64),
            "means": self.means.astype(np.float32),
            "scatter_upper": self.scatter[np.triu_indices(self.width)].astype(np.float32),
            "ordinary": np.asarray(self.ordinary, dtype=np.float32),
        }
        save_file(tensors, path, {"shrinkage": repr(self.shrinkage), "about": json.dumps(self.about)})
        make_readable(path)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Head | None:
        """The head of a run directory, or None where there is none; `UserError` for a damaged one."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                found = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
            width = found["means"].shape[1]
            scatter = np.zeros((width, width))
            scatter[np.triu_indices(width)] = found["scatter_upper"]
            scatter += np.triu(scatter, 1).T
            about = json.loads(metadata["about"])
            return cls(found["counts"], found["means"], scatter, float(metadata["shrinkage"]), found["ordinary"], about)
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a head ({error}); fit it again with vlm-detect fit-head") from error


def _scale(variances: np.ndarray) -> np.ndarray:
    """Standard deviations, 1 where a feature never varies."""
    return np.sqrt(np.where(variances > 0, variances, 1.0))
