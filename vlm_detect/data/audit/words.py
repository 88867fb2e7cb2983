"""The result of a probe in one sentence: what differs, by how much, and how to fix it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer

from vlm_detect.data.audit.measures import Features
from vlm_detect.stats.areas import auc

_REMEDY = {
    "format": "write both with one encoder",
    "extension": "give both one extension",
    "bytes": "strip everything except pixels from both",
    "size": "resize both to one size",
    "aspect": "crop both to one aspect",
    "tables": "compress both with the same tables",
    "metadata": "strip the metadata of both",
    "border": "crop the borders",
    "scale": "upscale neither, or both equally",
    "caption": "caption both in the same way, about content only",
}


def leak_sentence(name: str, values: Sequence[Any], y: NDArray[np.float64], ones: str, zeros: str, score: str) -> str:
    """`ones` and `zeros` name the classes ("generated", "real"); `score` is the AUC with its interval."""
    describe = _DESCRIPTIONS.get(name, _feature)
    return f"{describe(values, y, ones, zeros)}: {name} alone gives {score}; {_REMEDY[name]}"


def baseline_sentence(name: str, score: str) -> str:
    return f"{name.replace('_', ' ')} alone gives {score}; a detector has to beat it"


def _split(values: Sequence[Any], y: NDArray[np.float64]) -> tuple[list[Any], list[Any]]:
    """(of class 1, of class 0)"""
    return [v for v, label in zip(values, y, strict=True) if label], [
        v for v, label in zip(values, y, strict=True) if not label
    ]


def _share(count: int, of: int) -> str:
    return "all" if count == of else "none of" if not count else f"{100 * count / of:.0f} % of"


def _commonest(values: Sequence[Any], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    """all generated images are PNG, 90 % of the real ones JPEG"""
    parts = []
    for found, name in zip(_split(values, y), (f"{ones} images", f"{zeros} ones"), strict=True):
        (value, count), *_ = Counter(found).most_common(1)
        parts.append(f"{_share(count, len(found))} the {name} are {value or 'without one'}")
    return ", ".join(parts)


def _format(values: Sequence[Features], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    containers = [str(value["container"]) for value in values]
    if len(set(containers)) > 1:
        return _commonest(containers, y, ones, zeros)
    return _feature(values, y, ones, zeros)


def _extension(values: Sequence[Features], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    return _commonest([str(value["extension"]) for value in values], y, ones, zeros)


def _size(values: Sequence[Features], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    sizes = [f"{value['width']:.0f}x{value['height']:.0f}" for value in values]
    most = Counter(_split(sizes, y)[0]).most_common(1)[0][1]
    if most > y.sum() / 2:
        return _commonest(sizes, y, ones, zeros)
    return _feature(values, y, ones, zeros)


def _tables(values: Sequence[Features], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    qualities = [f"{value['quality']:.0f}" for value in values]
    if len(set(qualities)) > 1:
        return "of JPEG quality, " + _commonest(qualities, y, ones, zeros)
    return _feature(values, y, ones, zeros)


def _border(values: Sequence[Features], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    shares = [_share(sum(any(v.values()) for v in found), len(found)) for found in _split(values, y)]
    return f"{shares[0]} the {ones} images have a border of one colour, {shares[1]} the {zeros} ones"


def _scale(values: Sequence[Features], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    shares = [_share(sum(v["enlarged"] > 1 for v in found), len(found)) for found in _split(values, y)]
    return f"{shares[0]} the {ones} images were upscaled, {shares[1]} the {zeros} ones"


def _caption(values: Sequence[str], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    counter = CountVectorizer(binary=True, min_df=2)
    try:
        found = counter.fit_transform(values).toarray()
    except ValueError:  # no word occurs twice
        return "the captions differ"
    word = int(np.abs(found[y == 1].mean(axis=0) - found[y == 0].mean(axis=0)).argmax())
    shares = [_share(int(found[y == label, word].sum()), int((y == label).sum())) for label in (1, 0)]
    named = counter.get_feature_names_out()[word]
    return f"the word {named!r} occurs in {shares[0]} the captions of {ones} images, {shares[1]} those of {zeros} ones"


def _feature(values: Sequence[Features], y: NDArray[np.float64], ones: str, zeros: str) -> str:
    """The single most informative feature."""
    vectorizer = DictVectorizer(sparse=False)
    matrix = vectorizer.fit_transform(values)

    def tells(i: int) -> tuple[float, bool]:
        area = auc(matrix[:, i], y)
        return abs(area - 0.5), area > 0.5

    telling = max(range(matrix.shape[1]), key=tells)
    name, column = vectorizer.get_feature_names_out()[telling], matrix[:, telling]
    if set(np.unique(column)) <= {0.0, 1.0}:
        shares = [_share(int(column[y == label].sum()), int((y == label).sum())) for label in (1, 0)]
        return f"{shares[0]} the {ones} images have {str(name).replace('=', ' ')}, {shares[1]} the {zeros} ones"
    medians = [float(np.median(column[y == label])) for label in (1, 0)]
    return f"{name} is {medians[0]:g} in the {ones} images, {medians[1]:g} in the {zeros} ones (medians)"


_DESCRIPTIONS: Mapping[str, Callable[[Sequence[Any], NDArray[np.float64], str, str], str]] = {
    "format": _format,
    "extension": _extension,
    "size": _size,
    "tables": _tables,
    "border": _border,
    "scale": _scale,
    "caption": _caption,
}
