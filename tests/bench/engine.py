"""The engine against one query() after another, at a geometry whose tower-to-text FLOP ratio is the real one.

    python tests/bench/engine.py [--crops 2 9] [--questions 4 16] [--out FILE.json]

Three ways to get the same greedy answers, batch of one image, one thread, CPU time taken in turn in one process:

- fresh: every question reads the image again (the official query() on an image);
- encoded: the image is read and prefilled once, each question then decodes on a copy of the cache (the official
  encode_image() once, then query() on that, whose cache has 2048 places and is attended to whole);
- engine: `Engine.generate` on all questions.

The official order of work reads every crop; an image that fits one crop comes as two equal ones, and ours reads
one.

The ceiling is what the FLOP count allows when nothing else costs time.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import checkout  # noqa: F401
import numpy as np
import torch
from flops import bench_config, crops_read, flop_ratio, text_flops, tower_flops
from PIL import Image
from transformers import StaticCache

from tests.factories import tiny_tokenizer
from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.prefixes import Prefix
from vlm_detect.infer.reference import generate_plain
from vlm_detect.machine import machine_name
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.moondream.family import MoondreamVLM

SIZES = {2: (378, 378), 9: (760, 500), 10: (700, 700)}  # width, height that give so many crops
NEW_TOKENS = 2  # "Yes." and the end of text
PROMPT_TOKENS = 14  # "Is this image AI-generated?" with its template, in a real tokenizer


@dataclass(frozen=True)
class Config:
    crops: list[int] = field(default_factory=lambda: [2, 9], metadata={"help": f"Of {sorted(SIZES)}."})
    questions: list[int] = field(default_factory=lambda: [4, 16])
    repeats: int = field(default=5, metadata={"help": "Timed rounds; the medians are compared."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vlm = make_vlm()
    print(f"tower (10 crops) to LoRA step: {flop_ratio(vlm.model.config):.2f}, the real model's is 1.66")
    records: list[dict[str, Any]] = []
    for crops in config.crops:
        rng = np.random.default_rng(crops)
        width, height = SIZES[crops]
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for count in config.questions:
            prompts = torch.randint(30, 250, (count, PROMPT_TOKENS), generator=torch.Generator().manual_seed(count))
            records += measure(vlm, image, prompts.tolist(), crops, config.repeats, argv)
    if config.out:
        write_json(config.out, records)


class OfficialOrder(MoondreamVLM):
    """Reads the one image of a batch as the official code does: every crop, also a tile that equals the whole."""

    def encode(self, prepared: dict[str, torch.Tensor]) -> torch.Tensor:
        vision, (tiling,) = self.model.model.vision, prepared["tilings"]
        views = vision.encode_crops(prepared["pixel_values"][0].to(vision.pos_emb.dtype))
        local = vision.pool(vision.stitch(views[1:], *tiling))
        return vision.proj_mlp(torch.cat([views[0], local], dim=-1))[None]


def make_vlm() -> MoondreamVLM:
    config = bench_config()
    model = MoondreamForConditionalGeneration(config).eval()
    return MoondreamVLM(model, MoondreamProcessor(config, tokenizer=tiny_tokenizer()), "bench")


def measure(
    vlm: MoondreamVLM, image: Image.Image, prompts: list[list[int]], crops: int, repeats: int, argv: list[str]
) -> list[dict[str, Any]]:
    assert vlm.prepare([image])["pixel_values"].shape[1] == crops
    official = OfficialOrder(vlm.model, vlm.processor, vlm.name)

    def fresh() -> list[str]:
        return [generate_plain(official, image, prompt, NEW_TOKENS) for prompt in prompts]

    def encoded() -> list[str]:
        prefix = Engine(official, cache_bytes=0).prefixes([image])[0]
        return [one_after_another(vlm, prefix, prompt) for prompt in prompts]

    def engine() -> list[str]:
        (answers,) = Engine(vlm, cache_bytes=0).continue_prompts([image], [prompts], NEW_TOKENS)
        return answers

    assert fresh() == encoded() == engine(), "the three ways give different answers"
    seconds = {way.__name__: timed(way, repeats) for way in (fresh, encoded, engine)}
    flops = flops_of(vlm, crops, [len(prompt) for prompt in prompts])
    records = []
    for against in ("fresh", "encoded"):
        ratio = seconds[against] / seconds["engine"]
        ceiling = flops[against] / flops["engine"]
        print(f"{crops} crops, {len(prompts)} questions: {ratio:.2f}x of {against} (FLOP ceiling {ceiling:.2f})")
        records.append(
            {
                "bench": "engine",
                "setting": {"crops": crops, "questions": len(prompts), "new_tokens": NEW_TOKENS, "threads": 1},
                "ratio": round(ratio, 3),
                "ceiling": round(ceiling, 3),
                "against": against,
                "command": " ".join(["python tests/bench/engine.py", *argv]),
                "commit": git_commit(),
                "device": machine_name("cpu"),
            }
        )
    return records


@torch.inference_mode()
def one_after_another(vlm: MoondreamVLM, prefix: Prefix, prompt: list[int]) -> str:
    """Greedy decoding of one prompt, token by token, on the prefix's cache copied into a static one."""
    config = vlm.model.config.text_config
    cache = StaticCache(config=config, max_cache_len=config.max_position_embeddings)
    for layer, (key, value) in enumerate(prefix.layers):
        cache.update(key, value, layer)
    answer: list[int] = []
    ids, position = prompt, len(prefix)
    while len(answer) < NEW_TOKENS:
        positions = torch.arange(position, position + len(ids))[None]
        out = vlm.model(input_ids=torch.tensor([ids]), position_ids=positions, past_key_values=cache, logits_to_keep=1)
        logits = out.logits[0, -1].clone()
        if answer:
            logits[list(vlm.first_only_ids)] = -torch.inf
        position, ids = position + len(ids), [int(logits.argmax())]
        if ids[0] == vlm.eos_token_id:
            break
        answer += ids
    return vlm.decode(answer).strip()


def timed(way: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.process_time()
        way()
        times.append(time.process_time() - started)
    return statistics.median(times)


def flops_of(vlm: MoondreamVLM, crops: int, prompt_lengths: list[int]) -> dict[str, float]:
    config = vlm.model.config
    prefix = 1 + config.vision_config.num_image_tokens
    prefill = text_flops(config, prefix, prefix, 0)
    questions = sum(text_flops(config, n + NEW_TOKENS - 1, prefix + n, NEW_TOKENS) for n in prompt_lengths)
    image = tower_flops(config, crops) + prefill
    ours = tower_flops(config, crops_read(crops)) + prefill
    return {
        "fresh": len(prompt_lengths) * image + questions,
        "encoded": image + questions,
        "engine": ours + questions,
    }


if __name__ == "__main__":
    print(json.dumps({"torch": torch.__version__}))
    run_main(main)
