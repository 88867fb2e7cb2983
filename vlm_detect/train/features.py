"""Feature cache: image embeddings of a frozen tower, computed once and read in every epoch.

    features = Features.build(vlm, images, Path("runs/features"))     # a separate, resumable pass
    vlm.join(features.read(keys))                                     # as `vlm.encode`, from memory-mapped files

The tower takes most of a training step (6.7 TFLOP of 10.7 for a photo of ten crops), and while it is frozen an image's
embeddings never change. The name of a cache folder is a hash of everything they depend on: the tower's weights, the
preprocessing, the dtype and the decoded images. A stale cache has another name and is never read.

Files of `CHUNK` images are written atomically, so an interrupted pass resumes with the first missing file; process p of
n computes every n-th file. `feature_shards.py` has them computed before a training, by many workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlm_detect.ahead import ahead
from vlm_detect.config import make_readable
from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage
from vlm_detect.infer.batch_size import BatchSize, images_that_fit
from vlm_detect.infer.prepared import PreparedAhead
from vlm_detect.models.base import VLM
from vlm_detect.models.parts import is_vision
from vlm_detect.progress import progress
from vlm_detect.schema import SCHEMAS, check_schema
from vlm_detect.train.failures import is_full_disk
from vlm_detect.train.ragged import packed, unpacked
from vlm_detect.train.weights_read import WeightsRead

CHUNK = 256  # images per file
_BATCH = 16  # images through the tower at once


@dataclass(frozen=True)
class Features:
    """Embeddings on disk: `places` maps an image's key to its file and index.

    `stacked`: all images have one prefix, and `read` gives their tensors as one.
    """

    folder: Path
    places: dict[str, tuple[str, int]]
    stacked: bool

    @classmethod
    def build(
        cls, vlm: VLM, images: Sequence[StoredImage], root: Path, *, process: int = 0, n_processes: int = 1
    ) -> Features:
        """Compute this process's part of the missing files under `root`; all processes must finish before reading.

        Raises `UserError` as `FeatureFiles.plan` does.
        """
        files = FeatureFiles.plan(vlm, images, root)
        missing = [number for number in range(process, len(files), n_processes) if not files.is_written(number)]
        total = sum(files.images_in(number) for number in missing)
        with progress(desc="image embeddings", total=total, unit="img", quiet=process > 0) as bar:
            for number in missing:
                files.write(number, bar.update)
        places = {key: (_name(i // CHUNK), i % CHUNK) for i, key in enumerate(files.keys)}
        return cls(files.folder, places, stacked=vlm.has_fixed_prefix)

    def read(self, keys: Sequence[str]) -> Any:
        """What `VLM.read` gave for the images with these keys, on the CPU."""
        each = [self._read_one(*self.places[key]) for key in keys]
        if not self.stacked:
            return each
        return {name: torch.stack([image[name] for image in each]) for name in each[0]}

    def _read_one(self, file_name: str, index: int) -> dict[str, Any]:
        path = self.folder / file_name
        try:
            with safe_open(path, framework="pt") as file:
                check_schema("features", file.metadata() or {}, path)
                return unpacked(file, index)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it, and the next run will recreate it") from error


@dataclass(frozen=True)
class FeatureFiles:
    """The files of a cache, written or not. `places`: the index in `images` of each key, in the order of the files."""

    folder: Path
    vlm: VLM
    images: Sequence[StoredImage]
    places: dict[str, int]

    @classmethod
    def plan(cls, vlm: VLM, images: Sequence[StoredImage], root: Path) -> FeatureFiles:
        """The files for `images`, each once, in a folder under `root`, which is created.

        Raises:
            UserError: if the tower is trained, because its embeddings then change with every step, and for a model
            whose embeddings cannot be computed apart.
        """
        if reason := vlm.features_refusal():
            raise UserError(f"--cache_features: {vlm.name} needs its pixels in every step: {reason}; omit the flag")
        weights = _weights_read(vlm)
        if trained := [name for name, p in vlm.model.named_parameters() if p.requires_grad and name in weights]:
            raise UserError(
                f"--cache_features needs a frozen tower, and {len(trained)} of the tensors that it reads are trained "
                f"({trained[0]}): remove +vision from --lora_targets, give --train_connector False, or train without "
                "the cache"
            )
        places: dict[str, int] = {}
        for i in range(len(images)):
            places.setdefault(images[i].key, i)
        folder = root / _fingerprint(vlm, weights, list(places))
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, vlm, images, places)

    @property
    def keys(self) -> list[str]:
        return list(self.places)

    def __len__(self) -> int:
        return -(-len(self.places) // CHUNK)

    def images_in(self, number: int) -> int:
        """How many images are in this file; 0 if it is none of them."""
        return len(range(len(self.places))[number * CHUNK : (number + 1) * CHUNK])

    def is_written(self, number: int) -> bool:
        return (self.folder / _name(number)).exists()

    def write(self, number: int, count: Callable[[int], Any]) -> None:
        """Compute this file; `count` is called with the number of images of each finished batch."""
        chunk = self.keys[number * CHUNK : (number + 1) * CHUNK]
        _write(self.vlm, [self.images[self.places[key]] for key in chunk], self.folder / _name(number), count)


def _name(number: int) -> str:
    return f"features-{number:05d}.safetensors"


@torch.inference_mode()
def _write(vlm: VLM, images: Sequence[StoredImage], path: Path, count: Callable[[int], Any]) -> None:
    training = vlm.model.training
    vlm.model.eval()
    at_once = BatchSize(_BATCH, lambda: images_that_fit(vlm))
    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    each: list[dict[str, Any]] = []
    ready = PreparedAhead(vlm)

    def opened(batch: Sequence[StoredImage]) -> list[Image.Image]:
        decoded = [image.open() for image in batch]
        ready.begin(decoded)
        return decoded

    for decoded in ahead(opened, batches, threads=1):
        each += at_once.run(decoded, lambda some: _read(vlm, ready.batch(some), len(some)))
        count(len(decoded))
    vlm.model.train(training)
    partial = path.with_suffix(
        f".{uuid4().hex}.partial"
    )  # unique to this process: another run may write the same cache
    try:
        save_file(packed(each), partial, {"schema": str(SCHEMAS["features"])})
        make_readable(partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        if not is_full_disk(error):
            raise
        raise UserError(
            f"no space is left on the disk of {path.parent}: free some and run the same command again to resume, "
            "or give another --features_dir"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _read(vlm: VLM, prepared: Any, n_images: int) -> list[dict[str, Any]]:
    """What `VLM.read` gives for each of the prepared images, on the CPU."""
    read = vlm.read(prepared)
    each = (
        [{name: tensor[i] for name, tensor in read.items()} for i in range(n_images)] if vlm.has_fixed_prefix else read
    )
    return [{name: torch.as_tensor(value).cpu() for name, value in image.items()} for image in each]


@torch.inference_mode()
def _weights_read(vlm: VLM) -> set[str]:
    """The names of the tensors that the embeddings depend on."""
    with WeightsRead(vlm.model) as watched:
        vlm.read(vlm.prepare([Image.new("RGB", (64, 48))]))
    return watched.names | {name for name in vlm.model.state_dict() if is_vision(name)}


def _fingerprint(vlm: VLM, weights: Container[str], keys: Sequence[str]) -> str:
    """A hash of everything that the embeddings depend on."""
    digest = hashlib.sha256()
    for name, tensor in vlm.model.state_dict().items():
        if name in weights:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    others = [vlm.read_by] if vlm.read_by else []
    digest.update(json.dumps([_preprocessing(vlm), CHUNK, list(keys), *others], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _preprocessing(vlm: VLM) -> dict[str, object]:
    return vlm.processor.image_processor.to_dict()
