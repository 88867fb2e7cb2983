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
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.linalg import solve_triangular
from sklearn.covariance import ledoit_wolf_shrinkage

from vlm_detect.config import make_readable
from vlm_detect.errors import UserError
from vlm_detect.stats.conformal import least_n, p_values

FILE = "head.safetensors"
CLASSES = ("real", "generated")
_LEAST_EACH = 2  # images of a class, for a covariance within it
_JITTER = 1e-6  # added to correlations of 1, so that they can be inverted
_SAME_TOWER = 0.5  # standard deviations within a class, in the mean over features


@dataclass(frozen=True)
class Head:
    """Sums over the fitted images, from which everything else follows. F is the number of features.

    `ordinary` holds the distances of images that were not fitted: the p-values of `novelty` come from them. `probe`
    holds the features of `probe_image`, by which a head knows its tower again.
    """

    counts: np.ndarray  # (2,) images of each of `CLASSES`
    means: np.ndarray  # (2, F)
    scatter: np.ndarray  # (F, F): the sum over images of the outer product of their difference from their class mean
    shrinkage: float  # 0: the covariance as it is; 1: its diagonal alone
    ordinary: np.ndarray = field(default_factory=lambda: np.zeros(0))
    probe: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (F,)
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
    def _factor(self) -> tuple[np.ndarray, np.ndarray]:
        """Each feature's scale (F,), and the Cholesky factor (F, F) of the shrunk correlation."""
        covariance = self.scatter / self.n
        scale = _scale(np.diag(covariance))
        shrunk = (1 - self.shrinkage) * covariance / np.outer(scale, scale)
        # A feature that never varies has no correlation, and features that are copies of each other make it singular.
        shrunk[np.diag_indices(self.width)] = 1 + _JITTER
        return scale, np.linalg.cholesky(shrunk)

    def _whitened(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, F) and class means (2, F) in which the covariance within a class is the identity."""
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.width:
            raise UserError(f"this head reads {self.width} features and was given {x.shape[-1]}: it is another tower's")
        scale, factor = self._factor
        together = np.concatenate([self.means, x]) / scale
        whitened = solve_triangular(factor, together.T, lower=True).T
        return whitened[2:], whitened[:2]

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Log-odds of "generated" (N,) in nats, both classes held equally likely beforehand."""
        x, means = self._whitened(features)
        return x @ (means[1] - means[0]) - (means[1] @ means[1] - means[0] @ means[0]) / 2

    def linear(self) -> tuple[np.ndarray, float]:
        """`log_odds` as weights (F,) of the features and an intercept."""
        _, means = self._whitened(self.means)
        scale, factor = self._factor
        weights = solve_triangular(factor, means[1] - means[0], lower=True, trans="T") / scale
        return weights, -float(means[1] @ means[1] - means[0] @ means[0]) / 2

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance (N,) to the nearest class mean."""
        x, means = self._whitened(features)
        return np.sqrt(((x[:, None] - means[None]) ** 2).sum(-1).min(1))

    def with_ordinary(self, features: np.ndarray) -> Head:
        """The same head with the distances of images that it was not fitted on, for `novelty`."""
        return replace(self, ordinary=np.sort(self.distance(features)))

    def with_probe(self, features: np.ndarray) -> Head:
        """The same head with the features (1, F) of `probe_image`."""
        return replace(self, probe=np.asarray(features, dtype=np.float64).reshape(-1))

    def check_tower(self, features: np.ndarray) -> None:
        """`UserError` unless these features (1, F) of `probe_image` are those of the tower that it was fitted on.

        Other dtypes move them by hundredths of what an image does, another tower by a multiple of that.
        """
        there = np.asarray(features, dtype=np.float64).reshape(-1)
        spread = _scale(np.diag(self.scatter) / self.n)
        off = np.inf
        if len(there) == self.width:
            off = float(np.sqrt(np.mean(((there - self.probe) / spread) ** 2))) if len(self.probe) else 0.0
        if not off <= _SAME_TOWER:
            raise UserError(
                "this head was fitted on another tower's features than the model has: fit it again with vlm-detect "
                "fit-head"
            )

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
        scatter = self.scatter + weight * other.scatter + between
        return Head(counts, means, scatter, self.shrinkage, probe=self.probe, about=self.about)

    def save(self, folder: Path) -> Path:
        """Write `head.safetensors` into `folder`."""
        path = folder / FILE
        # The covariance is symmetric: its upper half is enough.
        tensors: dict[str, np.ndarray] = {
            "counts": self.counts.astype(np.float64),
            "means": self.means.astype(np.float32),
            "scatter_upper": self.scatter[np.triu_indices(self.width)].astype(np.float32),
            "ordinary": np.asarray(self.ordinary, dtype=np.float32),
            "probe": np.asarray(self.probe, dtype=np.float32),
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
            rest = {name: found[name] for name in ("ordinary", "probe")}
            return cls(found["counts"], found["means"], scatter, float(metadata["shrinkage"]), **rest, about=about)
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a head ({error}); fit it again with vlm-detect fit-head") from error


def probe_image() -> Image.Image:
    """A picture that is the same everywhere: colours that run and a fine grid, of 64 pixels."""
    rows, columns = np.mgrid[0:64, 0:64]
    pixels = np.stack([4 * rows, 4 * columns, 96 * ((rows // 4 + columns // 4) % 2) + rows + columns], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def _scale(variances: np.ndarray) -> np.ndarray:
    """Standard deviations, 1 where a feature never varies."""
    return np.sqrt(np.where(variances > 0, variances, 1.0))
