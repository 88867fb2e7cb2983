"""Make the nano family: small models of exactly the real architectures, for rehearsal, teaching and tests.

    python recipes/nano_pretrain.py --config recipes/configs/nano_sd35.yaml         # the renderer, and its judge
    python recipes/nano_pretrain.py --config recipes/configs/nano_moondream.yaml    # the captioner

Every stage trains, measures and exports by itself, and the same command resumes where it stopped; `--install` copies
the result into the package. It reads real photographs only (CIFAR-10, or the real half of CIFAKE in $VLM_DETECT_DATA):
a base model that had seen fakes could not show what finetuning adds.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers import AutoTokenizer

from vlm_detect.config import parse_config
from vlm_detect.errors import UserError, run_main
from vlm_detect.models import nano
from vlm_detect.models.nano.autoencoder import VaeConfig, train_autoencoder
from vlm_detect.models.nano.captioner import (
    CaptionerConfig,
    Teaching,
    TowerConfig,
    TowerHeads,
    build_captioner,
    facts_of,
    train_captioner,
    train_tower,
)
from vlm_detect.models.nano.captions import sample_texts
from vlm_detect.models.nano.cards import write_card
from vlm_detect.models.nano.config import NanoConfig, section
from vlm_detect.models.nano.figures import judge_renders, question_captioner, record
from vlm_detect.models.nano.judge import JudgeConfig, train_judge
from vlm_detect.models.nano.photos import Photos, default_source, load_photos
from vlm_detect.models.nano.renderer import RendererConfig, train_renderer
from vlm_detect.models.nano.tokenizer import train_tokenizer

STAGES = ("vae", "judge", "renderer", "tokenizer", "captioner")


def main(argv: list[str]) -> None:
    (config,) = parse_config([NanoConfig], argv, doc=__doc__)
    if unknown := [stage for stage in config.stages if stage not in STAGES]:
        raise UserError(f"--stages {' '.join(unknown)}: no such stage; choose from {', '.join(STAGES)}")
    if config.threads:
        torch.set_num_threads(config.threads)
    diffusers_logging.set_verbosity_error()  # long captions are cut to the encoders' few tokens on purpose
    source = config.data or default_source()
    training, held_out = load_photos(source, Path(config.output_dir) / "photos.npz").split()
    run = {"vae": vae, "judge": judge, "renderer": renderer, "tokenizer": tokenizer, "captioner": captioner}
    for stage in config.stages:
        run[stage](config, training, held_out)


def vae(config: NanoConfig, training: Photos, held_out: Photos) -> dict[str, float]:
    """Photographs to latents and back."""
    out = Path(config.output_dir)
    _, figures = train_autoencoder(section(config, "vae", VaeConfig), training, held_out, out, config.seed)
    record(figures_folder(config) / "vae.json", model="sd35-nano", task="autoencoding", seed=config.seed, **figures)
    return figures


def judge(config: NanoConfig, training: Photos, held_out: Photos) -> dict[str, float]:
    """The classifier that the renders are shown to, and that the captioner's tower learns from."""
    sizes = section(config, "judge", JudgeConfig)
    _, figures = train_judge(sizes, training, held_out, Path(config.output_dir), config.seed)
    record(figures_folder(config) / "judge.json", model="nano judge", task="ten classes", seed=config.seed, **figures)
    return figures


def renderer(config: NanoConfig, training: Photos, held_out: Photos) -> None:
    """Captions to images, and the judge's verdict on them."""
    out, sizes = Path(config.output_dir), section(config, "renderer", RendererConfig)
    autoencoder = AutoencoderKL.from_pretrained(out / "vae")
    pipeline, trained = train_renderer(sizes, autoencoder, training, out, config.seed)
    judge_config = section(config, "judge", JudgeConfig)
    critic, judged = train_judge(judge_config, training, held_out, out, config.seed)
    figures, images = judge_renders(
        pipeline,
        critic,
        held_out,
        facts_of(held_out),
        renders=judge_config.renders,
        steps=sizes.sampling_steps,
        guidance=sizes.guidance_scale,
        seed=config.seed,
    )
    rows = images[:100].reshape(10, 10, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(320, 320, 3)
    Image.fromarray(rows).resize((960, 960), Image.Resampling.NEAREST).save(out / "renders.png")
    figures |= {**trained, "judge_accuracy": judged["accuracy"]}
    record(
        figures_folder(config) / "renderer.json", model="sd35-nano", task="text to image", seed=config.seed, **figures
    )
    autoencoding = vae(config, training, held_out)
    write_card(
        out / "sd35",
        "sd35",
        config={"vae": section(config, "vae", VaeConfig), "renderer": sizes},
        t5_tokens=sizes.t5_tokens,
        psnr_db=autoencoding["psnr_db"],
        seconds_vae=autoencoding["seconds"],
        **figures,
    )
    install(config, "sd35")


def tokenizer(config: NanoConfig, training: Photos, held_out: Photos) -> None:
    """The captioner's vocabulary, from its own texts and a page of English."""
    sizes = section(config, "captioner", CaptionerConfig)
    texts = sample_texts(facts_of(training), Random(config.seed))
    train_tokenizer(texts, sizes.vocabulary).save_pretrained(Path(config.output_dir) / "tokenizer")


def captioner(config: NanoConfig, training: Photos, held_out: Photos) -> None:
    """Images and questions to words: first the tower alone, then everything."""
    out, seed, sizes = Path(config.output_dir), config.seed, section(config, "captioner", CaptionerConfig)
    if not (out / "tokenizer").is_dir():
        tokenizer(config, training, held_out)
    teacher, _ = train_judge(section(config, "judge", JudgeConfig), training, held_out, out, seed)
    torch.manual_seed(seed)
    model, processor = build_captioner(sizes, AutoTokenizer.from_pretrained(out / "tokenizer"))
    facts = facts_of(training)
    tower_config = section(config, "tower", TowerConfig)
    tower, teaching = TowerHeads(model), Teaching(training, facts, teacher, tower_config.distillation)
    warm = train_tower(tower, teaching, tower_config.optimisation, held_out, out, seed)
    trained = train_captioner(model, processor, tower, teaching, facts, sizes, out, seed)
    figures = question_captioner(model, processor, held_out, facts_of(held_out), n=1000, seed=seed)
    figures |= {**trained, "tower_accuracy": warm["accuracy"], "seconds_tower": warm["seconds"]}
    record(
        figures_folder(config) / "captioner.json",
        model="moondream-nano",
        task="captions, questions",
        seed=seed,
        **figures,
    )
    write_card(
        out / "moondream",
        "moondream",
        config={"tower": tower_config, "captioner": sizes},
        vocabulary=model.config.text_config.vocab_size,
        **figures,
    )
    install(config, "moondream")


def figures_folder(config: NanoConfig) -> Path:
    return Path(config.figures_dir or config.output_dir)


def install(config: NanoConfig, name: str) -> None:
    """Copy the exported weights into the package, where `--install` asks for it."""
    if config.install:
        target = Path(nano.__file__).parent / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(config.output_dir) / name, target)


if __name__ == "__main__":
    run_main(main)
