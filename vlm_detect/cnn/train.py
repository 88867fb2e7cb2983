"""Train a CNN baseline to tell generated images from photos, on a dataset of pairs or of single images.

    vlm-detect train cnn --arch fakenet2 --data data/cifake
    vlm-detect train cnn --config cnn_flux_small --view invert_saturate
    vlm-detect train cnn --arch resnet18 --object_head True --data data/cifake     # two heads
    vlm-detect train cnn --arch frozen --weights facebook/dinov2-small --data data/pairs
    vlm-detect train cnn --arch fakenet2 --data data/cifake --test_data data/other # another generator

Images are decoded once into --pixels_dir; augmentation is batched and moves pixels without resampling. Output in
--output_dir: model.safetensors and config.json, calibration.json, run.json, checkpoints, a model card, and for the
validation split and each --test_data a folder with results.jsonl, summary.json and report.html, as in the VLM
benchmark. The same command resumes an interrupted run, or says that nothing is left to do.

On all GPUs: accelerate launch --quiet -m vlm_detect.cnn.train (in a clone: recipes/cnn.py) with the same flags.
"""

from __future__ import annotations

from pathlib import Path

from vlm_detect.cnn.options import CnnDataOptions, CnnTrainOptions, NetworkOptions
from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.flags import Deferred
from vlm_detect.locks import held
from vlm_detect.train.trainer_flags import trainer_flags


def main(argv: list[str]) -> None:
    trainer = Deferred(CnnTrainOptions, _arguments, trainer_flags, CnnTrainOptions.replaced)
    network, data, training = parse_config([NetworkOptions, CnnDataOptions, trainer], argv, doc=__doc__)
    from vlm_detect.cnn.program import train_network  # lazy: imports torch, which --help does not need

    training.output_dir = training.output_dir or f"runs/cnn_{network.arch}"
    with held(Path(training.output_dir), flag="--output_dir", when=training.process_index == 0):
        train_network(network, data, training)


def _arguments() -> type:
    from vlm_detect.cnn.arguments import CnnTrainArguments

    return CnnTrainArguments


if __name__ == "__main__":
    run_main(main)
