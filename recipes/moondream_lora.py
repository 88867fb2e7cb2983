"""Finetune moondream2 with LoRA to tell AI images from photos.

    accelerate launch recipes/moondream_lora.py                                   # whatever this machine can do
    accelerate launch recipes/moondream_lora.py --config recipes/configs/moondream_lora.yaml --data data/pairs
    accelerate launch recipes/moondream_lora.py --config recipes/configs/moondream_nano.yaml

With no dataset in data/pairs and no --data, pairs are made from the bundled photos first. What comes out in
--output_dir: the adapter in PEFT's layout, the processor, calibration.json, run.json, trainer_state.json, checkpoints
and a model card. The same command again resumes a run that was stopped, or says that nothing is left to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_detect.errors import run_main
from vlm_detect.models.registry import load_vlm, resolve_id
from vlm_detect.train.options import TrainOptions
from vlm_detect.train.program import Options, each_seed, finish, make_trainer, open_data, open_run, train
from vlm_detect.train.tuning import loading, tune


@dataclass
class MoondreamOptions(TrainOptions):
    output_dir: str | None = field(default="runs/moondream_lora", metadata={"help": "The run directory."})


def main(argv: list[str]) -> None:
    options = Options.parse(argv, doc=__doc__, training=MoondreamOptions, nano_config="moondream_nano.yaml")
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
