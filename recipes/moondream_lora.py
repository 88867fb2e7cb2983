"""Finetune moondream2 with LoRA to tell AI images from photos.

    accelerate launch --quiet recipes/moondream_lora.py --config moondream_lora --data data/pairs

The program is vlm_detect/train/moondream.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.train.moondream import main

if __name__ == "__main__":
    run_main(main)
