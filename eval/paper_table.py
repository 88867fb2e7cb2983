"""Make the table of a paper: every model on every set, next to what each set leaks.

    accelerate launch --quiet eval/paper_table.py data/sid data/opensdi --models runs/moondream_lora runs/cnn

The program is in vlm_detect/benchmark/commands.py; `--help` says more.
"""

from vlm_detect.benchmark.commands import paper_table
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(paper_table)
