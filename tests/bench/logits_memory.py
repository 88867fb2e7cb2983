"""Memory of the vocabulary head and the loss in a training step: logits of answers in chunks, against all positions.

    python tests/bench/logits_memory.py [--images 8] [--questions 4] [--out FILE.json]

At moondream2's shapes on the meta device, where tensors have bytes and no content: the most that is alive from the
hidden states to their gradient, beyond the hidden states themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.models.moondream import MoondreamConfig
from vlm_detect.train.loss import CHUNK, cross_entropy
from vlm_detect.train.memory import ANSWER_TOKENS, QUESTION_TOKENS, LiveBytes


@dataclass(frozen=True)
class Config:
    images: int = field(default=8, metadata={"help": "Images in a step."})
    questions: int = field(default=4, metadata={"help": "Questions an image, packed into one row."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    shapes = MoondreamConfig()
    length = 1 + shapes.vision_config.num_image_tokens + config.questions * QUESTION_TOKENS
    positions = {
        "all": config.images * length,
        "answers": config.images * config.questions * ANSWER_TOKENS,
    }
    peaks = {
        "all": peak_bytes(shapes, positions["all"], positions["all"]),
        "answers": peak_bytes(shapes, positions["answers"], CHUNK),
    }
    ratio = peaks["all"] / peaks["answers"]
    print(", ".join(f"{name}: {positions[name]} positions, {peaks[name] / 1e9:.3f} GB" for name in peaks))
    print(f"all positions take {ratio:.1f}x the memory")
    if config.out:
        record = {
            "bench": "logits_memory",
            "setting": {"images": config.images, "questions": config.questions, "dtype": "bfloat16", "chunk": CHUNK},
            "ratio": round(ratio, 3),
            "peak_gb": {name: round(size / 1e9, 4) for name, size in peaks.items()},
            "against": "logits of all positions at once",
            "command": " ".join(["python tests/bench/logits_memory.py", *argv]),
            "commit": git_commit(),
            "device": "meta",
        }
        write_json(config.out, [record])


def peak_bytes(shapes: MoondreamConfig, positions: int, chunk: int) -> int:
    """Of a forward and backward pass over so many positions, `chunk` at a time."""
    width, vocabulary = shapes.text_config.hidden_size, shapes.text_config.vocab_size
    with torch.device("meta"):
        head = nn.Linear(width, vocabulary, dtype=torch.bfloat16).requires_grad_(False)
        hidden = torch.empty(positions, width, dtype=torch.bfloat16, requires_grad=True)
        targets = torch.empty(positions, dtype=torch.long)
        with LiveBytes(head) as live:
            total = torch.zeros(())
            for part, answer in zip(hidden.split(chunk), targets.split(chunk), strict=True):
                total = total + checkpoint(cross_entropy, head, part, answer, use_reentrant=False)
            total.backward()
    return live.peak


if __name__ == "__main__":
    run_main(main)
