"""Make a pair dataset from photos: caption, render and write. The same command resumes.

    python data_gen/make_pairs.py --images photos/ --out data/pairs

The program is vlm_detect/generate/make_pairs.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.generate.make_pairs import main

if __name__ == "__main__":
    run_main(main)
