"""Train a CNN baseline to tell generated images from photos, on a dataset of pairs or of single images.

    accelerate launch recipes/cnn.py --arch fakenet2 --data data/cifake
    accelerate launch recipes/cnn.py --config cnn_flux_small --view invert_saturate
    accelerate launch recipes/cnn.py --arch resnet18 --object_head True --data data/cifake     # two heads
    accelerate launch recipes/cnn.py --arch frozen --weights facebook/dinov2-small --data data/pairs
    accelerate launch recipes/cnn.py --arch fakenet2 --data data/cifake --test_data data/other # another generator

Images are decoded once into --pixels_dir; augmentation is batched and moves pixels without computing any anew. What
comes out in --output_dir: model.safetensors and config.json, calibration.json, run.json, checkpoints, a model card, and
for the validation split and each --test_data a folder with results.jsonl, summary.json and report.html, as the VLMs'
benchmark writes them. The same command again resumes a run that was stopped, or says that nothing is left to do.
"""

from __future__ import annotations

import vlm_detect  # isort: skip  # noqa: F401 (before torch: see there)
from pathlib import Path

from transformers import set_seed
from transformers.utils import logging

from vlm_detect.cnn.batches import Batches
from vlm_detect.cnn.card import write_card
from vlm_detect.cnn.evaluation import evaluate_split
from vlm_detect.cnn.figures import facts_of, line_of, write_figures
from vlm_detect.cnn.options import CnnDataOptions, CnnTrainOptions, NetworkOptions
from vlm_detect.cnn.program import calibration_of, check_choices, make_config, open_shots, place_for, scored_splits
from vlm_detect.cnn.tasks import targets_of
from vlm_detect.cnn.trainer import CnnTrainer
from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.machine import keep_freed_memory, use_cpu_cores
from vlm_detect.models.cnn.model import new_model
from vlm_detect.train.data import data_hashes
from vlm_detect.train.run_directory import RunDirectory


def main(argv: list[str]) -> None:
    options = parse_config([NetworkOptions, CnnDataOptions, CnnTrainOptions], argv, doc=__doc__)
    network, data_options, training = options
    use_cpu_cores(data_options.cpu_threads)
    keep_freed_memory()
    logging.disable_progress_bar()  # of files that are written in a tenth of a second
    check_choices(network, data_options)
    training.output_dir = training.output_dir or f"runs/cnn_{network.arch}"

    # The images, decoded once, and whether this run was begun or finished before.
    with training.main_process_first(desc="the images"):
        data = open_shots(network, data_options)
    config = make_config(network, data_options, data)
    run = RunDirectory.open(training.output_dir, options, data_sha256=data_hashes(data_options.data))
    if run.finished:
        print(f"{run.path}: this run is finished, nothing is left to do (another --output_dir trains anew)")
        return

    # The network, and its training set where the steps find it fastest.
    set_seed(training.seed)
    model = new_model(config, network.weights)
    targets = targets_of(data.train, config.heads or {}, config.task)
    device = place_for(data.train, data_options.resident, training.device)
    batches = Batches(data.train, targets, augment=data_options.augment, seed=training.seed, device=device)
    # A last batch of one image would have no variance for a batch norm to divide by.
    training.dataloader_drop_last = len(batches) > training.train_batch_size

    # Training. After each epoch the validation split is scored; at the end the best checkpoint is loaded.
    trainer = CnnTrainer(model, training, batches, data.validation, head_weights={"object": data_options.object_weight})
    is_main = trainer.is_world_process_zero()
    if is_main:
        run.write("running")
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint or run.checkpoint)

    # What stays: the network, the calibration, the scores of each split, and last the mark that all of it is there.
    trainer.save_model()
    summaries = {}
    for source, split, shots in scored_splits(data, data_options, config):
        logits = trainer.logits(shots)
        if not is_main:
            continue
        own = source == data_options.data and split == "validation"
        if own:
            calibration_of(shots, logits, config).save(run.path)
        folder = run.path / ("validation" if own else f"tests/{Path(source).name}-{split}")
        summary = evaluate_split(shots, logits, config, folder, data=source, split=split, model=str(run.path))
        summaries[summary["benchmark"]] = summary
        print(line_of(summary), flush=True)
    if is_main:
        trainer.save_state()
        facts = facts_of(trainer, run)
        write_card(run, config, data.train, summaries, parameters=facts["parameters"], command=facts["command"])
        if data_options.figures:
            write_figures(Path(data_options.figures), run, config, summaries, facts)
        run.write("finished", validation=next(iter(summaries.values()))["heads"], **facts)
        print(f"{run.path}: done. Look where it looked: vlm-detect explain --model {run.path} IMAGES --out PAGE.html")


if __name__ == "__main__":
    run_main(main)
