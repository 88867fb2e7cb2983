"""An epoch from cached image embeddings against one with the tower live, at 2, 5 and 10 crops.

    python tests/bench/feature_cache.py [--crops 2 5 10] [--rounds 3] [--out FILE.json]

A step reads one stored image and one question of 50 tokens and ends with changed weights. The ceiling is what torch's
count of their FLOPs allows when nothing else costs time. An image of two crops is one that fits a crop: the tower reads
it once. Goals: 1.5x at 5 crops, 2.1x at 10. The pass that fills the cache is not part of the epoch; it costs the live
path's tower once.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flops import crops_read
from steps import SIZES, adamw, flops, make_vlm, photo, questions, record, step, timed

from vlm_detect.config import parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.features import Features


@dataclass(frozen=True)
class Config:
    crops: list[int] = field(default_factory=lambda: [2, 5, 10], metadata={"help": f"Of {sorted(SIZES)}."})
    rounds: int = field(default=3, metadata={"help": "Timed rounds; the least times are compared."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    vlm = make_vlm()
    optimizer = adamw(vlm)
    records: list[dict[str, Any]] = []
    for crops in config.crops:
        image = photo(vlm, crops)
        units = [[Example(image, questions(vlm, 1), "real")]]
        with tempfile.TemporaryDirectory() as folder:
            features = Features.build(vlm, [image], Path(folder))
            collators = {"live": Collator(vlm, pack=True), "cached": Collator(vlm, pack=True, features=features)}
            ways = {name: partial(step, vlm, collator, units, optimizer) for name, collator in collators.items()}
            difference = abs(ways["live"]() - ways["cached"]())
            ceiling = flops(ways["live"]) / flops(ways["cached"])
            seconds = timed(ways, config.rounds)
        ratio = seconds["live"] / seconds["cached"]
        print(f"{crops} crops: {ratio:.2f}x of live (FLOP ceiling {ceiling:.2f}); losses differ by {difference:.1e}")
        setting = {"crops": crops, "crops_read": crops_read(crops)}
        records.append(
            record("feature_cache", setting, "tower live", argv, ratio=ratio, ceiling=ceiling)
            | {"loss_difference": difference}
        )
        if config.out:
            write_json(config.out, records)


if __name__ == "__main__":
    run_main(main)
