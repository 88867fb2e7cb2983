"""Step 1 of 3: caption photos. The same command resumes.

    python data_gen/caption.py --images photos/ --out work/captions

The program is vlm_detect/generate/caption.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.generate.caption import main

if __name__ == "__main__":
    run_main(main)
