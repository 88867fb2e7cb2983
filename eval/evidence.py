"""Does the evidence map point at what was done? Its peak against planted edits, whose boxes are known.

    python eval/evidence.py --model runs/edits_lora --data data/edits [--out runs/edits_lora/evidence]

For each edited image of the test split: the map of the question "Was a part of this image altered?" (with `--topic
generation` of "Is this image AI-generated?"), and whether its peak lies within the edited box. Chance is the box's
share of the image. The ratio of the two has a 95 % interval by bootstrap over source photos. A model that cannot tell
edited from untouched images (AUROC beside it) has nothing to point with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from sklearn.metrics import roc_auc_score

from vlm_detect.bench.progress import Progress
from vlm_detect.config import git_commit, parse_config, write_json, write_run_json
from vlm_detect.data.questions import Topic
from vlm_detect.errors import UserError, run_main
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.evidence import evidence_map
from vlm_detect.infer.verdict import log_odds

BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Config:
    data: str = field(metadata={"help": "A pair dataset with edits."})
    model: str = field(default="auto", metadata={"help": "Run directory, model folder, Hub id, nano."})
    adapter: str | None = field(default=None, metadata={"help": "A LoRA to put on the model."})
    split: str = field(default="test", metadata={"help": "Split whose edits are looked at."})
    topic: Topic = field(
        default="edit", metadata={"help": "Ask edit: was a part altered; generation: is it generated."}
    )
    limit: int | None = field(default=None, metadata={"help": "At most so many edits."})
    out: str | None = field(default=None, metadata={"help": "By default MODEL/evidence."})


@dataclass(frozen=True)
class Edit:
    """What was found about one: whether the peak hit its box, the box's share, and both images' log-odds."""

    group: str
    operation: str
    hit: bool
    share: float
    odds_edited: float
    odds_before: float


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    rows = load_dataset(config.data, split=config.split).filter(lambda kind: kind == "edit", input_columns="kind")
    if not len(rows):
        raise UserError(f"{config.data}: no edits in its {config.split} split; make some with make_pairs --twins edit")
    rows = rows.select(range(min(len(rows), config.limit or len(rows))))
    detector = Detector(config.model, adapter=config.adapter)
    edits = list(look(detector, rows, config.topic))
    found = {
        "model": detector.name,
        "task": "evidence on planted edits",
        "data": config.data,
        "split": config.split,
        "topic": config.topic,
        **figures(edits),
        "command": " ".join(["python eval/evidence.py", *argv]),
        "commit": git_commit(),
        "device": str(detector.engine.vlm.device),
    }
    out = Path(config.out or Path(config.adapter or config.model) / "evidence")
    write_json(out / "evidence.json", found)
    write_run_json(out, config)
    low, high = found["ci95"]["ratio"]
    print(f"{found['n']} edits: the peak hits {found['hit_rate']:.3f} of the boxes, by chance {found['chance']:.3f}")
    print(f"ratio {found['ratio']:.2f} ({low:.2f} to {high:.2f}); edited against untouched AUROC {found['auroc']:.3f}")


def look(detector: Detector, rows: Any, topic: Topic) -> Iterator[Edit]:
    progress = Progress(len(rows), "edits")
    for row in rows:
        image = row["twin"].convert("RGB")
        edited = evidence_map(detector.engine, image, topic=topic)
        (before,) = log_odds(detector.engine, [row["image"].convert("RGB")], topic=topic)
        x0, y0, x1, y1 = row["edit"]["box"]
        x, y = edited.peak[0] * image.width, edited.peak[1] * image.height
        share = (x1 - x0) * (y1 - y0) / (image.width * image.height)
        hit = x0 <= x < x1 and y0 <= y < y1
        yield Edit(row["group"], row["edit"]["operation"], hit, share, edited.log_odds, before)
        progress.add(1)


def figures(edits: Sequence[Edit]) -> dict[str, Any]:
    hit, share = (np.array([getattr(edit, name) for edit in edits], dtype=float) for name in ("hit", "share"))
    groups = np.unique([edit.group for edit in edits], return_inverse=True)[1]
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    rng = np.random.default_rng(0)
    ratios, rates = [], []
    for _ in range(BOOTSTRAPS):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        rates.append(hit[drawn].mean())
        ratios.append(hit[drawn].mean() / share[drawn].mean())
    odds = [edit.odds_edited for edit in edits] + [edit.odds_before for edit in edits]
    by_operation = {
        operation: {
            "n": len(some := [edit for edit in edits if edit.operation == operation]),
            "hit_rate": float(np.mean([edit.hit for edit in some])),
            "chance": float(np.mean([edit.share for edit in some])),
        }
        for operation in sorted({edit.operation for edit in edits})
    }
    return {
        "n": len(edits),
        "groups": len(members),
        "hit_rate": float(hit.mean()),
        "chance": float(share.mean()),
        "ratio": float(hit.mean() / share.mean()),
        "ci95": {
            "hit_rate": np.percentile(rates, [2.5, 97.5]).tolist(),
            "ratio": np.percentile(ratios, [2.5, 97.5]).tolist(),
        },
        "auroc": float(roc_auc_score([1] * len(edits) + [0] * len(edits), odds)),
        "by_operation": by_operation,
    }


if __name__ == "__main__":
    run_main(main)
