"""An epoch of a CNN's training: the recipe's way against a plain loop over a DataLoader that decodes with PIL.

    python tests/bench/cnn_epoch.py [--archs mai fakenet2] [--images 4000] [--out eval/results/bench/cnn_epoch.json]

Both train the same network on the same images with the same flips, one thread, timed in turn in a process each:

- plain: a Dataset that opens each JPEG with PIL, flips it by Pillow and makes a float tensor; a DataLoader that stacks
  them; a float32 step. What a tutorial does.
- ours: pixels decoded once, gathered and flipped in batches of uint8 in channels-last order, normalised with the batch;
  a bfloat16 step where the CPU has it; freed memory kept. The time of decoding once is given separately.

"batches alone" leaves the network out. The ceiling is the ratio if our batches cost nothing. CPU seconds are compared.
"""

from __future__ import annotations

import functools
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tests.cnn.toys import image_row, save_rows
from vlm_detect.cnn.batches import Batches, GroupSampler
from vlm_detect.cnn.pixels import decode_split
from vlm_detect.cnn.tasks import heads_of, targets_of
from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import run_main
from vlm_detect.images.stored import undecoded
from vlm_detect.machine import computes_in_bfloat16, keep_freed_memory
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.model import CnnForDetection, head_loss, new_model

BATCH = 128
FAST_BF16 = computes_in_bfloat16("cpu")


@dataclass(frozen=True)
class Config:
    archs: list[str] = field(default_factory=lambda: ["mai", "fakenet2"])
    images: int = field(default=4000, metadata={"help": "Images in the epoch, 32x32 JPEG."})
    repeats: int = field(default=3, metadata={"help": "Timed rounds; the medians are compared."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


class PlainImages(Dataset[tuple[Tensor, int]]):
    """One decoded image at a time."""

    def __init__(self, files: list[bytes], targets: np.ndarray) -> None:
        self.files, self.targets = files, targets

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(io.BytesIO(self.files[index])).convert("RGB")
        if np.random.rand() < 0.5:
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
        return (pixels - 0.5) / 0.5, int(self.targets[index])


class Way:
    """Either way to an epoch, in a process of its own: what keeps freed memory must not help the other."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, folder
        self.workers = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def epoch_s(self, arch: str | None) -> float:
        """CPU seconds of one epoch; without `arch`, of its batches alone."""
        return self.workers.submit(run_epoch, self.name, self.folder, arch).result()


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder), config.images)
        plain, ours = Way("plain", folder), Way("ours", folder)
        data_s = 0.0
        for arch in (None, *config.archs):
            # in turn, and one round of each before the timed ones
            rounds = [(plain.epoch_s(arch), ours.epoch_s(arch)) for _ in range(config.repeats + 1)][1:]
            plain_s, ours_s = (statistics.median(times) for times in zip(*rounds, strict=True))
            data_s = data_s or ours_s
            name = arch or "batches alone"
            ceiling = plain_s / max(ours_s - data_s, 1e-9) if arch else None
            print(f"{name}: plain {plain_s:.2f} s, ours {ours_s:.2f} s for {config.images}: {plain_s / ours_s:.2f}x")
            records.append(
                {
                    "bench": "cnn_epoch",
                    "setting": {"arch": name, "images": config.images, "batch": BATCH, "size": 32, "bf16": FAST_BF16},
                    "ratio": round(plain_s / ours_s, 3),
                    "ceiling": round(ceiling, 3) if ceiling else None,
                    "seconds": {"plain": round(plain_s, 3), "ours": round(ours_s, 3)},
                    "against": "a DataLoader that decodes with PIL, float32 steps",
                    "command": " ".join(["python tests/bench/cnn_epoch.py", *argv]),
                    "commit": git_commit(),
                    "device": "cpu, 1 thread",
                }
            )
        for way in (plain, ours):
            way.workers.shutdown()
    if config.out:
        write_json(config.out, records)


def make_dataset(folder: Path, n: int) -> None:
    """An image dataset of `n` JPEGs."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        row = image_row(i, ("real", "generated")[i % 2], rng)
        buffer = io.BytesIO()
        Image.open(io.BytesIO(row["image"]["bytes"])).save(buffer, "JPEG", quality=75)
        rows.append({**row, "image": {"bytes": buffer.getvalue(), "path": None}})
    save_rows(folder / "set", "train", rows)


@functools.cache
def loader_of(way: str, folder: str) -> tuple[Any, Callable[[Any], tuple[Tensor, Tensor]]]:
    """(DataLoader, what makes (pixels, targets) of its batch)."""
    torch.set_num_threads(1)
    shots = decode_split(f"{folder}/set", "train", size=32, cache=f"{folder}/{way}")
    heads = heads_of(shots, "real_fake")
    targets = targets_of(shots, heads, "real_fake")
    if way == "plain":
        rows = undecoded(open_dataset(f"{folder}/set")["train"])
        images = PlainImages([cell["bytes"] for cell in rows["image"]], targets["verdict"])
        return DataLoader(images, BATCH, shuffle=True, drop_last=True), tuple
    keep_freed_memory()
    batches = Batches(shots, targets, augment=("flip",))
    loader: Any = DataLoader(
        batches, BATCH, sampler=GroupSampler(batches.groups, 0), collate_fn=lambda batch: batch, drop_last=True
    )

    def read(asked: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        pixels, wanted = batches.batch(asked["index"], int(asked["epoch"]))
        return pixels, wanted["verdict"]

    return loader, read


@functools.cache
def model_of(way: str, arch: str) -> tuple[CnnForDetection, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = new_model(CnnConfig(arch=arch, image_size=32, heads={"verdict": ["real", "generated"]})).train()
    return model, torch.optim.AdamW(model.parameters(), 1e-3)


def run_epoch(way: str, folder: str, arch: str | None) -> float:
    loader, read = loader_of(way, folder)
    model, optimizer = model_of(way, arch) if arch else (None, None)
    started = time.process_time()  # one thread: the same as wall time on an idle machine
    for batch in loader:
        pixels, targets = read(batch)
        if model is None or optimizer is None:
            continue
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "ours" and FAST_BF16):
            logits = (model if way == "ours" else model.logits_of)(pixels)["verdict"]
        loss = head_loss(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.process_time() - started


if __name__ == "__main__":
    run_main(main)
