"""Hand-made doubles: an engine that answers by a rule, and small benchmarks on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class FakeAsk:
    question: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class FakeScore:
    logprob: float
    n_tokens: int


class FakeEngine:
    """`rule(image, question, candidates)` gives a log-probability for each candidate; `say(image, question)` a text."""

    def __init__(
        self,
        rule: Callable[[Image.Image, str, Sequence[str]], Sequence[float]],
        say: Callable[[Image.Image, str], str] = lambda image, question: "",
    ) -> None:
        self.rule, self.say = rule, say
        self.images_seen = 0
        self.asked: list[str] = []

    def score(self, images: Any, asks: Any) -> Any:
        assert all(asks), "an image without asks"
        self.images_seen += len(images)
        self.asked += [ask.question for some in asks for ask in some]
        return [
            [
                [
                    FakeScore(v, len(c))
                    for v, c in zip(self.rule(image, a.question, a.candidates), a.candidates, strict=True)
                ]
                for a in some
            ]
            for image, some in zip(images, asks, strict=True)
        ]

    def generate(self, images: Any, questions: Any, max_new_tokens: int = 16) -> Any:
        return [[self.say(image, q) for q in some] for image, some in zip(images, questions, strict=True)]


def write_image(path: Path, colour: Any = "red", size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def write_benchmark(folder: Path, rows: Sequence[dict[str, Any]], name: str = "benchmark.json") -> Path:
    path = folder / name
    if name.endswith("l"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(list(rows)))
    return path


def verdict_rows(folder: Path, n: int = 4) -> list[dict[str, Any]]:
    """Half real (blue), half generated (red), of different sizes so that no two images are equal."""
    rows = []
    for i in range(n):
        fake = i % 2 == 1
        write_image(folder / f"{i}.png", "red" if fake else "blue", (8 + i, 8))
        rows.append(
            {
                "id": f"item{i}",
                "image": f"/elsewhere/images/{i}.png",
                "question": "Is this image real or artificially generated? Just answer with Real or Fake.",
                "ground_truth": "Fake" if fake else "Real",
                "metadata": {"generator": "big gan" if fake else "natural"},
            }
        )
    return rows


def choice_row(folder: Path, id_: str = "choice", ground_truth: str = "C") -> dict[str, Any]:
    write_image(folder / f"{id_}.png", "red", (20, 8))
    return {
        "id": id_,
        "kind": "multiple_choice",
        "image": f"{id_}.png",
        "question": "Is it real, and why?",
        "options": [
            "The image is real because of its grain.",
            "The image is real because of its blur.",
            "The image is fake because of its hand.",
            "The image is fake because of its text.",
        ],
        "ground_truth": ground_truth,
        "metadata": {"generator": "glide"},
    }
