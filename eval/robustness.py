"""Measure how verdicts hold up when images are compressed, scaled, blurred or cropped.

    accelerate launch --quiet eval/robustness.py --model runs/moondream_lora --benchmark data/pairs

The program is in vlm_detect/benchmark/commands.py; `--help` says more.
"""

from vlm_detect.benchmark.commands import robustness
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(robustness)
