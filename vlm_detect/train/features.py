"""Feature cache: image embeddings of a frozen tower, computed once and read in every epoch.

    features = Features.build(vlm, images, Path("runs/features"))     # a separate, resumable pass
    vlm.join(features.read(keys))                                     # (B, N, D) from memory-mapped files

The tower takes most of a training step (6.7 TFLOP of 10.7 for a photo of ten crops), and while it is frozen an image's
embeddings never change. The name of a cache folder is a hash of everything they depend on: the tower's weights, the
preprocessing, the dtype and the decoded images. A stale cache has another name and is never read.

Files of `CHUNK` images are written atomically, so an interrupted pass resumes with the first missing file; process p of
n computes every n-th file. `feature_shards.py` has them computed before a training, by many workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
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

CHUNK = 256  # images per file
_BATCH = 16  # images through the tower at once


@dataclass(frozen=True)
class Features:
    """Embeddings on disk: `places` maps an image's key to its file and index."""

    folder: Path
    places: dict[str, tuple[str, int]]

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
        return cls(files.folder, {key: (_name(i // CHUNK), i % CHUNK) for i, key in enumerate(files.keys)})

    def read(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """What `VLM.read` gave for the images with these keys, each (B, ...)."""
        found: dict[str, list[torch.Tensor]] = {}
        for key in keys:
            name, index = self.places[key]
            try:
                with safe_open(self.folder / name, framework="pt") as file:
                    check_schema("features", file.metadata() or {}, self.folder / name)
                    for part in file.keys():  # noqa: SIM118  not a dict
                        found.setdefault(part, []).append(file.get_slice(part)[index])
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{self.folder / name} cannot be read ({error}): delete it, and the next run will recreate it"
                ) from error
        return {part: torch.stack(tensors) for part, tensors in found.items()}


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
            UserError: if the tower is trained, because its embeddings then change with every step, and for a family
            that encodes image and text jointly.
        """
        if not vlm.has_fixed_prefix:
            raise UserError(
                f"--cache_features: only embeddings of moondream and LLaVA models can be cached, not of "
                f"{vlm.name}; omit it"
            )
        if trained := [name for name, p in vlm.model.named_parameters() if p.requires_grad and is_vision(name)]:
            raise UserError(
                f"--cache_features needs a frozen tower, and {len(trained)} of its tensors are trained: remove +vision "
                "from --lora_targets, or train without the cache"
            )
        places: dict[str, int] = {}
        for i in range(len(images)):
            places.setdefault(images[i].key, i)
        folder = root / _fingerprint(vlm, list(places))
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
    parts: dict[str, list[torch.Tensor]] = {}
    ready = PreparedAhead(vlm)

    def opened(batch: Sequence[StoredImage]) -> list[Image.Image]:
        decoded = [image.open() for image in batch]
        ready.begin(decoded)
        return decoded

    for decoded in ahead(opened, batches, threads=1):
        for image in at_once.run(decoded, lambda some: _read(vlm, ready.batch(some), len(some))):
            for name, tensor in image.items():
                parts.setdefault(name, []).append(tensor)
        count(len(decoded))
    vlm.model.train(training)
    partial = path.with_suffix(
        f".{uuid4().hex}.partial"
    )  # unique to this process: another run may write the same cache
    try:
        stacked = {name: torch.stack(tensors) for name, tensors in parts.items()}
        save_file(stacked, partial, {"schema": str(SCHEMAS["features"])})
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


def _read(vlm: VLM, prepared: Any, n_images: int) -> list[dict[str, torch.Tensor]]:
    """What `VLM.read` gives for each of the prepared images, on the CPU."""
    read = {name: tensor.cpu() for name, tensor in vlm.read(prepared).items()}
    return [{name: tensor[i] for name, tensor in read.items()} for i in range(n_images)]


def _fingerprint(vlm: VLM, keys: Sequence[str]) -> str:
    """A hash of everything that the embeddings depend on."""
    digest = hashlib.sha256()
    for name, tensor in vlm.model.state_dict().items():
        if is_vision(name):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    others = [vlm.read_by] if vlm.read_by else []
    digest.update(json.dumps([_preprocessing(vlm), CHUNK, list(keys), *others], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _preprocessing(vlm: VLM) -> dict[str, object]:
    return vlm.processor.image_processor.to_dict()
