"""Finetune any image-text-to-text model of transformers with LoRA to tell AI images from photos.

    accelerate launch --quiet recipes/vlm_lora.py --model Qwen/Qwen2.5-VL-3B-Instruct --data data/pairs

The program is vlm_detect/train/vlm.py; `--help` says more.
"""

from vlm_detect.errors import run_main
from vlm_detect.train.vlm import main

if __name__ == "__main__":
    run_main(main)
