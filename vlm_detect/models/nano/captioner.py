"""The nano moondream: the project's moondream classes, small, taught to caption and to answer on small photographs.

Two stages. First the image tower alone learns the classes and colours through linear heads that are thrown away, partly
from the judge's soft answers (distillation, arXiv 2012.12877): a transformer without a pretrained tower would need many
more epochs to find them through words. Then the whole model learns words: captions of three lengths, factual questions,
and the questions that only a detector can answer, with a coin's answers, so that the base model stays at chance there.

Several texts share one image: they stand behind one image prefix, each sees the prefix and itself and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vlm_detect.models.moondream import MoondreamConfig, MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.models.nano.autoencoder import to_pixels
from vlm_detect.models.nano.captions import (
    COLOURS,
    LENGTHS,
    Facts,
    caption,
    factual_question,
    read_facts,
    undecidable_question,
)
from vlm_detect.models.nano.judge import Judge, augment
from vlm_detect.models.nano.photos import CLASSES, Photos
from vlm_detect.models.nano.tokenizer import prompt_templates
from vlm_detect.models.nano.training import Optimisation, train
from vlm_detect.models.nano.weights import halve


@dataclass(frozen=True)
class TowerConfig:
    """The image tower's warm-up."""

    optimisation: Optimisation
    distillation: float = 0.5
    """weight of the judge's answer against the label"""


@dataclass(frozen=True)
class CaptionerConfig:
    """Sizes of the model, and its training on words."""

    optimisation: Optimisation
    vocabulary: int = 1300
    vision_width: int = 128
    vision_layers: int = 5
    vision_heads: int = 4
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 2
    """the official code wants heads of 64"""
    questions: int = 2
    """factual questions an image, beside its caption"""
    undecidable: float = 0.5
    """part of the images that are asked an undecidable question too"""
    heads_weight: float = 0.5
    """weight of the tower's class head, which goes on beside the words"""
    enlarged: float = 0.1
    """part of the batches that show enlarged photographs, which the processor cuts into several crops"""


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
        region_config={  # there so that the layout is whole; never trained
            "hidden_size": config.text_width,
            "intermediate_size": 64,
            "coord_feature_size": 32,
            "coord_output_size": 256,
            "size_feature_size": 32,
            "size_output_size": 512,
        },
        templates=prompt_templates(tokenizer),
        pixel_dtype="float32",  # bf16 would round away what little a 32 px image has to show
    )
    return MoondreamForConditionalGeneration(settings), MoondreamProcessor(settings, tokenizer=tokenizer)


class TowerHeads(nn.Module):
    """The tower with linear heads that are thrown away: class, object's colour, background's colour."""

    def __init__(self, model: MoondreamForConditionalGeneration) -> None:
        super().__init__()
        self.vision = model.model.vision
        width = model.config.vision_config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in (len(CLASSES), len(COLOURS), len(COLOURS)))

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits of each head for the tower's features (B, G*G, D)."""
        return [head(features.mean(1)) for head in self.heads]


def heads_loss(tower: TowerHeads, features: Tensor, targets: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Cross-entropies for features (B, G*G, D); targets are class shares (B, classes) and colours (B, 2)."""
    shares, colours = targets
    by_class, by_colour, by_background = tower(features)
    named = F.cross_entropy(by_class, shares)
    coloured = F.cross_entropy(by_colour, colours[:, 0]) + F.cross_entropy(by_background, colours[:, 1])
    return {"class": named, "colour": coloured}


class Teaching:
    """Augmented crops of the training photographs and what the tower's heads should say of them."""

    def __init__(self, training: Photos, facts: list[Facts], judge: Judge, distillation: float) -> None:
        self.training, self.judge, self.distillation = training, judge.eval(), distillation
        self.labels = torch.from_numpy(training.labels)
        self.colours = torch.tensor([[COLOURS.index(f.colour), COLOURS.index(f.background)] for f in facts])

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Rows (B,), crops (B, 3, H, W) and the targets of ``heads_loss``."""
        rows = torch.randint(len(self.training), (batch,), generator=generator)
        crops = augment(to_pixels(self.training.images[rows.numpy()]), generator)
        with torch.no_grad():
            soft = self.judge(crops).softmax(-1)
        shares = torch.lerp(F.one_hot(self.labels[rows], len(CLASSES)).float(), soft, self.distillation)
        return rows, crops, (shares, self.colours[rows])


def train_tower(
    tower: TowerHeads, teaching: Teaching, recipe: Optimisation, held_out: Photos, folder: Path, seed: int
) -> dict[str, float]:
    """Train (or finish training) the tower; returns its figures with the class head's accuracy."""

    def loss_of(generator: torch.Generator) -> dict[str, Tensor]:
        _, crops, targets = teaching.draw(recipe.batch, generator)
        losses = heads_loss(tower, tower.vision.encode_crops(crops), targets)
        return {"loss": losses["class"] + 0.1 * losses["colour"], **losses}

    figures = train("tower", tower, loss_of, recipe, folder=folder, seed=seed)
    with torch.inference_mode():
        parts = np.array_split(held_out.images, max(1, len(held_out) // 100))
        predicted = torch.cat([tower(tower.vision.encode_crops(to_pixels(part)))[0].argmax(-1) for part in parts])
    return figures | {"accuracy": float((predicted.numpy() == held_out.labels).mean())}


@dataclass(frozen=True)
class Packed:
    """Rows of [BOS][image][text 1][text 2]...: ids, positions, labels and weights (B, T), who sees whom (B, 1, T, T).

    The weights make every text count alike: an answer's one word must not drown in a caption's thirty.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    weights: Tensor
    attention_mask: Tensor


def pack(texts: list[list[tuple[list[int], list[int]]]], prefix: list[int], pad_id: int) -> Packed:
    """Put the (prompt ids, answer ids) of each image behind one ``prefix``; only answers have labels.

    Positions of each text go on from the prefix, as if it stood there alone.
    """
    rows = len(texts)
    length = len(prefix) + max(sum(len(prompt) + len(answer) for prompt, answer in row) for row in texts)
    input_ids = torch.full((rows, length), pad_id)
    position_ids = torch.zeros(rows, length, dtype=torch.long)
    labels = torch.full((rows, length), -100)
    weights = torch.zeros(rows, length)
    owner = torch.full((rows, length), -1)  # 0 the prefix, 1, 2, ... the texts, -1 padding
    for i, row in enumerate(texts):
        end = len(prefix)
        input_ids[i, :end], position_ids[i, :end], owner[i, :end] = torch.tensor(prefix), torch.arange(end), 0
        for number, (prompt, answer) in enumerate(row, start=1):
            start, middle, end = end, end + len(prompt), end + len(prompt) + len(answer)
            input_ids[i, start:end] = torch.tensor([*prompt, *answer])
            position_ids[i, start:end] = torch.arange(len(prefix), len(prefix) + end - start)
            labels[i, middle:end] = torch.tensor(answer)
            weights[i, middle:end] = 1 / len(answer)
            owner[i, start:end] = number
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = owner[:, :, None] == owner[:, None, :]  # padding sees padding: a row that sees nothing would be NaN
    mask = (owner == 0)[:, None, :] | (same & causal)
    return Packed(input_ids, position_ids, labels, weights, mask[:, None])


def language_loss(model: MoondreamForConditionalGeneration, image_embeds: Tensor, packed: Packed) -> Tensor:
    """Mean over the texts of their answers' mean cross-entropy; logits are made for answered positions only."""
    hidden = model.model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=packed.attention_mask,
        image_embeds=image_embeds,
    ).last_hidden_state
    next_ids = packed.labels[:, 1:]
    answered = next_ids != -100
    logits = model.model.text.lm_head(hidden[:, :-1][answered])
    weights = packed.weights[:, 1:][answered]
    return (F.cross_entropy(logits, next_ids[answered], reduction="none") * weights).sum() / weights.sum()


def train_captioner(
    model: MoondreamForConditionalGeneration,
    processor: MoondreamProcessor,
    tower: TowerHeads,
    teaching: Teaching,
    facts: list[Facts],
    config: CaptionerConfig,
    folder: Path,
    seed: int,
) -> dict[str, float]:
    """Train (or finish training) the whole model on words and export it to ``folder/moondream``."""
    encode = lru_cache(maxsize=50_000)(processor.encode)  # the same few thousand texts come again and again
    end, template = processor.config.eos_token_id, processor.config.templates["query"]
    suffix = template["suffix"] * processor.config.query_suffix_repeats
    vision = processor.config.vision_config
    prefix = [processor.config.bos_token_id, *[processor.config.image_token_id] * vision.num_image_tokens]

    def texts_of(fact: Facts, rng: Random) -> list[tuple[list[int], list[int]]]:
        length = rng.choice(LENGTHS)
        texts = [(processor.caption_ids(length), [*encode(caption(fact, length, rng)), end])]
        asked = [factual_question(fact, rng) for _ in range(config.questions)]
        if rng.random() < config.undecidable:
            asked.append(undecidable_question(rng))
        return texts + [([*template["prefix"], *encode(q), *suffix], [*encode(a), end]) for q, a in asked]

    def loss_of(generator: torch.Generator) -> dict[str, Tensor]:
        rng = Random(int(torch.randint(2**62, (1,), generator=generator)))
        enlarge = rng.random() < config.enlarged
        batch = config.optimisation.batch // (5 if enlarge else 1)  # an enlarged image has five crops
        rows, crops, targets = teaching.draw(batch, generator)
        features = tower.vision.encode_crops(crops)
        losses = heads_loss(tower, features, targets)
        if enlarge:
            embeds = model.encode_images(*_enlarged(crops, processor, rng.randint(48, 96)))
        else:  # one tile is the whole image: the tower need not see it twice, as test_nano_captioner.py shows
            embeds = tower.vision.proj_mlp(torch.cat([features, features], dim=-1))
        packed = pack([texts_of(facts[row], rng) for row in rows.tolist()], prefix, processor.config.pad_token_id)
        words = language_loss(model, embeds, packed)
        return {"loss": words + config.heads_weight * losses["class"], "words": words, "class": losses["class"]}

    both = nn.ModuleDict({"model": model, "tower": tower})
    figures = train("captioner", both, loss_of, config.optimisation, folder=folder, seed=seed)
    model.save_pretrained(folder / "moondream")
    processor.save_pretrained(folder / "moondream")
    halve(folder / "moondream")
    return figures


def _enlarged(crops: Tensor, processor: MoondreamProcessor, side: int) -> tuple[Tensor, Tensor]:
    """The processor's several crops, and their tilings, of (B, 3, H, W) enlarged to ``side`` pixels."""
    pixels = ((crops + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    photos = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in pixels]
    inputs = processor.image_processor(photos, return_tensors="pt")
    return inputs["pixel_values"], inputs["tilings"]


def facts_of(photos: Photos) -> list[Facts]:
    """What the caption rules read from every photograph."""
    return [read_facts(image, CLASSES[label]) for image, label in zip(photos.images, photos.labels, strict=True)]
