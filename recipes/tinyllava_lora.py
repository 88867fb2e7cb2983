"""Finetune TinyLLaVA with LoRA to tell AI images from photos, and to say why.

    accelerate launch --quiet recipes/tinyllava_lora.py --config tinyllava_lora --data data/pairs

The program is vlm_detect/train/tinyllava.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.train.tinyllava import main

if __name__ == "__main__":
    run_main(main)
