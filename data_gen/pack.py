"""Step 3 of 3: write photos and twins with identical encoding into a pair dataset for `datasets.load_dataset`.

    python data_gen/pack.py --renders work/renders --out data/pairs

The program is vlm_detect/generate/pack_pairs.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.generate.pack_pairs import main

if __name__ == "__main__":
    run_main(main)
