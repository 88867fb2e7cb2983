"""Import existing pairs of photos and generated twins as a pair dataset, with all checks of make-pairs. Resumes.

    python data_gen/import_pairs.py photos/ twins/ --out data/pairs --generator midjourney-6

The program is vlm_detect/generate/import_pairs.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.generate.import_pairs import main

if __name__ == "__main__":
    run_main(main)
