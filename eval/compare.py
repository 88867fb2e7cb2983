"""Compare runs, and score files of other detectors, on the same items.

    python eval/compare.py runs/base/eval runs/moondream_lora/eval --out runs/compared

The program is in vlm_detect/benchmark/commands.py; `--help` says more.
"""

from vlm_detect.benchmark.commands import compare
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(compare)
