"""Compare a model's evidence maps and explanations with planted edits, whose place and operation are known.

    python eval/evidence.py --model runs/edits_lora --data data/edits [--out runs/edits_lora/evidence]

The program is in vlm_detect/benchmark/commands.py; `--help` says more.
"""

from vlm_detect.benchmark.commands import evidence
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(evidence)
