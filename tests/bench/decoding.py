"""Operators and bytes of a caption's token, on the stand-in for a CUDA device: keys in place against keys joined.

    python -m tests.standin.device tests/bench/decoding.py [--images 4] [--out eval/results/bench/decoding.json]

Counted are the operators that `infer.branches` runs for one more token of every caption, and the bytes that they read
and write (`tests/standin/device.cpp`), with the engine's cache, which writes the token behind the keys that are there,
and with transformers' own, which joins all keys with it in every layer. The models are a moondream of two narrow layers
with the official prefix, and TinyLLaVA-nano. `cache_megabytes` is the size of the keys and values, which attention has
to read in any case. Bytes of a real model differ by its layers and widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import checkout  # noqa: F401
import numpy as np
import torch
from PIL import Image
from transformers.cache_utils import Cache, DynamicCache

from tests.factories import tiny_vlm
from tests.standin.device import counted
from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.infer import branches
from vlm_detect.infer.prefixes import Prefix, encode, prefill, stacked
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import load_vlm

OFFICIAL: dict[str, Any] = {
    "vision_config": {"crop_size": 378, "patch_size": 14, "max_crops": 12, "overlap_margin": 4},
    "text_config": {"max_position_embeddings": 2048},
}
TOKENS = 8


@dataclass(frozen=True)
class Config:
    images: int = field(default=4, metadata={"help": "Images that are captioned at once."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def joined(prefixes: list[Prefix], room: int) -> Cache:
    return DynamicCache(stacked(prefixes))


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    records: list[dict[str, Any]] = []
    caches: dict[str, Callable[..., Cache]] = {"in place": branches.decoding_cache, "joined": joined}
    for name, vlm in (("moondream", tiny_vlm(**OFFICIAL)), ("tinyllava-nano", load_vlm("tinyllava-nano"))):
        vlm.model.to("cuda")
        for kept, make in caches.items():
            records.append(
                {
                    "bench": "decoding",
                    "setting": {"model": name, "images": config.images, "cache": kept},
                    **per_token(vlm, config.images, make),
                    "command": " ".join(["python -m tests.standin.device tests/bench/decoding.py", *argv]),
                    "commit": git_commit(),
                    "device": "stand-in for CUDA on a CPU",
                }
            )
            print(records[-1])
    if config.out:
        write_json(config.out, records)


@torch.inference_mode()
def per_token(vlm: VLM, images: int, make: Callable[..., Cache]) -> dict[str, float]:
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 255, (378, 378, 3), dtype=np.uint8)) for _ in range(images)]
    prompts = [[vlm.caption_ids("short")]] * images
    plain, branches.decoding_cache = branches.decoding_cache, make
    try:
        prefixes = prefill(vlm, encode(vlm, photos), branches.room_for(prompts, TOKENS))
        decoding = branches.Branches(vlm, prefixes, prompts, TOKENS)
    finally:
        branches.decoding_cache = plain
    chosen = torch.full((images, 1), 5, device=vlm.device)
    with counted() as counts:
        for _ in range(TOKENS):
            decoding.read(chosen)
    cache = sum(prefix.nbytes for prefix in prefixes)
    return {
        "operations": round(sum(counts.launches.values()) / TOKENS, 1),
        "megabytes": round(sum(counts.bytes.values()) / TOKENS / 1e6, 3),
        "cache_megabytes": round(cache / 1e6, 3),
        "waits": round(sum(counts.waits.values()) / TOKENS, 2),
    }


if __name__ == "__main__":
    run_main(main)
