"""Finetune TinyLLaVA with LoRA to tell AI images from photos, and to say why.

    vlm-detect train tinyllava                                     # the largest model that fits this machine
    vlm-detect train tinyllava --config tinyllava_lora --data data/pairs
    vlm-detect train tinyllava --config tinyllava_lora --data captions.json

--data is a pair dataset, an image dataset, or a JSON file of conversations in LLaVA's format, with images at its paths
or next to it. --model is the released TinyLLaVA, another member of its family, or the output folder of a
TinyLLaVA_Factory run. Defaults are the official recipe's: a LoRA of rank 128 on the language model, the connector in
full, the tower frozen. The output is that of vlm-detect train moondream.

On all GPUs: accelerate launch --quiet -m vlm_detect.train.tinyllava (in a clone: recipes/tinyllava_lora.py)
with the same flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_detect.errors import run_main
from vlm_detect.train.command import Options, each_seed
from vlm_detect.train.options import LoraOptions, TrainOptions


@dataclass(frozen=True)
class TinyLlavaLora(LoraOptions):
    lora_r: int = field(default=128, metadata={"help": "Rank."})
    lora_alpha: int = field(default=256, metadata={"help": "Scale; the update is multiplied by alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the adapter's input."})
    train_connector: bool = field(
        default=True, metadata={"help": "Also train the connector between tower and language model, in full."}
    )


@dataclass
class TinyLlavaOptions(TrainOptions):
    output_dir: str | None = field(default="runs/tinyllava_lora", metadata={"help": "The run directory."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: float = field(
        default=0.03, metadata={"help": "Warm-up steps; a value below 1 is a fraction of all steps."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs."})


def parse(argv: Sequence[str], doc: str | None = __doc__, *, has_launch: bool = False) -> Options:
    return Options.parse(
        argv,
        doc=doc,
        training=TinyLlavaOptions,
        lora=TinyLlavaLora,
        nano_config="tinyllava_nano",
        role="tinyllava",
        has_launch=has_launch,
    )


def main(argv: list[str]) -> None:
    options = parse(argv)
    from vlm_detect.train.program import finetune  # lazy: imports torch, which --help does not need

    each_seed(options, finetune)


if __name__ == "__main__":
    run_main(main)
