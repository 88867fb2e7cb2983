"""Finetune any image-text-to-text model of transformers with LoRA to tell AI images from photos.

    accelerate launch recipes/vlm_lora.py --model Qwen/Qwen2.5-VL-3B-Instruct --data data/pairs
    accelerate launch recipes/vlm_lora.py --config recipes/configs/vlm_lora.yaml --model google/gemma-3-4b-it
    accelerate launch recipes/vlm_lora.py --config recipes/configs/vlm_qlora.yaml --model HuggingFaceTB/SmolVLM-Instruct

The model needs a processor with a chat template; questions and answers take its form. --data and what comes out in
--output_dir are those of recipes/moondream_lora.py. Outside the LLaVA family each question is a row of its own, in
which the tower reads the image anew: there --questions_per_image 1 is cheaper than many questions at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_detect.errors import UserError, run_main
from vlm_detect.models.registry import load_vlm, resolve_id
from vlm_detect.train.options import ModelOptions, TrainOptions
from vlm_detect.train.program import Options, each_seed, finish, make_trainer, open_data, open_run, train
from vlm_detect.train.tuning import loading, tune


@dataclass(frozen=True)
class VlmOptions(ModelOptions):
    model: str = field(default="", metadata={"help": "Hub id or folder of an image-text-to-text model. Needed."})


@dataclass
class VlmTraining(TrainOptions):
    output_dir: str | None = field(default="runs/vlm_lora", metadata={"help": "The run directory."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})


def main(argv: list[str]) -> None:
    options = Options.parse(argv, doc=__doc__, training=VlmTraining, model=VlmOptions)
    if not options.model.model:
        raise UserError("--model is missing: give the Hub id or folder of an image-text-to-text model of transformers")
    each_seed(options, finetune)


def finetune(options: Options) -> None:
    training = options.training

    # The data, and whether this run was begun or finished before.
    data = open_data(options)
    base = resolve_id(options.model.model, revision=options.model.revision)
    run = open_run(options, base, data)
    if run.finished:
        return

    # The model, and what of it learns: a LoRA around its linear layers, or the whole language model.
    held = loading(options.model, training.device)
    vlm = load_vlm(base.name, revision=base.revision, device=training.device, **held)
    tune(vlm, options.model, options.lora, training.seed)

    # Training. After each epoch the validation split is scored; at the end the best checkpoint is loaded.
    trainer = make_trainer(options, vlm, data)
    train(trainer, run)

    # What stays: the adapter and the processor, the calibration, the card, and last the mark that all of it is there.
    finish(trainer, run, options, data)


if __name__ == "__main__":
    run_main(main)
