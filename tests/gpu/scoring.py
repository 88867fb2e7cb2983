"""Benchmark questions and captions: the engine against one generate() after another, on one device.

    python tests/gpu/scoring.py --out eval/results/gpu/scoring.json           # on a GPU, about a minute
    python tests/gpu/scoring.py --device cpu --size small --repeats 1         # the same code in seconds

The benchmark's shape is six prompts an image: one question in two polarities and a multiple choice in four rotations.
The plain way reads the image again for each prompt and generates an answer, batch of one. Captions have the same
length on both sides, since random weights end none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from measuring import Machine, Parts, hottest, noise, peak_gb, random_moondream, record, reset_peak, seconds_of, write
from PIL import Image

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import generate_plain
from vlm_detect.models.moondream.family import MoondreamVLM

POLARITIES = ["Is this image AI-generated?", "Is this image a real photo?"]
OPTIONS = "Which is true? A. real, cropped B. real, rescaled C. generated, from text D. generated, by a VAE"
ANSWER_TOKENS = 3  # "Yes." and the end, or a letter, a full stop and the end
CAPTION_TOKENS = 64


@dataclass(frozen=True)
class Scoring(Machine):
    images: int = 64
    plain_images: int = 4
    side: int = 512


def main(argv: list[str]) -> None:
    (machine,) = parse_config([Scoring], argv, doc=__doc__)
    machine.check()
    small = machine.size == "small"
    vlm = random_moondream(machine)
    records: list[dict[str, Any]] = []
    parts = Parts()
    count, plain_count = (4, 2) if small else (machine.images, machine.plain_images)
    images = [noise(32 if small else machine.side, seed) for seed in range(count)]
    for bench, ours, plain, per_image, unit in (
        ("benchmark", score, ask_one_by_one, 6, "questions_per_s"),
        ("captions", caption, caption_one_by_one, 1, "captions_per_s"),
    ):
        with parts.part(bench):
            reset_peak(machine)
            seconds = seconds_of(lambda run=ours: run(vlm, images), machine)
            peak = peak_gb(machine)
            plain_seconds = seconds_of(lambda run=plain: run(vlm, images[:plain_count]), machine)
            rate, plain_rate = per_image * count / seconds, per_image * plain_count / plain_seconds
            figures = {"bench": bench, unit: round(rate, 2), f"plain_{unit}": round(plain_rate, 3), "peak_gb": peak}
            about = {"ratio": round(rate / plain_rate, 2), "images": count}
            where = hottest(lambda run=ours: run(vlm, images), machine)
            records.append(record(machine, "scoring", argv, **figures, **about, hottest=where))
            print(f"{bench}: {figures}, {rate / plain_rate:.1f}x of one by one")
            write(machine, records)
    parts.check()


def prompts_of(vlm: MoondreamVLM) -> list[str]:
    return [*POLARITIES, *(f"{OPTIONS} Order {rotation}." for rotation in range(4))]


def score(vlm: MoondreamVLM, images: list[Image.Image]) -> None:
    asks = [Ask(q, ("Yes.", "No.")) for q in POLARITIES]
    asks += [Ask(q, ("A.", "B.", "C.", "D.")) for q in prompts_of(vlm)[len(POLARITIES) :]]
    Engine(vlm, cache_bytes=0).score(images, [asks] * len(images))


def ask_one_by_one(vlm: MoondreamVLM, images: list[Image.Image]) -> None:
    for image in images:
        for question in prompts_of(vlm):
            generate_plain(vlm, image, vlm.question_ids(question), ANSWER_TOKENS)


def caption(vlm: MoondreamVLM, images: list[Image.Image]) -> None:
    Engine(vlm, cache_bytes=0).caption(images, max_new_tokens=CAPTION_TOKENS)


def caption_one_by_one(vlm: MoondreamVLM, images: list[Image.Image]) -> None:
    for image in images:
        generate_plain(vlm, image, vlm.caption_ids("normal"), CAPTION_TOKENS)


if __name__ == "__main__":
    with torch.inference_mode():
        run_main(main)
