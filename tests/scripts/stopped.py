"""Runs a training program that sends itself a signal in the middle of a step.

    python tests/scripts/stopped.py SIGKILL 12 0,1 recipes/moondream_lora.py ...    # after step 12, in ranks 0 and 1

Sent from outside, on a busy machine a signal arrives steps later, or when all is done.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

from vlm_detect.train.progress import Progress

name, step, ranks = sys.argv[1:4]
plain = Progress.on_step_begin


def on_step_begin(self: Progress, args: Any, state: Any, control: Any, **options: Any) -> None:
    plain(self, args, state, control, **options)
    if state.global_step == int(step) and os.environ.get("RANK", "0") in ranks.split(","):
        os.kill(os.getpid(), getattr(signal, name))


Progress.on_step_begin = on_step_begin  # type: ignore[method-assign]
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
