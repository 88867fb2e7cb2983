"""The effect of the inverted and saturated view on images, at full resolution and at 32 pixels: a figure and numbers.

    python eval/invert_saturate.py --out docs/invert_saturate.png --data data/cifake

The program is vlm_detect/cnn/invert_saturate.py; `--help` says more.
"""

from vlm_detect.cnn.invert_saturate import main
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(main)
