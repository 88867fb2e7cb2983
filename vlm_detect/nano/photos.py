"""The photographs that the nano family is trained on: small, real, with a class name; 5,000 of them are held out.

Only real photographs are ever loaded: a model that has seen generated images cannot serve as the base that a detector
is compared with. Byte-identical files are dropped first; then the files are ordered by the SHA-256 of their bytes, and
the first ``HELD_OUT`` of that order are held out. The rule needs no list and gives the same split everywhere.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm_detect.data.image_sets import CIFAR_CLASSES
from vlm_detect.errors import UserError
from vlm_detect.images.decode import decode_image

HELD_OUT = 5000
SPLIT_RULE = f"byte-identical files dropped, files ordered by SHA-256 of their bytes, the first {HELD_OUT:,} held out"


@dataclass(frozen=True)
class Photos:
    """Photographs in memory: ``images`` (N, H, W, 3) uint8 RGB and ``labels`` (N,) indices into ``CIFAR_CLASSES``."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def split(self) -> tuple[Photos, Photos]:
        """(training, held out); the photographs are already ordered by their hashes."""
        held_out = min(HELD_OUT, len(self) // 5)
        return (
            Photos(self.images[held_out:], self.labels[held_out:]),
            Photos(self.images[:held_out], self.labels[:held_out]),
        )


def default_source() -> str:
    """The development copy in ``$VLM_DETECT_DATA`` if there is one, else CIFAR-10 on the Hub."""
    local = Path(os.environ.get("VLM_DETECT_DATA", "")) / "cifake"
    return str(local) if "VLM_DETECT_DATA" in os.environ and local.is_dir() else "uoft-cs/cifar10"


def load_photos(source: str, cache: Path) -> Photos:
    """Every real photograph of ``source``, a folder of ``train-*.parquet`` or a Hub id; decoded once, to ``cache``."""
    if cache.exists():
        with np.load(cache) as arrays:
            return Photos(arrays["images"], arrays["labels"])
    by_hash = {hashlib.sha256(data).digest(): (data, label) for data, label in _real_files(source)}
    files = [by_hash[digest] for digest in sorted(by_hash)]
    images = np.stack([np.asarray(decode_image(data).image) for data, _ in files])
    photos = Photos(images, np.array([CIFAR_CLASSES.index(label) for _, label in files]))
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.savez(cache, images=photos.images, labels=photos.labels)
    return photos


def _real_files(source: str) -> list[tuple[bytes, str]]:
    """(file bytes, class name) of each real photograph."""
    import datasets

    folder = Path(source)
    if folder.is_dir():  # CIFAKE: `label` is real or fake, `object_class` the content
        files = sorted(str(path) for path in folder.glob("train-*.parquet"))
        if not files:
            raise UserError(f"--data {source}: no train-*.parquet of CIFAKE in it")
        rows = datasets.load_dataset("parquet", data_files=files, split="train")
        rows = rows.filter(lambda label: label == "real", input_columns="label")
        names, image_column = rows["object_class"], "image"
    else:  # CIFAR-10: `label` is the class, and every row is a photograph
        try:
            rows = datasets.load_dataset(source, split="train")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"--data {source}: no folder here, and the Hub does not give it ({reason})") from error
        names, image_column = [rows.features["label"].int2str(label) for label in rows["label"]], "img"
    undecoded = rows.cast_column(image_column, datasets.Image(decode=False))[image_column]
    return [(image["bytes"], name) for image, name in zip(undecoded, names, strict=True)]
