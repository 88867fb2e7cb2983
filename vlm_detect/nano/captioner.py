"""The nano captioners: small moondream and TinyLLaVA models that caption small photographs and answer questions.

Two stages. First the image tower alone learns the classes and colours through linear heads that are discarded later,
partly from the judge's soft labels (distillation, arXiv 2012.12877): a transformer without a pretrained tower would
need many more epochs to learn them from text. Then the whole model learns words: captions of three lengths, factual
questions, and the questions that only a detector can answer, with both answers, so that the base model stays at chance
there.

Several texts share one image, packed behind its prefix as in finetuning (`vlm_detect.models.rows`). The moondream is
built here, the TinyLLaVA in `tinyllava.py`, which can start from the weights of a moondream of the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vlm_detect.data.image_sets import CIFAR_CLASSES
from vlm_detect.models.base import VLM
from vlm_detect.models.moondream import MoondreamConfig, MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.rows import Answered, Row, answer_weights, stack_rows
from vlm_detect.nano.autoencoder import to_pixels
from vlm_detect.nano.captions import (
    COLOURS,
    LENGTHS,
    Facts,
    caption,
    factual_question,
    read_facts,
    undecidable_question,
)
from vlm_detect.nano.config import CaptionerConfig, TowerConfig
from vlm_detect.nano.judge import Judge, augment
from vlm_detect.nano.photos import Photos
from vlm_detect.nano.tokenizer import prompt_templates
from vlm_detect.nano.training import train
from vlm_detect.train.loss import answer_loss


def build_captioner(
    config: CaptionerConfig, tokenizer: PreTrainedTokenizerFast
) -> tuple[MoondreamForConditionalGeneration, MoondreamProcessor]:
    """An untrained model for 32 px crops with an 8 x 8 grid, and its processor."""
    settings = MoondreamConfig(
        vision_config={
            "hidden_size": config.vision_width,
            "intermediate_size": 4 * config.vision_width,
            "num_hidden_layers": config.vision_layers,
            "num_attention_heads": config.vision_heads,
            "patch_size": 4,
            "crop_size": 32,
            "max_crops": 4,
            "overlap_margin": 1,
            "projection_hidden_size": 2 * config.text_width,
            "projection_size": config.text_width,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": config.text_width,
            "intermediate_size": 4 * config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "max_position_embeddings": 512,
        },
        region_config={  # completes the layout; never trained
            "hidden_size": config.text_width,
            "intermediate_size": 64,
            "coord_feature_size": 32,
            "coord_output_size": 256,
            "size_feature_size": 32,
            "size_output_size": 512,
        },
        templates=prompt_templates(tokenizer),
        pixel_dtype="float32",  # bf16 would round away the little detail of a 32 px image
    )
    return MoondreamForConditionalGeneration(settings), MoondreamProcessor(settings, tokenizer=tokenizer)


class Targets(NamedTuple):
    """Class shares (B, classes), colours of object and background (B, 2), the judge's features by place (B, G*G, J)."""

    shares: Tensor
    colours: Tensor
    places: Tensor


class TowerHeads(nn.Module):
    """A tower with linear heads for training only: class, colours of object and background, and every place.

    Args:
        vision: the modules of the tower.
        see: crops (B, 3, H, W) to the tower's features (B, N, width).
        project: features to image embeddings, for images of one crop.
        judge: provides the targets for each place.
    """

    def __init__(
        self,
        vision: nn.Module,
        see: Callable[[Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
        width: int,
        judge: Judge,
    ) -> None:
        super().__init__()
        self.vision, self.see, self.project = vision, see, project
        self.heads = nn.ModuleList(
            nn.Linear(width, count) for count in (len(CIFAR_CLASSES), len(COLOURS), len(COLOURS))
        )
        self.places = nn.Linear(width, judge.head.in_features)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits of each head on the mean of the tower's features (B, G*G, D)."""
        return [head(features.mean(1)).float() for head in self.heads]


def moondream_tower(model: MoondreamForConditionalGeneration, judge: Judge) -> TowerHeads:
    vision = model.model.vision

    def project(features: Tensor) -> Tensor:
        # A single tile is the complete image: the tower does not encode it twice (tests/nano/test_captioner.py).
        return vision.proj_mlp(torch.cat([features, features], dim=-1))

    return TowerHeads(vision, vision.encode_crops, project, model.config.vision_config.hidden_size, judge)


def heads_loss(tower: TowerHeads, features: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Cross-entropies of class and colours for features (B, G*G, D), and the squared error of the places."""
    by_class, by_colour, by_background = tower(features)
    named = F.cross_entropy(by_class, targets.shares)
    colours = targets.colours
    coloured = F.cross_entropy(by_colour, colours[:, 0]) + F.cross_entropy(by_background, colours[:, 1])
    return {"class": named, "colour": coloured, "places": F.mse_loss(tower.places(features).float(), targets.places)}


class Teaching:
    """Augmented crops of the training photographs and the targets of the tower's heads."""

    def __init__(self, training: Photos, facts: list[Facts], judge: Judge, distillation: float, grid: int) -> None:
        self.training, self.judge, self.distillation, self.grid = training, judge.eval(), distillation, grid
        self.device = judge.head.weight.device
        self.labels = torch.from_numpy(training.labels)
        self.colours = torch.tensor([[COLOURS.index(f.colour), COLOURS.index(f.background)] for f in facts])

    def sample(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Targets]:
        """Rows (B,), on the CPU; crops (B, 3, H, W) and the targets of ``heads_loss`` where the judge is."""
        rows = torch.randint(len(self.training), (batch,), generator=generator)
        crops = augment(to_pixels(self.training.images[rows.numpy()]), generator).to(self.device)
        with torch.no_grad():
            soft, places = self.judge.teach(crops, self.grid)
        labels, colours = self.labels[rows].to(self.device), self.colours[rows].to(self.device)
        shares = torch.lerp(F.one_hot(labels, len(CIFAR_CLASSES)).float(), soft, self.distillation)
        return rows, crops, Targets(shares, colours, places)


def train_tower(
    tower: TowerHeads, teaching: Teaching, config: TowerConfig, held_out: Photos, folder: Path, seed: int
) -> dict[str, float]:
    """Train (or finish training) the tower; returns its figures with the class head's accuracy."""
    recipe = config

    def loss_of(generator: torch.Generator) -> dict[str, Tensor]:
        _, crops, targets = teaching.sample(recipe.batch, generator)
        losses = heads_loss(tower, tower.see(crops), targets)
        loss = losses["class"] + 0.1 * losses["colour"] + config.places * losses["places"]
        return {"loss": loss, **losses}

    figures = train("tower", tower, loss_of, recipe, folder=folder, seed=seed)
    with torch.inference_mode():
        parts = np.array_split(held_out.images, max(1, len(held_out) // 100))
        seen = (tower.see(to_pixels(part).to(teaching.device)) for part in parts)
        predicted = torch.cat([tower(features)[0].argmax(-1).cpu() for features in seen])
    return figures | {"accuracy": float((predicted.numpy() == held_out.labels).mean())}


def pack(vlm: VLM, texts: list[list[Answered]]) -> dict[str, Any]:
    """A batch of `vlm_detect.models.rows`, one image with its texts a row, with `weights` (B, S) next to the labels.

    The weights make every text count equally: otherwise a caption's thirty words would outweigh an answer's one.
    """
    rows = []
    for image, asked in enumerate(texts):
        rows.append(Row())
        prefix = vlm.prefix_ids()
        rows[-1].add(image, prefix, asked, vlm.two_way_blocks(prefix))
    batch = stack_rows(rows, vlm.eos_token_id)
    batch["weights"] = answer_weights(batch)
    return {name: part.to(vlm.device) if isinstance(part, Tensor) else part for name, part in batch.items()}


def text_sampler(vlm: VLM, config: CaptionerConfig) -> Callable[[Facts, Random], list[Answered]]:
    """A function that samples a photograph's caption, and questions about it, from its facts."""
    # the same few thousand texts recur
    question_ids, answer_ids = lru_cache(50_000)(vlm.question_ids), lru_cache(50_000)(vlm.answer_ids)
    caption_ids = lru_cache(vlm.caption_ids)

    def sample(fact: Facts, rng: Random) -> list[Answered]:
        length = rng.choice(LENGTHS)
        captioned = Answered(caption_ids(length), answer_ids(caption(fact, length, rng)))
        asked = [factual_question(fact, rng) for _ in range(config.questions)]
        if rng.random() < config.undecidable:
            asked += undecidable_question(rng)
        return [captioned, *(Answered(question_ids(q), answer_ids(a)) for q, a in asked)]

    return sample


def train_captioner(
    name: str,
    vlm: VLM,
    tower: TowerHeads,
    teaching: Teaching,
    facts: list[Facts],
    *,
    config: CaptionerConfig,
    folder: Path,
    seed: int,
) -> dict[str, float]:
    """Train (or finish training) the complete model on text; ``name`` is the checkpoint's."""
    texts_of = text_sampler(vlm, config)

    def loss_of(generator: torch.Generator) -> dict[str, Tensor]:
        rng = Random(int(torch.randint(2**62, (1,), generator=generator)))
        enlarge = rng.random() < config.enlarged
        n_images = config.batch // (5 if enlarge else 1)  # an enlarged image has five crops
        rows, crops, targets = teaching.sample(n_images, generator)
        features = tower.see(crops)
        losses = heads_loss(tower, features, targets)
        embeds = vlm.encode(vlm.prepare(_enlarged(crops, rng.randint(48, 96)))) if enlarge else tower.project(features)
        asked = pack(vlm, [texts_of(facts[row], rng) for row in rows.tolist()])
        words = answer_loss(vlm, vlm.model, {**asked, "read": {"image_embeds": embeds}})
        return {"loss": words + config.heads_weight * losses["class"], "words": words, "class": losses["class"]}

    both = nn.ModuleDict({"model": vlm.model, "tower": tower})
    figures = train(name, both, loss_of, config, folder=folder, seed=seed)
    spread_other_words(vlm, words_of(texts_of, facts, seed))
    return figures


def words_of(texts_of: Callable[[Facts, Random], list[Answered]], facts: list[Facts], seed: int) -> list[int]:
    """The ids that occur in answers."""
    rng = Random(seed)
    return sorted({token for fact in facts[:20_000] for text in texts_of(fact, rng) for token in text.answer})


@torch.no_grad()
def spread_other_words(vlm: VLM, taught: list[int]) -> None:
    """Give the head's rows of tokens that occur in no answer the same spread as those of tokens that do.

    Training pushes all unused rows in one direction until only their mean is left. They stay unlikely, by that mean and
    their bias; but a LoRA, which does not train the head, could never distinguish them.
    """
    head = vlm.model.get_output_embeddings()
    others = torch.ones(len(head.weight), dtype=torch.bool)
    others[taught] = False
    weights = head.weight.float()
    mean = weights[others].median(0).values  # some rows may come from another model, whose answers needed them
    apart = weights[others] - mean
    wanted = (weights[~others] - weights[~others].mean(0)).norm(dim=1).mean()
    scale = (wanted / apart.norm(dim=1, keepdim=True)).clamp(min=1)
    head.weight[others] = (mean + apart * scale).to(head.weight.dtype)


def _enlarged(crops: Tensor, side: int) -> list[Image.Image]:
    """Crops (B, 3, H, W) in [-1, 1] as pictures of ``side`` pixels, which the processor cuts into several crops."""
    pixels = ((crops + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in pixels]


def facts_of(photos: Photos) -> list[Facts]:
    """The facts of every photograph, by the caption rules."""
    return [read_facts(image, CIFAR_CLASSES[label]) for image, label in zip(photos.images, photos.labels, strict=True)]
