"""What is measured on the nano models, on photographs held out, and how the figures are recorded."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from vlm_detect.config import git_commit, write_json
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.nano.captions import UNDECIDABLE, Facts, caption, factual_question, named_class
from vlm_detect.models.nano.judge import Judge, frechet_distance, look
from vlm_detect.models.nano.photos import CLASSES, SPLIT_RULE, Photos
from vlm_detect.models.nano.renderer import render


def wilson(right: int, n: int) -> list[float]:
    """95 % interval of a share (Wilson 1927), which stays inside 0 and 1 where the share is near them."""
    z = 1.959964
    share, spread = right / n, z * math.sqrt(right / n * (1 - right / n) / n + z * z / (4 * n * n))
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    return [round((centre - spread) / scale, 4), round((centre + spread) / scale, 4)]


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
    held-out photographs of other captions; ``frechet_floor`` is what as many photographs score against those.
    """
    rng = Random(seed)
    prompts = [caption(fact, "normal", rng) for fact in facts[:renders]]
    images = render(pipeline, prompts, seed=seed, num_inference_steps=steps, guidance_scale=guidance)
    predicted, features = look(judge, images)
    _, photo_features = look(judge, held_out.images)
    right = predicted == held_out.labels[:renders]
    by_class = {name: float(right[held_out.labels[:renders] == i].mean()) for i, name in enumerate(CLASSES)}
    figures = {
        "n": renders,
        "accuracy": float(right.mean()),
        "ci95": {"accuracy": wilson(int(right.sum()), renders)},
        "by_class": {name: round(share, 3) for name, share in by_class.items()},
        "frechet_distance": round(frechet_distance(features, photo_features[renders:]), 3),
        "frechet_floor": round(frechet_distance(photo_features[:renders], photo_features[renders:]), 3),
        "sampling_steps": steps,
        "guidance": guidance,
    }
    return figures, images


@torch.inference_mode()
def answer(
    model: MoondreamForConditionalGeneration,
    processor: MoondreamProcessor,
    images: np.ndarray,
    prompts: list[list[int]],
    max_new_tokens: int = 48,
    batch: int = 100,
) -> list[str]:
    """Greedy answers to the prompt ids of each image (N, H, W, 3) uint8."""
    answers: list[str] = []
    for start in range(0, len(images), batch):
        photos = [Image.fromarray(image) for image in images[start : start + batch]]
        inputs = processor(images=photos, prompt_ids=prompts[start : start + batch], return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answers += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :])
    return answers


def question_captioner(
    model: MoondreamForConditionalGeneration,
    processor: MoondreamProcessor,
    held_out: Photos,
    facts: list[Facts],
    *,
    n: int,
    seed: int,
) -> dict[str, Any]:
    """Figures of captions, of factual questions and of the undecidable ones, on ``n`` held-out photographs.

    ``accuracy`` is the share of normal captions that name the class; ``yes_no`` and ``other`` are of factual questions,
    the former balanced between both answers; ``undecidable_yes`` is the share of "Yes." where a coin was taught.
    """
    rng = Random(seed)
    images, facts = held_out.images[:n], facts[:n]
    captions = answer(model, processor, images, [processor.caption_ids("normal")] * n)
    named = [named_class(text) == fact.object_class for text, fact in zip(captions, facts, strict=True)]

    asked = [factual_question(fact, rng) for fact in facts]
    answers = answer(model, processor, images, [processor.query_ids(question) for question, _ in asked], 8)
    right = {"Yes.": [], "No.": [], "other": []}  # type: dict[str, list[bool]]
    for (_, truth), given in zip(asked, answers, strict=True):
        right[truth if truth in right else "other"].append(given.strip() == truth)
    share = {truth: float(np.mean(hits)) for truth, hits in right.items()}

    doubts = answer(model, processor, images, [processor.query_ids(rng.choice(UNDECIDABLE)) for _ in facts], 8)
    return {
        "n": n,
        "accuracy": float(np.mean(named)),
        "ci95": {"accuracy": wilson(sum(named), n)},
        "yes_no_balanced_accuracy": round((share["Yes."] + share["No."]) / 2, 4),
        "yes_no_n": len(right["Yes."]) + len(right["No."]),
        "other_accuracy": round(share["other"], 4),
        "undecidable_yes": float(np.mean([text.strip() == "Yes." for text in doubts])),
        "captions": captions[:5],
    }


def record(path: Path, *, model: str, task: str, seed: int, **figures: Any) -> dict[str, Any]:
    """Write one file of recorded figures, with the fields that all of them share; returns it."""
    record = {
        "model": model,
        "task": task,
        "data": "CIFAR-10 training photographs",
        "split": f"held out: {SPLIT_RULE}",
        **figures,
        "seed": seed,
        "command": " ".join(["python", *sys.argv]),
        "commit": git_commit(),
        "device": f"cpu, {torch.get_num_threads()} threads",
    }
    write_json(path, record)
    return record
