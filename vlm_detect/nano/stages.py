"""The stages that make the nano family, which `recipes/nano_pretrain.py` runs in order."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from PIL import Image
from transformers import AutoTokenizer

from vlm_detect.errors import UserError
from vlm_detect.machine import best_device
from vlm_detect.models import nano
from vlm_detect.models.generic import LlavaVLM
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.models.nano import NanoName
from vlm_detect.models.tinyllava.processing import SYSTEM
from vlm_detect.models.untrusted import load_untrusted
from vlm_detect.nano.autoencoder import psnr_db, train_autoencoder
from vlm_detect.nano.captioner import (
    Teaching,
    build_captioner,
    facts_of,
    moondream_tower,
    train_captioner,
    train_tower,
)
from vlm_detect.nano.captions import sample_texts
from vlm_detect.nano.cards import write_card
from vlm_detect.nano.config import NanoConfig, TowerConfig, section
from vlm_detect.nano.figures import judge_renders, question_captioner, record
from vlm_detect.nano.judge import Judge, train_judge
from vlm_detect.nano.photos import Photos, default_source, load_photos
from vlm_detect.nano.renderer import train_renderer
from vlm_detect.nano.tinyllava import (
    NanoTinyLlava,
    build_tinyllava,
    save_tinyllava,
    start_from_moondream,
    tinyllava_tower,
)
from vlm_detect.nano.tokenizer import train_tokenizer
from vlm_detect.nano.weights import halve
from vlm_detect.quiet import quiet


@quiet("diffusers")  # long captions are cut to the encoders' few tokens on purpose
def run_stages(config: NanoConfig) -> None:
    """Run the stages of `config` in its order; each trains, measures and exports on its own."""
    if config.threads:
        torch.set_num_threads(config.threads)
    source = config.data or default_source()
    training, held_out = load_photos(source, Path(config.output_dir) / "photos.npz").split()
    run = {"vae": vae, "judge": judge, "renderer": renderer}
    run |= {"tokenizer": tokenizer, "captioner": captioner, "tinyllava": tinyllava}
    for stage in config.stages:
        run[stage](config, training, held_out)


def vae(config: NanoConfig, training: Photos, held_out: Photos) -> dict[str, float]:
    """Photographs to latents and back."""
    out = Path(config.output_dir)
    sizes, device = section(config, "vae"), place(config)
    _, figures = train_autoencoder(sizes, training, held_out, out, config.seed, device)
    made: dict[str, Any] = {"seed": config.seed, "device": device}
    record(figures_folder(config) / "vae.json", model="sd35-nano", task="autoencoding", **(made | figures))
    return figures


def judge(config: NanoConfig, training: Photos, held_out: Photos) -> dict[str, float]:
    """The classifier that judges the renders and teaches the captioner's tower."""
    _, figures = trained_judge(config, training, held_out)
    made: dict[str, Any] = {"seed": config.seed, "device": place(config)}
    record(figures_folder(config) / "judge.json", model="nano judge", task="ten classes", **(made | figures))
    return figures


def trained_judge(config: NanoConfig, training: Photos, held_out: Photos) -> tuple[Judge, dict[str, float]]:
    """The judge, trained now or earlier in the same output_dir, with its figures."""
    sizes = section(config, "judge")
    return train_judge(sizes, training, held_out, Path(config.output_dir), config.seed, place(config))


def renderer(config: NanoConfig, training: Photos, held_out: Photos) -> None:
    """Captions to images, and the judge's verdict on them."""
    out, sizes = Path(config.output_dir), section(config, "renderer")
    start, before = started_from(config, "sd35")
    loaded = load_untrusted(StableDiffusion3Pipeline, start) if start else load_untrusted(AutoencoderKL, out / "vae")
    pipeline, trained = train_renderer(sizes, loaded, training, out, config.seed, place(config))
    critic, judged = trained_judge(config, training, held_out)
    figures, images = judge_renders(
        pipeline,
        critic,
        held_out,
        facts_of(held_out),
        renders=section(config, "judge").renders,
        steps=sizes.sampling_steps,
        guidance=sizes.guidance_scale,
        seed=config.seed,
    )
    rows = images[:100].reshape(10, 10, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(320, 320, 3)
    Image.fromarray(rows).resize((960, 960), Image.Resampling.NEAREST).save(out / "renders.png")
    figures |= {
        **trained,
        "judge_accuracy": judged["accuracy"],
        "psnr_db": round(psnr_db(pipeline.vae, held_out.images[:1000]), 2),
    }
    made: dict[str, Any] = {"seed": config.seed, "device": place(config)}
    path = figures_folder(config) / "renderer.json"
    figures = record(path, model="sd35-nano", task="text to image", **(made | figures))
    stages = {"renderer": sizes} if start else {"vae": section(config, "vae"), "renderer": sizes}
    write_card(out / "sd35", "sd35", config=stages, before=before, t5_tokens=sizes.t5_tokens, **figures)
    install(config, "sd35")


def tokenizer(config: NanoConfig, training: Photos, held_out: Photos) -> None:
    """The captioner's vocabulary, from its own texts and a page of English."""
    sizes = section(config, "captioner")
    texts = sample_texts(facts_of(training), Random(config.seed))
    train_tokenizer(texts, sizes.vocabulary).save_pretrained(Path(config.output_dir) / "tokenizer")


def captioner(config: NanoConfig, training: Photos, held_out: Photos) -> None:
    """Images and questions to words: first the tower alone, then everything."""
    out, seed, sizes = Path(config.output_dir), config.seed, section(config, "captioner")
    if not (out / "tokenizer").is_dir():
        tokenizer(config, training, held_out)
    teacher, judged = trained_judge(config, training, held_out)
    torch.manual_seed(seed)
    start, before = started_from(config, "moondream")
    if start:
        model = load_untrusted(MoondreamForConditionalGeneration, start, dtype=torch.float32)
        processor = load_untrusted(MoondreamProcessor, start)
    else:
        model, processor = build_captioner(sizes, load_untrusted(AutoTokenizer, out / "tokenizer"))
    model.to(place(config))
    model.set_attn_implementation("eager")  # torch's fused attention on a CPU is slow in bfloat16
    facts = facts_of(training)
    tower, grid = moondream_tower(model, teacher).to(place(config)), model.config.vision_config.grid_size
    figures: dict[str, Any] = {"judge_accuracy": judged["accuracy"]}
    if start:
        teaching, stages = Teaching(training, facts, teacher, TowerConfig.distillation, grid), {"captioner": sizes}
    else:
        tower_config = section(config, "tower")
        teaching = Teaching(training, facts, teacher, tower_config.distillation, grid)
        stages = {"tower": tower_config, "captioner": sizes}
        warm = train_tower(tower, teaching, tower_config, held_out, out, seed)
        figures |= {"tower_accuracy": warm["accuracy"], "seconds_tower": warm["seconds"]}
    vlm = MoondreamVLM(model, processor, "moondream-nano")
    trained = train_captioner("captioner", vlm, tower, teaching, facts, config=sizes, folder=out, seed=seed)
    model.save_pretrained(out / "moondream")
    processor.save_pretrained(out / "moondream")
    halve(out / "moondream")
    figures |= question_captioner(vlm, held_out, facts_of(held_out), n=1000, seed=seed) | trained
    figures = record(
        figures_folder(config) / "captioner.json",
        model="moondream-nano",
        task="captions, questions",
        seed=seed,
        device=place(config),
        **figures,
    )
    write_card(
        out / "moondream",
        "moondream",
        config=stages,
        before=before,
        vocabulary=model.config.text_config.vocab_size,
        **figures,
    )
    install(config, "moondream")


def tinyllava(config: NanoConfig, training: Photos, held_out: Photos) -> None:
    """The other captioner: the weights of `init`'s moondream in TinyLLaVA's form, trained on its template."""
    out, seed, sizes = Path(config.output_dir), config.seed, section(config, "tinyllava")
    start, _ = started_from(config, "moondream")
    if start is None:
        raise UserError("stage tinyllava starts from a nano moondream: give --init nano, or a folder with moondream/")
    teacher, judged = trained_judge(config, training, held_out)
    facts = facts_of(training)
    texts = sample_texts(facts, Random(seed))
    words = train_tokenizer([*texts, *[f"{SYSTEM} USER: ASSISTANT:"] * 2000], sizes.vocabulary)
    torch.manual_seed(seed)
    model, processor = build_tinyllava(NanoTinyLlava(), words)
    moondream = load_untrusted(MoondreamForConditionalGeneration, start, dtype=torch.float32)
    start_from_moondream(model, processor.tokenizer, moondream, load_untrusted(AutoTokenizer, start))
    model.to(place(config))
    model.set_attn_implementation("eager")
    vlm, tower = LlavaVLM(model, processor, "tinyllava-nano"), tinyllava_tower(model, teacher).to(place(config))
    grid = NanoTinyLlava.image_size // NanoTinyLlava.patch_size
    teaching = Teaching(training, facts, teacher, TowerConfig.distillation, grid)
    trained = train_captioner("tinyllava", vlm, tower, teaching, facts, config=sizes, folder=out, seed=seed)
    save_tinyllava(model, processor, out / "tinyllava")
    halve(out / "tinyllava")
    figures = question_captioner(vlm, held_out, facts_of(held_out), n=1000, seed=seed)
    figures |= {**trained, "judge_accuracy": judged["accuracy"]}
    figures = record(
        figures_folder(config) / "tinyllava.json",
        model="tinyllava-nano",
        task="captions, questions",
        seed=seed,
        device=place(config),
        **figures,
    )
    vocabulary = model.config.text_config.vocab_size
    write_card(out / "tinyllava", "tinyllava", config={"tinyllava": sizes}, vocabulary=vocabulary, **figures)
    install(config, "tinyllava")


def place(config: NanoConfig) -> torch.device:
    return torch.device(config.device) if config.device else best_device()


def figures_folder(config: NanoConfig) -> Path:
    return Path(config.figures_dir or config.output_dir)


def started_from(config: NanoConfig, name: NanoName) -> tuple[Path | None, str]:
    """The weights to continue from, if any, and their card."""
    if config.init is None:
        return None, ""
    folder = nano.nano_path(name) if config.init == "nano" else Path(config.init) / name
    if not folder.is_dir():
        raise UserError(f"--init {config.init}: no folder {name}/ there; give an --output_dir of this recipe, or nano")
    return folder, (folder / "README.md").read_text(encoding="utf-8")


def install(config: NanoConfig, name: str) -> None:
    """Copy the exported weights into the package if `--install` is given."""
    if config.install:
        target = Path(nano.__file__).parent / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(config.output_dir) / name, target)
