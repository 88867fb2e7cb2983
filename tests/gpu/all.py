"""Run the GPU programs, one after the other, each in a process of its own.

    python tests/gpu/all.py --out eval/results/gpu            # the short set: valid figures in ten minutes
    python tests/gpu/all.py --only rendering                  # one of the others, by itself
    python tests/gpu/all.py --only training cnn

What a program had written when it failed or ran out of its time stays; the exit status is 1 if one did.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import UserError, run_main

HERE = Path(__file__).parent
PROGRAMS = {  # name: arguments of python, and the seconds that it may take
    "parity": (["tests/gpu/parity.py"], 120),
    "training_short": (["tests/gpu/training.py", "--short", "True", "--repeats", "3"], 180),
    "recipe": (["tests/gpu/recipe.py"], 180),
    "scoring": (["tests/gpu/scoring.py", "--repeats", "3"], 120),
    "training": (["tests/gpu/training.py"], 420),
    "training_tinyllava": (["tests/gpu/training.py", "--family", "tinyllava"], 150),
    "rendering": (["tests/gpu/rendering.py"], 900),
    "cnn": (["tests/gpu/cnn.py"], 900),
    "nano": (["tests/gpu/nano.py"], 1500),
}
SHORT = ("parity", "training_short", "recipe", "scoring")  # their limits make ten minutes


@dataclass(frozen=True)
class Config:
    out: str = field(default="eval/results/gpu", metadata={"help": "A folder; each program writes NAME.json there."})
    only: list[str] = field(
        default_factory=lambda: list(SHORT),
        metadata={"help": f"Of {', '.join(PROGRAMS)}; default: {', '.join(SHORT)}."},
    )


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    if unknown := [name for name in config.only if name not in PROGRAMS]:
        raise UserError(f"--only {' '.join(unknown)}: choose from {', '.join(PROGRAMS)}")
    failed = []
    for name in config.only:
        arguments, limit_s = PROGRAMS[name]
        command = [sys.executable, *arguments, "--out", str(Path(config.out).absolute() / f"{name}.json")]
        print(f"== {' '.join(command[1:])}", flush=True)
        started = time.perf_counter()
        status = status_of(command, limit_s)
        print(f"== {name}: {time.perf_counter() - started:.0f} s, exit {status}", flush=True)
        failed += [name] if status != 0 else []
    if failed:
        raise UserError(f"failed: {', '.join(failed)}")


def status_of(command: list[str], limit_s: float) -> int | str:
    """The exit status of `command`, or that it ran out of time; the processes that it started end with it."""
    with subprocess.Popen(command, cwd=HERE.parents[1], start_new_session=True) as process:
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return f"more than {limit_s} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    run_main(main)
