"""Train a CNN baseline to tell generated images from photos.

    accelerate launch --quiet recipes/cnn.py --arch fakenet2 --data data/cifake

The program is vlm_detect/cnn/train.py; `--help` says more.
"""

from vlm_detect.cnn.train import main
from vlm_detect.errors import run_main

if __name__ == "__main__":
    run_main(main)
