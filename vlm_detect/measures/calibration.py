"""What photos measure, and which measures tell a dataset's classes apart: fitted on a training split, kept as JSON.

    calibration = fit_calibration(measured, generated, groups)     # of a training split's photos and generated images
    calibration.save(folder)                                       # measures.json; MeasureCalibration.load(folder)
    calibration.standing(measured, "noise_evenness")               # where an image's number stands among photos
    calibration.scales["noise_evenness"].is_informative                 # whether it may be spoken of as a reason

A number is compared with photos of its own size: buckets of half an octave of the side. Where photos of one size were
compressed differently, those of the same JPEG quality are a bucket of their own.

A measure tells the classes apart where its area under the ROC curve, cross-validated over source photos (direction and
percentiles are chosen on other photos than those that are judged), has its whole 95 % interval above 0.6.
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
MIN_AUROC = 0.6  # the least area, at the lower end of its interval, of what may be spoken of
MIN_PHOTOS = 20  # fewer make no percentiles
_QUANTILES = np.linspace(0, 1, 101)
_BINS = 20  # of the percentile, in which margins are counted

Direction = Literal["lower", "higher"]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """A number among those of photos: the shares, 0 to 1, of photos whose number is lower and higher."""

    value: float
    below: float
    above: float

    @property
    def percentile(self) -> float:
        """0 to 100; of equal numbers the middle."""
        return 50 * (self.below + 1 - self.above)

    def beyond(self, direction: Direction) -> float:
        """The share of photos that it exceeds in a direction: lower than so many, or higher."""
        return self.above if direction == "lower" else self.below


@dataclass(frozen=True)
class Scale:
    """How one measure tells generated images from photos.

    `auroc` and `ci95` are of images that chose nothing; `generated` is where generated images lie. `margins` are nats,
    in twenty equal parts of the percentile: by how much likelier such a number is of a generated image.
    """

    auroc: float
    ci95: tuple[float, float]
    generated: Direction
    margins: tuple[float, ...]

    @property
    def is_informative(self) -> bool:
        return self.ci95[0] > MIN_AUROC

    def margin(self, percentile: float) -> float:
        """Nats for generated, negative for real."""
        return self.margins[min(int(percentile / 100 * _BINS), _BINS - 1)]


@dataclass(frozen=True)
class Photos:
    """The photos of one bucket: how many, and the percentiles 0 to 100 of each measure."""

    octave: int  # twice the binary logarithm of the side, rounded
    quality: str | None  # of the files' compression; None: whatever it is
    count: int
    quantiles: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class MeasureCalibration:
    """`images` counts what it was fitted on, by label; empty `scales`: there was nothing to tell photos from."""

    photos: tuple[Photos, ...] = ()
    scales: Mapping[str, Scale] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)

    def standing(self, measured: Measured, name: str) -> Standing | None:
        """Where an image stands by one measure; None where it has no such number, or no photo of its size is known."""
        value = measured.values.get(name)
        photos = self.photos_like(octave_of(measured.size), quality_of(measured.jpeg_quality))
        if value is None or photos is None or name not in photos.quantiles:
            return None
        return Standing(value, *_shares_of_one(photos.quantiles[name], value))

    @property
    def informative(self) -> list[str]:
        """The measures that tell the classes apart, the best first."""
        names = [name for name, scale in self.scales.items() if scale.is_informative]
        return sorted(names, key=lambda name: -self.scales[name].auroc)

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, with_schema("measures", asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> MeasureCalibration | None:
        """What was saved in a dataset's or a run's folder; None where nothing was. UserError for another file."""
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
    """From the numbers of photos and of generated images; `groups` are their source photos.

    UserError where no size has `MIN_PHOTOS` photos.
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
    """Images by rows: `values` is (n, names), NaN where an image has no such number."""

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
    """Log ratios of the classes' shares of each bin, one image more in each, made monotone."""
    bins = np.minimum((percentiles / 100 * _BINS).astype(int), _BINS - 1)
    counts = [np.bincount(bins[y == label], minlength=_BINS) + 1.0 for label in (0, 1)]
    logs = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
    monotone = IsotonicRegression(increasing=increasing).fit_transform(
        np.arange(_BINS), logs, sample_weight=counts[0] + counts[1]
    )
    return tuple(monotone.round(4).tolist())


def _shares_of_one(quantiles: Sequence[float], value: float) -> tuple[float, float]:
    """As `_shares` of a single number, which explanations are held against by the hundred thousand."""
    last = len(quantiles) - 1
    low, high = bisect_left(quantiles, value), bisect_right(quantiles, value)
    if high > low:
        return low / last, 1 - (high - 1) / last
    if low in (0, last + 1):
        return (0.0, 1.0) if low == 0 else (1.0, 0.0)
    between = (low - 1 + (value - quantiles[low - 1]) / (quantiles[low] - quantiles[low - 1])) / last
    return between, 1 - between


def _shares(quantiles: Array, values: Array) -> tuple[Array, Array]:
    """(below, above): the shares of photos with a lower and with a higher number; equal ones count to neither."""
    last = len(quantiles) - 1
    low, high = np.searchsorted(quantiles, values, "left"), np.searchsorted(quantiles, values, "right")
    before, after = np.clip(low - 1, 0, last), np.clip(low, 0, last)
    step = quantiles[after] - quantiles[before]
    part = np.where(step > 0, (values - quantiles[before]) / np.where(step > 0, step, 1), 0)
    between = np.clip((before + part) / last, 0, 1)
    between = np.where(low == 0, 0.0, np.where(low > last, 1.0, between))
    tied = high > low
    return np.where(tied, low / last, between), np.where(tied, 1 - (high - 1) / last, 1 - between)
