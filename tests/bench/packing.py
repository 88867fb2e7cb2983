"""Questions a second with all questions of an image in one row, against one row each.

    python tests/bench/packing.py [--questions 4 8] [--tower cached live] [--rounds 3] [--out FILE.json]

Ten crops, questions of 50 tokens. One row each is what trainers do that know one question a sample: the prefix runs
through the decoder for every question, and with the tower live the image through the tower as well. The ceiling is what
torch's count of their FLOPs allows. Goals: 2.5x at 4 questions and 4x at 8 with cached features, 3.3x and 6x with the
tower live.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from steps import adamw, flops, make_vlm, photo, questions, record, step, timed

from vlm_detect.config import parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.features import Features

CROPS = 10


@dataclass(frozen=True)
class Config:
    questions: list[int] = field(default_factory=lambda: [4, 8], metadata={"help": "Questions an image."})
    tower: list[str] = field(default_factory=lambda: ["cached", "live"], metadata={"help": "cached, live."})
    rounds: int = field(default=3, metadata={"help": "Timed rounds; the least times are compared."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    vlm = make_vlm()
    optimizer = adamw(vlm)
    image = photo(vlm, CROPS)
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cached = Features.build(vlm, [image], Path(folder))
        for tower in config.tower:
            features = cached if tower == "cached" else None
            for count in config.questions:
                asked = questions(vlm, count)
                layouts = {
                    "packed": (Collator(vlm, pack=True, features=features), [[Example(image, asked, "real")]]),
                    "apart": (Collator(vlm, features=features), [[Example(image, [one], "real")] for one in asked]),
                }
                ways = {name: partial(step, vlm, *layout, optimizer) for name, layout in layouts.items()}
                difference = abs(ways["packed"]() - ways["apart"]())
                seconds = timed(ways, config.rounds)
                ratio = seconds["apart"] / seconds["packed"]
                ceiling = flops(ways["apart"]) / flops(ways["packed"])
                print(
                    f"{count} questions, tower {tower}: {ratio:.2f}x of one row each (FLOP ceiling {ceiling:.2f}); "
                    f"losses differ by {difference:.1e}"
                )
                setting = {"crops": CROPS, "questions": count, "tower": tower}
                records.append(
                    record("packing", setting, "one row each", argv, ratio=ratio, ceiling=ceiling)
                    | {"loss_difference": difference}
                )
                if config.out:
                    write_json(config.out, records)


if __name__ == "__main__":
    run_main(main)
