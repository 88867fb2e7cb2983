"""Build a VQA benchmark from a dataset, or measure what a benchmark leaks without its images.

    python eval/build_vqa.py data/pairs --out data/vqa/benchmark.json

The program is in vlm_detect/benchmark/commands.py; `--help` says more.
"""

from vlm_detect.benchmark.commands import build_vqa
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(build_vqa)
