"""How often a calibration exceeds the false-alarm rate that it guarantees.

    python tests/bench/guaranteed_rate.py [--draws 200] [--photos 299] [--max_fpr 0.01] [--out FILE.json]
    python tests/bench/guaranteed_rate.py --results runs/NAME/eval/results.jsonl  # the scores of a model's own photos

Each draw calibrates on photos whose scores are sampled and asks for the true rate of its threshold. That rate follows a
beta law whatever the scores' distribution is, so normal scores stand for all, and their rate is known exactly. With
`--results` the photos are sampled, without replacement, from those of a benchmark, and all that were not sampled give
the rate: at least 5,000, else the rate itself is too uncertain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import binomtest, norm

from vlm_detect.benchmark.item_scores import headline_scores, item_odds, item_scores
from vlm_detect.benchmark.results import read_results
from vlm_detect.config import check_at_least, git_commit, parse_config, write_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.machine import machine_name
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.metrics import logit

HELD = 5000


@dataclass(frozen=True)
class Config:
    draws: int = field(default=200, metadata={"help": "Calibrations."})
    photos: int = field(default=299, metadata={"help": "Photos of each."})
    max_fpr: float = field(default=0.01, metadata={"help": "The rate that is guaranteed."})
    results: str | None = field(default=None, metadata={"help": "results.jsonl of a benchmark with its photos."})
    seed: int = field(default=0, metadata={"help": "Of what is sampled."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "draws", "photos")


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    rng = np.random.default_rng(config.seed)
    rates = np.array(list(_of_photos(config, rng) if config.results else _of_the_law(config, rng)))
    exceeded = int((rates > config.max_fpr).sum())
    low, high = binomtest(exceeded, config.draws).proportion_ci(0.95, method="exact")
    print(
        f"{exceeded} of {config.draws} calibrations on {config.photos} photos exceed {config.max_fpr:g} "
        f"({exceeded / config.draws:.3f}, 95 % interval {low:.3f} to {high:.3f}; guaranteed: at most 0.05)"
    )
    if config.out:
        record = {
            "task": "false-alarm rates of calibrations that guarantee one, at 95 % confidence",
            "data": config.results or "sampled scores, whose true rate is known",
            "guaranteed_rate": {"draws": config.draws, "exceeded": exceeded},
            "n": config.photos,
            "max_fpr": config.max_fpr,
            "confidence": 0.95,
            "share_exceeded": exceeded / config.draws,
            "ci95": {"share_exceeded": [round(low, 4), round(high, 4)]},
            "mean_rate": round(float(rates.mean()), 5),
            "seed": config.seed,
            "command": " ".join(["python tests/bench/guaranteed_rate.py", *argv]),
            "commit": git_commit(),
            "device": machine_name("cpu"),
        }
        write_json(config.out, record)


def _of_the_law(config: Config, rng: np.random.Generator) -> Iterator[float]:
    for _ in range(config.draws):
        found = Calibration().fit_photos(rng.normal(size=config.photos), config.max_fpr)
        yield float(norm.sf(logit(found.threshold)))


def _of_photos(config: Config, rng: np.random.Generator) -> Iterator[float]:
    scores = headline_scores(item_scores(read_results(Path(config.results or "")), "logprob"))
    found = np.array([item_odds(score) for score in scores if score.is_fake is False], float)
    odds = found[np.isfinite(found)]
    if len(odds) < HELD + config.photos:
        raise UserError(f"--results {config.results}: {len(odds)} photos; {HELD + config.photos} are needed")
    for _ in range(config.draws):
        order = rng.permutation(len(odds))
        fitted = Calibration().fit_photos(odds[order[: config.photos]], config.max_fpr)
        yield float((fitted.p_fake(odds[order[config.photos :]]) > fitted.threshold).mean())


if __name__ == "__main__":
    run_main(main)
