"""Images decoded once: one memory-mapped uint8 array, and in a file next to it what is known of each image.

    shots = decode_split("data/cifake", "train", size=32)     # the second time in a second
    shots.images                                              # (N, S, S, 3) uint8, memory-mapped

A photo that several twins were made from stands in it once. An image that cannot be read, or is smaller than the
square, is left out; `rejects` says which and why. Decoding goes through `vlm_detect.images.decode`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.fingerprint import generate_fingerprint

from vlm_detect.cnn.options import DEFAULT_CACHE
from vlm_detect.config import make_readable, write_json
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError
from vlm_detect.images.decode import DECODER, ImageRejected, decode_image
from vlm_detect.images.stored import StoredImage, undecoded
from vlm_detect.machine import cpu_cores
from vlm_detect.models.cnn.squares import Fit, to_square
from vlm_detect.progress import progress
from vlm_detect.records import label_of_twin

_FORM = 1  # of the files below; another number has older ones rewritten
_PROBED = 500  # images whose header is read to find out the common size


@dataclass(frozen=True)
class Entry:
    """What a dataset says of one image."""

    label: str  # real, generated, edited
    generator: str
    object_class: str
    group: str
    id: str


@dataclass(frozen=True)
class Shots:
    """Images of one split with their entries, in the dataset's order."""

    images: np.ndarray  # (N, S, S, 3) uint8
    entries: list[Entry]
    rejects: list[str]

    def __len__(self) -> int:
        return len(self.entries)

    def column(self, name: str) -> np.ndarray:
        """(N,) of str: label, generator, object_class, group or id of each image."""
        return np.array([getattr(entry, name) for entry in self.entries], dtype=str)

    def take(self, places: np.ndarray) -> Shots:
        return Shots(self.images[places], [self.entries[place] for place in places], [])


def decode_split(
    data: str, split: str, *, size: int, fit: Fit = "crop", limit: int | None = None, cache: str | Path = DEFAULT_CACHE
) -> Shots:
    """The images of one split as squares of `size` pixels; from `cache` where they were decoded before.

    Raises:
        UserError: for a missing split, or where no image is left.
    """
    opened = open_dataset(data)
    if split not in opened or not len(opened[split]):
        raise UserError(f"{data} has no {split} split (it has {', '.join(opened)})")
    rows = undecoded(opened[split])
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: at least 1")
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    # follows from the dataset's files and what was done to their rows
    facts = {"rows": generate_fingerprint(rows), "size": size, "fit": fit, "form": _FORM, "decoder": DECODER}
    stem = Path(cache) / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    if not stem.with_suffix(".json").is_file():
        _decode(rows, stem, size, fit, f"{Path(data).name}/{split}")
    record = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    images = np.load(stem.with_suffix(".npy"), mmap_mode="c")
    shots = Shots(images, [Entry(*values) for values in record["entries"]], record["rejects"])
    if shots.rejects:
        reasons = Counter(reject.partition(": ")[2].partition(":")[0] for reject in shots.rejects)
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        print(f"{data} ({split}): {len(shots.rejects)} images left out ({listed}), see {stem.with_suffix('.json')}")
    if not len(shots):
        raise UserError(
            f"{data}: no image of its {split} split can be used at {size} pixels ({listed}); give a smaller "
            "--image_size, or --fit resize"
        )
    return shots


def common_side(data: str, split: str = "train") -> int:
    """The commonest shorter side, in pixels, of the first images of a split."""
    opened = open_dataset(data)
    if split not in opened:
        raise UserError(f"{data} has no {split} split (it has {', '.join(opened)})")
    sides = Counter(min(stored.size) for _, stored in islice(_cells(undecoded(opened[split])), _PROBED))
    return sides.most_common(1)[0][0]


def _decode(rows: Dataset, stem: Path, size: int, fit: Fit, name: str) -> None:
    """Write `stem`.npy and, last, `stem`.json."""

    def pixels(cell: tuple[Entry, StoredImage]) -> tuple[Entry, np.ndarray | str]:
        entry, stored = cell
        try:
            return entry, np.asarray(to_square(decode_image(stored.content).image, size, fit))
        except ImageRejected as rejected:
            return entry, f"{entry.id}: {rejected}"

    stem.parent.mkdir(parents=True, exist_ok=True)
    entries, rejects = [], []
    handle, temporary = tempfile.mkstemp(dir=stem.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            shape = (2 * len(rows), size, size, 3)  # as many as there may be; the header is written again at the end
            _write_header(file, shape)
            with ThreadPoolExecutor(cpu_cores()) as pool, progress(desc=f"decode {name}", unit="img") as bar:
                cells = _cells(rows)
                while chunk := list(islice(cells, 1024)):  # bounds what waits in memory
                    for entry, found in pool.map(pixels, chunk):
                        if isinstance(found, str):
                            rejects.append(found)
                        else:
                            file.write(found.tobytes())
                            entries.append([entry.label, entry.generator, entry.object_class, entry.group, entry.id])
                    bar.update(len(chunk))
            file.seek(0)
            _write_header(file, (len(entries), *shape[1:]))
        make_readable(Path(temporary))
        Path(temporary).replace(stem.with_suffix(".npy"))
    finally:
        Path(temporary).unlink(missing_ok=True)
    write_json(stem.with_suffix(".json"), {"entries": entries, "rejects": rejects})


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    """numpy's header for uint8; it is padded to 64 bytes, so one for fewer images is as long."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _cells(rows: Dataset) -> Iterator[tuple[Entry, StoredImage]]:
    """Every image once: of a pair dataset each photo, where it is real, and each twin."""
    if "twin" not in rows.column_names:
        for index, row in enumerate(rows):
            yield _entry(row, row["label"], str(index)), StoredImage.from_cell(row["image"])
        return
    seen: set[str] = set()
    for row in rows:
        photo = StoredImage.from_cell(row["image"])
        if row["image_label"] == "real" and photo.key not in seen:
            seen.add(photo.key)
            yield Entry("real", "", "", row["group"], f"{row['pair_id']}/image"), photo
        yield _entry(row, label_of_twin(row["kind"]), f"{row['pair_id']}/twin"), StoredImage.from_cell(row["twin"])


def _entry(row: Mapping[str, Any], label: str, id_: str) -> Entry:
    generator = (row.get("generator") or "") if label != "real" else ""
    return Entry(label, generator, row.get("object_class") or "", row["group"], id_)
