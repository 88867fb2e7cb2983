"""Finetune any image-text-to-text model of transformers with LoRA to tell AI images from photos.

    vlm-detect train vlm --model Qwen/Qwen2.5-VL-3B-Instruct --data data/pairs
    vlm-detect train vlm --config vlm_lora --model google/gemma-3-4b-it
    vlm-detect train vlm --config vlm_qlora --model HuggingFaceTB/SmolVLM-Instruct

Questions and answers are formatted by the processor's chat template, or plainly where a model has none. --data and the
output are those of vlm-detect train moondream. In LLaVA, LLaVA-OneVision, Gemma 3, Idefics2 and 3, SmolVLM, InternVL,
GLM-4.6V and Qwen2 to 3-VL all questions of an image share its prefix. In PaliGemma, whose image and question attend to
each other, and in other models, each question is a separate row in which the tower encodes the image again: there
--questions_per_image 1 is cheaper.

On all GPUs: accelerate launch --quiet -m vlm_detect.train.vlm (in a clone: recipes/vlm_lora.py) with the same flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_detect.errors import run_main
from vlm_detect.train.command import Options, each_seed
from vlm_detect.train.options import ModelOptions, TrainOptions


@dataclass(frozen=True)
class VlmOptions(ModelOptions):
    model: str = field(metadata={"help": "Hub id or folder of an image-text-to-text model of transformers."})


@dataclass
class VlmTraining(TrainOptions):
    output_dir: str | None = field(default="runs/vlm_lora", metadata={"help": "The run directory."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})


def parse(argv: Sequence[str], doc: str | None = __doc__, *, has_launch: bool = False) -> Options:
    return Options.parse(argv, doc=doc, training=VlmTraining, model=VlmOptions, has_launch=has_launch)


def main(argv: list[str]) -> None:
    options = parse(argv)
    from vlm_detect.train.program import finetune  # lazy: imports torch, which --help does not need

    each_seed(options, finetune)


if __name__ == "__main__":
    run_main(main)
