"""Batches of images through a detector: decoded ahead in threads, judged, explained where asked.

    for batch in batches(read_items(items), 16):
        ...
    for size, judged in judge_batches(detector, batches, Explained(wanted=True)): ...

An image that cannot be read or decoded costs its row alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from vlm_detect.ahead import ahead
from vlm_detect.apps.scan_rows import Judged, row_of
from vlm_detect.data.sources import SourcePhoto
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.isolated import shared_decoder
from vlm_detect.infer.detector import Detector, Verdict
from vlm_detect.infer.picture import Picture, decode_picture, picture_of

_DECODERS = 4

Photo = SourcePhoto | tuple[str, ImageRejected]  # or the name of one that could not be read, and why
Key = tuple[str, str]  # (name, sha256); the sha256 is empty of what could not be read
Decode = Callable[[bytes], Picture]


@dataclass(frozen=True)
class Batch:
    """Images to judge, with their keys, of `size` that were given."""

    size: int
    photos: Sequence[tuple[Key, Photo]]


@dataclass(frozen=True)
class Explained:
    """Which verdicts are explained: all, or the `flagged` that are not real; and whether by confirmed reasons alone."""

    wanted: bool = False
    only_confirmed: bool = False
    flagged: bool = False

    def of(self, verdict: Verdict) -> bool:
        return self.wanted or (self.flagged and verdict.label != "real")


def batches(photos: Iterable[Photo], size: int) -> Iterator[list[Photo]]:
    batch: list[Photo] = []
    for photo in photos:
        batch.append(photo)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def key_of(photo: Photo) -> Key:
    if isinstance(photo, SourcePhoto):
        return photo.path_or_id, hashlib.sha256(photo.data).hexdigest()
    return photo[0], ""


def decode_isolated(data: bytes) -> Picture:
    """As `decode_picture`, where a decoder that crashes, hangs or takes all memory is ended, and no more than it."""
    with shared_decoder() as decoder:
        return picture_of(decoder.decode(data, with_facts=True))


def judge_batches(
    detector: Detector, given: Iterable[Batch], explained: Explained, decode: Decode = decode_picture
) -> Iterator[tuple[int, list[Judged]]]:
    """(the size of a batch, its judged images); the next one is decoded and prepared while one is judged."""
    with ThreadPoolExecutor(_DECODERS) as pool:

        def decoded(batch: Batch) -> tuple[Batch, list[Picture | str]]:
            pictures = list(pool.map(partial(_decode, detector, decode), (photo for _, photo in batch.photos)))
            detector.prepare_ahead([picture for picture in pictures if isinstance(picture, Picture)])
            return batch, pictures

        for batch, pictures in ahead(decoded, given, threads=1):
            keys = [key for key, _ in batch.photos]
            yield batch.size, list(_judge(detector, keys, pictures, explained))


def _judge(
    detector: Detector, keys: Sequence[Key], pictures: Sequence[Picture | str], explained: Explained
) -> Iterator[Judged]:
    verdicts = detector.judge([picture for picture in pictures if isinstance(picture, Picture)])
    chosen = [verdict for verdict in verdicts if explained.of(verdict)]
    written = iter(detector.explanations(chosen, only_confirmed=explained.only_confirmed) if chosen else ())
    explanations = [next(written) if explained.of(verdict) else None for verdict in verdicts]
    found = zip(verdicts, explanations, strict=True)
    for key, picture in zip(keys, pictures, strict=True):
        verdict, explanation = next(found) if isinstance(picture, Picture) else (None, None)
        row = row_of(key, verdict or str(picture), explanation, detector.name)
        yield Judged(row, verdict, explanation)


def _decode(detector: Detector, decode: Decode, photo: Photo) -> Picture | str:
    """The picture, or why the model cannot read it."""
    if not isinstance(photo, SourcePhoto):
        return str(photo[1])
    try:
        picture = decode(photo.data)
    except ImageRejected as error:
        return str(error)
    return f"shape: {refusal}" if (refusal := detector.refusal(picture)) else picture
