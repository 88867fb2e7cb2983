"""Rendering a shard of captions against the plain loop: one image at a time, text encoded each time, saved in line.

    python tests/bench/render.py [--images 32] [--batch 32] [--out FILE.json]      # nano, on a CPU
    python tests/gpu/rendering.py                                                  # Stable Diffusion 3.5 large's size

Both draw the same prompts; the shard is the one that `data_gen/render.py` runs, its reading, writing and rejects
included. They are timed in turn in one process and medians are compared. There is no ceiling to state: both do the same
FLOPs, but for the empty prompt that the plain loop encodes again each time; what is saved are calls and waiting.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.generate import render_step
from vlm_detect.generate.caption_step import PHOTO_FEATURES
from vlm_detect.generate.choices import TwinKinds
from vlm_detect.generate.options import RenderConfig, Sampling
from vlm_detect.generate.render_step import RenderShard
from vlm_detect.generate.renderer import Renderer
from vlm_detect.jobs.shards import Plan, read_rejects, read_rows, write_shard
from vlm_detect.machine import machine_name
from vlm_detect.models.registry import resolve_id

THINGS = ("dog", "cat", "truck", "ship", "horse", "bird", "frog", "car")
COLOURS = ("red", "green", "blue", "white", "black", "brown", "grey", "yellow")


@dataclass(frozen=True)
class Config:
    images: int = field(default=32, metadata={"help": "Of a shard."})
    batch: int = field(default=32, metadata={"help": "Twins per batch."})
    repeats: int = field(default=5, metadata={"help": "Timed rounds; the medians are compared."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    torch.set_num_threads(1)
    sampling = Sampling(steps=12, guidance=6.0, max_sequence_length=12)
    renderer = Renderer(resolve_id("nano", "renderer"), sampling, "cpu")
    records = []
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), renderer, config.images, config.batch)
        for kind, plain in (("caption", job.plain_loop), ("vae", job.plain_vae)):
            ours = Work(job, kind)
            seconds = timed({"plain": plain, "ours": ours}, config.repeats)
            ratio = seconds["plain"] / seconds["ours"]
            print(f"{kind}: {ratio:.2f}x of the plain loop, {seconds}")
            records.append(
                {
                    "bench": "render",
                    "setting": {"kind": kind, "images": config.images, "batch": config.batch, "side": 32, "threads": 1},
                    "ratio": round(ratio, 3),
                    "ceiling": None,  # both do the same FLOPs; what is saved are calls, waiting and repeated text
                    "against": "plain loop",
                    "images_per_s": round(config.images / seconds["ours"], 3),
                    "command": " ".join(["python tests/bench/render.py", *argv]),
                    "commit": git_commit(),
                    "device": machine_name("cpu"),
                }
            )
    if config.out:
        write_json(config.out, records)


class Job:
    """So many captioned photos in a folder, and a renderer."""

    def __init__(self, folder: Path, renderer: Renderer, images: int, batch: int, side: int | None = None) -> None:
        self.folder, self.renderer, self.batch = folder, renderer, batch
        self.side = side or renderer.native_side
        self.prompts = [
            f"A {COLOURS[i % 8]} {THINGS[i // 8 % 8]} in front of a {COLOURS[(i + 3) % 8]} background."
            for i in range(images)
        ]
        self.captions = folder / "captions"
        rows = [self._row(i, prompt) for i, prompt in enumerate(self.prompts)]
        write_shard(self.captions, 0, rows, PHOTO_FEATURES, [])

    def _row(self, i: int, prompt: str) -> dict[str, Any]:
        coarse = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        side = self.side * 5 // 4
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        source = {"path_or_id": f"{i}.jpg", "format": "JPEG", "jpeg_quality": 90, "width": side, "height": side}
        about = {"id": f"{i:016x}", "group": f"{i:016x}", "caption": prompt, "caption_raw": prompt, "captioner": "none"}
        return about | {"image": {"bytes": buffer.getvalue(), "path": None}, "source": source}

    @property
    def size(self) -> dict[str, int]:
        return {"width": self.side, "height": self.side}

    @torch.inference_mode()
    def plain_loop(self, count: int | None = None) -> None:
        """What a short script does."""
        sampling = self.renderer.sampling
        for i, prompt in enumerate(self.prompts[:count]):
            output = self.renderer.pipeline(
                prompt,
                **self.size,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                max_sequence_length=sampling.max_sequence_length,
                generator=torch.Generator("cpu").manual_seed(i),
            )
            output.images[0].save(self.folder / f"{i}.png")

    def plain_vae(self, count: int | None = None) -> None:
        for i, row in enumerate(list(read_rows(self.captions, 0))[:count]):
            photo = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
            (twin,) = self.renderer.reconstruct([photo.resize((self.side, self.side), Image.Resampling.LANCZOS)])
            twin.save(self.folder / f"{i}.png")

    def shard(self, kind: str, out: Path) -> None:
        """The shard as data_gen/render.py runs it, with the renderer that is already here."""
        config = RenderConfig(
            generator="bench", twins=TwinKinds(kind), render_size=self.side, aspect="square", render_batch=self.batch
        )
        plan = Plan("render", len(self.prompts), len(self.prompts), "bench", {})
        with mock.patch.object(render_step, "_load_renderer", return_value=("bench", None, self.renderer)):
            RenderShard(self.captions, config, plan, out)(0)
        failed = [reject for reject in read_rejects(out, 0) if reject.reason == "renderer_failed"]
        assert not failed, failed[0]


class Work:
    """`job.shard(kind)` into a folder that is new at each call."""

    def __init__(self, job: Job, kind: str) -> None:
        self.job, self.kind, self.calls = job, kind, 0

    def __call__(self) -> None:
        self.calls += 1
        self.job.shard(self.kind, self.job.folder / f"{self.kind}{self.calls}")


def flops_of(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def timed(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turns so that what else the machine does meets all alike; one round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    run_main(main)
