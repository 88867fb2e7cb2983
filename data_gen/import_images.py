"""Import labelled images as an image dataset. The same command resumes.

    python data_gen/import_images.py --from cifake archive/ --out data/cifake

The program is vlm_detect/generate/import_images.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.generate.import_images import main

if __name__ == "__main__":
    run_main(main)
