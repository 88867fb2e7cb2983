"""Figures of the nano models on held-out photographs, and how they are recorded."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from scipy.stats import binomtest

from vlm_detect.config import command_line, git_commit, write_json
from vlm_detect.data.image_sets import CIFAR_CLASSES
from vlm_detect.infer.engine import Engine
from vlm_detect.machine import machine_name
from vlm_detect.models.base import VLM
from vlm_detect.nano.captions import UNDECIDABLE, Facts, caption, factual_question, named_class
from vlm_detect.nano.judge import Judge, frechet_distance, look
from vlm_detect.nano.photos import SPLIT_RULE, Photos
from vlm_detect.nano.renderer import render


def share_ci95(right: int, n: int) -> list[float]:
    """95 % interval of a share by Wilson's score, which stays within 0 and 1."""
    low, high = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return [round(float(low), 4), round(float(high), 4)]


def judge_renders(
    pipeline: StableDiffusion3Pipeline,
    judge: Judge,
    held_out: Photos,
    facts: list[Facts],
    *,
    renders: int,
    steps: int,
    guidance: float,
    seed: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """Render captions of held-out photographs; returns figures and the images (N, 32, 32, 3).

    ``accuracy`` is the share in which the judge sees the caption's class. ``frechet_distance`` compares renders with
    held-out photographs of other captions; ``frechet_floor`` is the distance of as many photographs from those.
    """
    rng = Random(seed)
    prompts = [caption(fact, "normal", rng) for fact in facts[:renders]]
    images = render(pipeline, prompts, seed=seed, num_inference_steps=steps, guidance_scale=guidance)
    predicted, features = look(judge, images)
    _, photo_features = look(judge, held_out.images)
    right = predicted == held_out.labels[:renders]
    by_class = {name: float(right[held_out.labels[:renders] == i].mean()) for i, name in enumerate(CIFAR_CLASSES)}
    figures = {
        "n": renders,
        "accuracy": float(right.mean()),
        "ci95": {"accuracy": share_ci95(int(right.sum()), renders)},
        "by_class": {name: round(share, 3) for name, share in by_class.items()},
        "frechet_distance": round(frechet_distance(features, photo_features[renders:]), 3),
        "frechet_floor": round(frechet_distance(photo_features[:renders], photo_features[renders:]), 3),
        "sampling_steps": steps,
        "guidance": guidance,
    }
    return figures, images


def question_captioner(vlm: VLM, held_out: Photos, facts: list[Facts], *, n: int, seed: int) -> dict[str, Any]:
    """Figures of captions, of factual questions and of the undecidable ones, on ``n`` held-out photographs.

    ``accuracy`` is the share of normal captions that name the class; ``yes_no`` and ``other`` are of factual questions,
    the former balanced between both answers; ``undecidable_yes`` is the share of "Yes." where both are taught.
    """
    rng, facts = Random(seed), facts[:n]
    photos = [Image.fromarray(image) for image in held_out.images[:n]]
    engine = Engine(vlm, batch_images=100, cache_bytes=0)

    def ask(questions: list[str]) -> list[str]:
        return [answer for (answer,) in engine.generate(photos, [[question] for question in questions], 8)]

    captions = engine.caption(photos, "normal", 48)
    named = [named_class(text) == fact.object_class for text, fact in zip(captions, facts, strict=True)]

    asked = [factual_question(fact, rng) for fact in facts]
    right = {"Yes.": [], "No.": [], "other": []}  # type: dict[str, list[bool]]
    for (_, truth), given in zip(asked, ask([question for question, _ in asked]), strict=True):
        right[truth if truth in right else "other"].append(given == truth)
    share = {truth: float(np.mean(hits)) for truth, hits in right.items()}

    doubts = ask([rng.choice(UNDECIDABLE) for _ in facts])
    return {
        "n": n,
        "accuracy": float(np.mean(named)),
        "ci95": {"accuracy": share_ci95(sum(named), n)},
        "yes_no_balanced_accuracy": round((share["Yes."] + share["No."]) / 2, 4),
        "yes_no_n": len(right["Yes."]) + len(right["No."]),
        "other_accuracy": round(share["other"], 4),
        "undecidable_yes": float(np.mean([text == "Yes." for text in doubts])),
        "captions": captions[:5],
    }


def record(path: Path, *, model: str, task: str, seed: int, device: torch.device, **figures: Any) -> dict[str, Any]:
    """Write one file of recorded figures, with the common fields; returns it."""
    record = {
        "model": model,
        "task": task,
        "data": "CIFAR-10 training photographs",
        "split": f"held out: {SPLIT_RULE}",
        **figures,
        "seed": seed,
        "command": " ".join(command_line()),
        "commit": git_commit(),
        "device": machine_name(device.type),
    }
    write_json(path, record)
    return record
