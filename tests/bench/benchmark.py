"""The benchmark's free answers against the plain loop, at a geometry whose tower-to-text FLOP ratio is the real one.

    python tests/bench/benchmark.py [--prompts 6 2] [--sizes 256x256 760x500] [--images 4] [--out FILE.json]

Both sides answer the same items about the same image files, greedily:

- plain: as published scripts do, one item at a time: open the image, process it, one `generate` of batch one;
- ours: what `eval/vqa_benchmark.py` runs, from the benchmark's items to its results.

Sides take turns in one process with one thread, and are timed by the processor time that they use, so that what else
runs on the machine counts for neither. The ratio is the median over the rounds. Equal answers are a condition. The
ceiling is what the FLOP count allows when nothing else costs time: the image read once in place of once a prompt. An
image that fits one crop comes as two equal ones; both sides read one of them, and `crops` counts what is read.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from engine import make_vlm
from flops import crops_read, flop_ratio, text_flops, tower_flops
from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.items import open_image
from vlm_detect.benchmark.score import score
from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import generate_plain
from vlm_detect.machine import machine_name
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.records import Item

NEW_TOKENS = 2  # "Yes." and the end of text


@dataclass(frozen=True)
class Config:
    prompts: list[int] = field(default_factory=lambda: [6, 2], metadata={"help": "Items an image."})
    sizes: list[str] = field(default_factory=lambda: ["256x256", "760x500"], metadata={"help": "Of the images."})
    images: int = field(default=4, metadata={"help": "Images of each size."})
    repeats: int = field(default=3, metadata={"help": "Timed rounds; the median ratio counts."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vlm = make_vlm()
    print(f"tower (10 crops) to LoRA step: {flop_ratio(vlm.model.config):.2f}, the real model's is 1.66")
    records = []
    with tempfile.TemporaryDirectory() as folder:
        for size in config.sizes:
            width, height = map(int, size.split("x"))
            paths = write_images(Path(folder), width, height, config.images)
            for prompts in config.prompts:
                records.append(measure(vlm, paths, prompts, config.repeats, argv))
    if config.out:
        write_json(config.out, records)


def write_images(folder: Path, width: int, height: int, count: int) -> list[Path]:
    rng = np.random.default_rng(width)
    paths = [folder / f"{width}x{height}_{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


def measure(vlm: MoondreamVLM, paths: list[Path], prompts: int, repeats: int, argv: list[str]) -> dict:
    # One token a byte: nine bytes and the template are the 14 tokens that "Is this image AI-generated?" has.
    items = [
        Item(f"{path.name}:{i}", "true_false", (str(path),), f"Is it {i}? ", "Yes.")
        for path in paths
        for i in range(prompts)
    ]
    benchmark = Benchmark("bench", items, open_image, "")

    def plain() -> list[str]:
        asked = ((open_image(item.images[0]), vlm.question_ids(item.question)) for item in items)
        return [generate_plain(vlm, image, prompt, NEW_TOKENS) for image, prompt in asked]

    def ours() -> list[str]:
        engine = Engine(vlm, cache_bytes=0)
        batches = score(benchmark, engine, ask=Ask, logprob=False, max_new_tokens=NEW_TOKENS)
        answers = {result.id: result.answer for batch in batches for result in batch}
        return [answers[item.id] for item in items]

    assert plain() == ours(), "the two sides give different answers"
    ratio = statistics.median(seconds(plain) / seconds(ours) for _ in range(repeats))
    crops = crops_read(vlm.prepare([open_image(paths[0])])["pixel_values"].shape[1])
    ceiling = flop_ceiling(vlm, crops, prompts, len(vlm.question_ids(items[0].question)))
    print(
        f"{crops} crops read, {prompts} prompts an image: {ratio:.2f}x of the plain loop (FLOP ceiling {ceiling:.2f})"
    )
    return {
        "bench": "benchmark",
        "setting": {"crops": crops, "questions": prompts, "images": len(paths), "new_tokens": NEW_TOKENS, "threads": 1},
        "ratio": round(ratio, 3),
        "ceiling": round(ceiling, 3),
        "against": "plain loop: one item, one generate, batch one",
        "command": " ".join(["python tests/bench/benchmark.py", *argv]),
        "commit": git_commit(),
        "device": machine_name("cpu"),
    }


def seconds(side: Callable[[], list[str]]) -> float:
    started = time.process_time()
    side()
    return time.process_time() - started


def flop_ceiling(vlm: MoondreamVLM, crops: int, prompts: int, prompt_length: int) -> float:
    config = vlm.model.config
    prefix = 1 + config.vision_config.num_image_tokens
    image = tower_flops(config, crops) + text_flops(config, prefix, prefix, 0)
    question = text_flops(config, prompt_length + NEW_TOKENS - 1, prefix + prompt_length, NEW_TOKENS)
    return prompts * (image + question) / (image + prompts * question)


if __name__ == "__main__":
    run_main(main)
