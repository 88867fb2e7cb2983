"""Make the nano family: small models of exactly the real architectures, for rehearsal, teaching and tests.

    python recipes/nano_pretrain.py --config recipes/configs/nano_sd35.yaml         # the renderer, and its judge
    python recipes/nano_pretrain.py --config recipes/configs/nano_moondream.yaml    # the captioner

Every stage trains, measures and exports by itself, and the same command resumes where it stopped. It reads real
photographs only (CIFAR-10, or the real half of CIFAKE in $VLM_DETECT_DATA): a base model that had seen fakes could not
show what finetuning adds.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from transformers import AutoTokenizer

from vlm_detect.config import parse_config
from vlm_detect.errors import UserError, run_main
from vlm_detect.models.nano.autoencoder import VaeConfig, train_autoencoder
from vlm_detect.models.nano.captioner import (
    CaptionerConfig,
    TowerConfig,
    build_captioner,
    facts_of,
    train_captioner,
    train_tower,
)
from vlm_detect.models.nano.captions import sample_texts
from vlm_detect.models.nano.config import NanoConfig, section
from vlm_detect.models.nano.judge import JudgeConfig, train_judge
from vlm_detect.models.nano.photos import default_source, load_photos
from vlm_detect.models.nano.renderer import RendererConfig, train_renderer
from vlm_detect.models.nano.tokenizer import train_tokenizer


def main(argv: list[str]) -> None:
    (config,) = parse_config([NanoConfig], argv, doc=__doc__)
    if config.threads:
        torch.set_num_threads(config.threads)
    diffusers_logging.set_verbosity_error()  # long captions are cut to the encoders' few tokens on purpose
    out, seed = Path(config.output_dir), config.seed
    training, held_out = load_photos(config.data or default_source(), out / "photos.npz").split()
    for stage in config.stages:
        if stage == "vae":
            train_autoencoder(section(config, "vae", VaeConfig), training, held_out, out, seed)
        elif stage == "renderer":
            vae = AutoencoderKL.from_pretrained(out / "vae")
            train_renderer(section(config, "renderer", RendererConfig), vae, training, out, seed)
        elif stage == "judge":
            train_judge(section(config, "judge", JudgeConfig), training, held_out, out, seed)
        elif stage == "tokenizer":
            sizes = section(config, "captioner", CaptionerConfig)
            texts = sample_texts(facts_of(training), Random(seed))
            train_tokenizer(texts, sizes.vocabulary).save_pretrained(out / "tokenizer")
        elif stage in ("tower", "captioner"):
            sizes = section(config, "captioner", CaptionerConfig)
            torch.manual_seed(seed)
            model, processor = build_captioner(sizes, AutoTokenizer.from_pretrained(out / "tokenizer"))
            facts = facts_of(training)
            judge, _ = train_judge(section(config, "judge", JudgeConfig), training, held_out, out, seed)
            figures = train_tower(
                model, section(config, "tower", TowerConfig), judge, training, facts, held_out, out, seed
            )
            print(figures)
            if stage == "captioner":
                train_captioner(model, processor, sizes, training, facts, out, seed)
        else:
            raise UserError(f"--stages {stage}: choose from vae, judge, renderer, tokenizer, tower, captioner")


if __name__ == "__main__":
    run_main(main)
