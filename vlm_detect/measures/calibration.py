"""The values of photos, and the measures that separate a dataset's classes: fitted on a training split, saved as JSON.

    calibration = fit_calibration(measured, generated, groups)     # of a training split's photos and generated images
    calibration.save(folder)                                       # measures.json; MeasureCalibration.load(folder)
    calibration.standing(measured, "noise_evenness")               # an image's value relative to photos
    calibration.scales["noise_evenness"].is_informative           # whether it may be given as a reason

A value is compared with photos of the same size: buckets of half an octave of the side. If photos of one size were
compressed differently, those of the same JPEG quality are a bucket of their own.

A measure is informative if the 95 % interval of its area under the ROC curve lies above 0.6. The area is
cross-validated over source photos: direction and percentiles are chosen on other photos than those that are scored.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.isotonic import IsotonicRegression

from vlm_detect.config import write_json
from vlm_detect.errors import UserError
from vlm_detect.measures.registry import Measured
from vlm_detect.schema import check_schema, with_schema
from vlm_detect.stats.areas import auc, auc_interval, make_folds

FILE = "measures.json"
MIN_AUROC = 0.6  # lowest area, at the lower end of its interval, of a measure that may be given as a reason
MIN_PHOTOS = 20  # with fewer there are no percentiles
_QUANTILES = np.linspace(0, 1, 101)
_BINS = 20  # of the percentile, for margins

Direction = Literal["lower", "higher"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """A value relative to those of photos: the shares, 0 to 1, of photos with a lower and with a higher value."""

    value: float
    below: float
    above: float

    @property
    def percentile(self) -> float:
        """0 to 100; the middle of equal values."""
        return 50 * (self.below + 1 - self.above)

    def beyond(self, direction: Direction) -> float:
        """The share of photos that it is lower, or higher, than."""
        return self.above if direction == "lower" else self.below


@dataclass(frozen=True)
class Scale:
    """How one measure separates generated images from photos.

    `auroc` and `ci95` are cross-validated; `generated` is the direction of generated images. `margins` are
    log-likelihood ratios in nats, generated against real, in twenty equal bins of the percentile.
    """

    auroc: float
    ci95: tuple[float, float]
    generated: Direction
    margins: tuple[float, ...]

    @property
    def is_informative(self) -> bool:
        return self.ci95[0] > MIN_AUROC

    def margin(self, percentile: float) -> float:
        """Nats, positive for generated and negative for real."""
        return self.margins[min(int(percentile / 100 * _BINS), _BINS - 1)]


@dataclass(frozen=True)
class Photos:
    """The photos of one bucket: how many, and the percentiles 0 to 100 of each measure."""

    octave: int  # twice the binary logarithm of the side, rounded
    quality: str | None  # of the files' compression; None: any
    count: int
    quantiles: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class MeasureCalibration:
    """`images` has the numbers of images by label; `scales` is empty if there were no generated images."""

    photos: tuple[Photos, ...] = ()
    scales: Mapping[str, Scale] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)

    def standing(self, measured: Measured, name: str) -> Standing | None:
        """An image's value relative to photos; None if it has no such value, or there are no photos of its size."""
        value = measured.values.get(name)
        photos = self.photos_like(octave_of(measured.size), quality_of(measured.jpeg_quality))
        if value is None or photos is None or name not in photos.quantiles:
            return None
        return Standing(value, *_shares_of_one(photos.quantiles[name], value))

    @property
    def informative(self) -> list[str]:
        """The informative measures, the best first."""
        names = [name for name, scale in self.scales.items() if scale.is_informative]
        return sorted(names, key=lambda name: -self.scales[name].auroc)

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, with_schema("measures", asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> MeasureCalibration | None:
        """The calibration in a dataset's or a run's folder; None if there is none. UserError for an invalid file."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            check_schema("measures", values, path)
            return cls._from_json(values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is no calibration of measures ({error}); make it again with add-reasons"
            ) from error

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> MeasureCalibration:
        photos = tuple(
            Photos(**{**one, "quantiles": {name: tuple(q) for name, q in one["quantiles"].items()}})
            for one in values["photos"]
        )
        scales = {
            name: Scale(**{**one, "ci95": tuple(one["ci95"]), "margins": tuple(one["margins"])})
            for name, one in values["scales"].items()
        }
        return cls(photos, scales, values["images"])

    def photos_like(self, octave: int, quality: str) -> Photos | None:
        """Of this size and compression, else of this size, else of the nearest size within half an octave."""
        near = [one for one in self.photos if abs(one.octave - octave) <= 1 and one.quality in (None, quality)]
        return min(near, key=lambda one: (abs(one.octave - octave), one.quality is None), default=None)


def octave_of(size: tuple[int, int]) -> int:
    """Of (width, height): twice the binary logarithm of the side of a square of as many pixels, rounded."""
    return round(math.log2(size[0] * size[1]))


def quality_of(jpeg_quality: int | None) -> str:
    if jpeg_quality is None:
        return "no jpeg"
    return "jpeg to 59" if jpeg_quality < 60 else "jpeg 60 to 84" if jpeg_quality < 85 else "jpeg from 85"


def fit_calibration(
    measured: Sequence[Measured], generated: Sequence[bool] | NDArray[np.bool_], groups: Sequence[str]
) -> MeasureCalibration:
    """Fit on the values of photos and of generated images; `groups` are their source photos.

    UserError if no size has `MIN_PHOTOS` photos.
    """
    y = np.asarray(generated, dtype=float)
    unit = np.unique(np.asarray(groups, str), return_inverse=True)[1]
    table = _Table.from_measured(measured)
    photos = _photos(table, np.flatnonzero(y == 0))
    if not photos:
        raise UserError(
            f"{int((y == 0).sum())} photos in the training split, of no size {MIN_PHOTOS}: too few to say what is "
            "usual; give more photos, or photos of one size"
        )
    percentiles = _percentiles(photos, table, np.arange(len(y)))
    scores = np.full(percentiles.shape, 0.5)
    for train, test in make_folds(y, unit) if 0 < y.sum() < len(y) else []:
        own = _photos(table, train[y[train] == 0])
        seen, unseen = _percentiles(own, table, train), _percentiles(own, table, test)
        for column in range(len(table.names)):
            usable = np.isfinite(seen[:, column])
            if 0 < y[train][usable].sum() < usable.sum():
                sign = 1 if auc(seen[usable, column], y[train][usable]) >= 0.5 else -1
                ranks = rankdata(sign * np.nan_to_num(unseen[:, column], nan=50.0))
                scores[test, column] = (ranks - 0.5) / len(test)
    scales = {}
    for column, name in enumerate(table.names):
        known = np.isfinite(percentiles[:, column])
        if 0 < y[known].sum() < known.sum():
            scales[name] = _scale(percentiles[known, column], scores[known, column], y[known], unit[known])
    counts = {"real": int((y == 0).sum()), "generated": int(y.sum())}
    return MeasureCalibration(photos, scales, counts)


@dataclass(frozen=True, eq=False)
class _Table:
    """Images by rows: `values` is (n, names), NaN if an image has no such value."""

    names: list[str]
    values: Array
    octaves: NDArray[np.int_]
    qualities: NDArray[np.str_]

    @classmethod
    def from_measured(cls, measured: Sequence[Measured]) -> _Table:
        names = sorted({name for one in measured for name in one.values})
        return cls(
            names,
            np.array([[one.values.get(name, np.nan) for name in names] for one in measured]).reshape(-1, len(names)),
            np.array([octave_of(one.size) for one in measured]),
            np.array([quality_of(one.jpeg_quality) for one in measured]),
        )


def _photos(table: _Table, rows: NDArray[np.intp]) -> tuple[Photos, ...]:
    found = []
    for octave in np.unique(table.octaves[rows]).tolist():
        alike = rows[table.octaves[rows] == octave]
        found.append(_of_bucket(table, alike, octave, None))
        qualities = np.unique(table.qualities[alike]).tolist()
        if len(qualities) > 1:
            found += [_of_bucket(table, alike[table.qualities[alike] == one], octave, one) for one in qualities]
    return tuple(photos for photos in found if photos.count >= MIN_PHOTOS)


def _of_bucket(table: _Table, rows: NDArray[np.intp], octave: int, quality: str | None) -> Photos:
    quantiles = {}
    for column, name in enumerate(table.names):
        values = table.values[rows, column]
        values = values[np.isfinite(values)]
        if len(values) >= MIN_PHOTOS:
            quantiles[name] = tuple(np.quantile(values, _QUANTILES).round(6).tolist())
    return Photos(octave, quality, len(rows), quantiles)


def _percentiles(photos: tuple[Photos, ...], table: _Table, rows: NDArray[np.intp]) -> Array:
    """(rows, names): percentiles among photos, NaN where there is none."""
    found = np.full((len(rows), len(table.names)), np.nan)
    calibration = MeasureCalibration(photos)
    kinds = np.char.add(np.char.add(table.octaves[rows].astype(str), " "), table.qualities[rows])
    for kind in np.unique(kinds):
        places = np.flatnonzero(kinds == kind)
        octave, _, quality = str(kind).partition(" ")
        like = calibration.photos_like(int(octave), quality)
        for column, name in enumerate(table.names):
            if like is not None and name in like.quantiles:
                values = table.values[rows[places], column]
                below, above = _shares(np.array(like.quantiles[name]), values)
                found[places, column] = np.where(np.isfinite(values), 50 * (below + 1 - above), np.nan)
    return found


def _scale(percentiles: Array, scores: Array, y: Array, unit: NDArray[np.intp]) -> Scale:
    area = auc(scores, y)
    low, high = auc_interval(scores, y, np.unique(unit, return_inverse=True)[1], 0.05)
    is_higher = auc(percentiles, y) >= 0.5
    return Scale(
        round(area, 4),
        (round(low, 4), round(high, 4)),
        "higher" if is_higher else "lower",
        _margins(percentiles, y, increasing=is_higher),
    )


def _margins(percentiles: Array, y: Array, *, increasing: bool) -> tuple[float, ...]:
    """Log ratios of the classes' shares of each bin, with one image added to each, made monotone."""
    bins = np.minimum((percentiles / 100 * _BINS).astype(int), _BINS - 1)
    counts = [np.bincount(bins[y == label], minlength=_BINS) + 1.0 for label in (0, 1)]
    logs = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
    monotone = IsotonicRegression(increasing=increasing).fit_transform(
        np.arange(_BINS), logs, sample_weight=counts[0] + counts[1]
    )
    return tuple(monotone.round(4).tolist())


def _shares_of_one(quantiles: Sequence[float], value: float) -> tuple[float, float]:
    """As `_shares` for a single value, without its overhead: explanations are checked in the hundred thousands."""
    last = len(quantiles) - 1
    low, high = bisect_left(quantiles, value), bisect_right(quantiles, value)
    if high > low:
        return low / last, 1 - (high - 1) / last
    if low in (0, last + 1):
        return (0.0, 1.0) if low == 0 else (1.0, 0.0)
    between = (low - 1 + (value - quantiles[low - 1]) / (quantiles[low] - quantiles[low - 1])) / last
    return between, 1 - between


def _shares(quantiles: Array, values: Array) -> tuple[Array, Array]:
    """(below, above): the shares of photos with a lower and with a higher value; equal ones count for neither."""
    last = len(quantiles) - 1
    low, high = np.searchsorted(quantiles, values, "left"), np.searchsorted(quantiles, values, "right")
    before, after = np.clip(low - 1, 0, last), np.clip(low, 0, last)
    step = quantiles[after] - quantiles[before]
    part = np.where(step > 0, (values - quantiles[before]) / np.where(step > 0, step, 1), 0)
    between = np.clip((before + part) / last, 0, 1)
    between = np.where(low == 0, 0.0, np.where(low > last, 1.0, between))
    tied = high > low
    return np.where(tied, low / last, between), np.where(tied, 1 - (high - 1) / last, 1 - between)
