"""Add reasons for the labels to a finished dataset. The same command resumes.

    python data_gen/reasons.py data/pairs --out data/pairs_reasons

The program is vlm_detect/generate/add_reasons.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.generate.add_reasons import main

if __name__ == "__main__":
    run_main(main)
