"""Score a model, or recorded answers, on a VQA benchmark.

    accelerate launch --quiet eval/vqa_benchmark.py --model runs/moondream_lora --benchmark data/pairs

The program is in vlm_detect/benchmark/commands.py; `--help` says more.
"""

from vlm_detect.benchmark.commands import benchmark
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(benchmark)
