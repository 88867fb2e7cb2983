"""Ratios of the benches at the present commit against an earlier one, the two taking turns on one machine.

    python tests/bench/against_parent.py [--rev HEAD~1] [--rounds 3] [--out eval/results/bench/against_parent.json]

Each round runs every bench once at both commits, whose order alternates. A bench compares our way with a plain one by
CPU time; here the median of its ratios at the present commit is divided by that at the earlier one. Exits 1 where
something got slower: a quotient below `--least`. Both commits run from a clean checkout (uncommitted changes do not
count) with the present environment. Run it on a quiet machine: 20 to 40 minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkout  # noqa: F401

from vlm_detect.config import parse_config, write_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.machine import machine_name

REPOSITORY = Path(__file__).parents[2]
# Flags for a round of some minutes: the rounds are repeated here.
FLAGS = {
    "engine": ["--repeats", "1"],
    "packing": ["--rounds", "1"],
    "feature_cache": ["--rounds", "1"],
    "benchmark": ["--repeats", "1", "--images", "1"],
    "cnn_epoch": ["--repeats", "1", "--images", "1500"],
}


@dataclass(frozen=True)
class Config:
    rev: str = field(default="HEAD~1", metadata={"help": "The earlier commit."})
    benches: list[str] = field(default_factory=lambda: list(FLAGS), metadata={"help": f"Of {', '.join(FLAGS)}."})
    rounds: int = field(default=3, metadata={"help": "Rounds; the medians are compared."})
    least: float = field(default=0.97, metadata={"help": "The least quotient that counts as no slower."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    if unknown := [name for name in config.benches if name not in FLAGS]:
        raise UserError(f"--benches {unknown[0]}: there are {', '.join(FLAGS)}")
    commits = {"before": commit_of(config.rev), "now": commit_of("HEAD")}
    if commits["before"] == commits["now"]:
        raise UserError(f"--rev {config.rev} is the present commit {commits['now'][:12]}: give an earlier one")
    ratios: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: {"before": [], "now": []})
    with checked_out(commits) as folders:
        for number in range(config.rounds):
            for name in config.benches:
                for side in ("before", "now") if number % 2 == 0 else ("now", "before"):
                    for row in run(folders[side], name):
                        ratios[name, setting_of(row)][side].append(row["ratio"])
                        print(f"round {number + 1}, {name}, {side}: {setting_of(row)} {row['ratio']}", flush=True)
    rows = [compared(name, setting, found) for (name, setting), found in ratios.items()]
    command = " ".join(["python tests/bench/against_parent.py", *argv])
    about = {"command": command, "commit": commits["now"], "before": commits["before"], "device": machine_name("cpu")}
    for row in rows:
        print(f"{row['quotient']}  {row['of']} {row['setting']}: {row['ratios']}")
    if config.out:
        write_json(config.out, [{"bench": "against_parent", **row, **about} for row in rows])
    if slower := [row for row in rows if row["quotient"] is None or row["quotient"] < config.least]:
        named = ", ".join(f"{row['of']} {row['quotient']}" for row in slower)
        raise UserError(
            f"{len(slower)} of {len(rows)} ratios are below {config.least} of the earlier commit's: {named}"
        )


def commit_of(rev: str) -> str:
    done = git("rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}")
    if done.returncode:
        raise UserError(f"--rev {rev}: git knows no such commit")
    return done.stdout.strip()


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)


@contextmanager
def checked_out(commits: dict[str, str]) -> Iterator[dict[str, Path]]:
    """A clean worktree of each commit."""
    with tempfile.TemporaryDirectory() as home:
        folders = {side: Path(home, side) for side in commits}
        try:
            for side, folder in folders.items():
                done = git("worktree", "add", "--detach", str(folder), commits[side])
                if done.returncode:
                    raise UserError(f"git worktree: {done.stderr.strip().splitlines()[-1]}")
            yield folders
        finally:
            for folder in folders.values():
                git("worktree", "remove", "--force", str(folder))


def run(folder: Path, name: str) -> list[dict[str, Any]]:
    """The records of a bench of this checkout."""
    out = folder.parent / f"{name}.json"
    command = [sys.executable, str(folder / "tests" / "bench" / f"{name}.py"), *FLAGS[name], "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{name} at {folder.name}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return json.loads(out.read_text(encoding="utf-8"))


def setting_of(row: dict[str, Any]) -> str:
    """What tells a bench's records apart."""
    return json.dumps({**row["setting"], "against": row["against"]}, sort_keys=True)


def compared(name: str, setting: str, found: dict[str, list[float]]) -> dict[str, Any]:
    """The quotient of the medians; None where only one of the commits has such a record."""
    both = all(found.values())
    quotient = round(statistics.median(found["now"]) / statistics.median(found["before"]), 3) if both else None
    return {"of": name, "setting": json.loads(setting), "quotient": quotient, "ratios": found}


if __name__ == "__main__":
    run_main(main)
