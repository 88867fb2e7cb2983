"""What every model family offers to the trainer and the engine: a `VLM` wraps one model and its processor.

An image becomes a prefix of fixed content that any number of prompts can follow:

    images --prepare--> tensors --encode--> image embeddings --prefix_inputs--> the cached prefix | prompt | answer

The trainer and the engine know models through this class alone, so that a new family is one class, registered under the
model types of its `config.json`. Class attributes say what a family can do. Where prefixes differ from image to image,
training asks for `row_inputs` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import PreTrainedModel

from vlm_detect.errors import UserError
from vlm_detect.plugins import Registry


class VLM(ABC):
    """A vision-language model ready to be asked.

    `name` is the id that was asked for (a Hub id, a folder, or `nano`), `revision` the exact one that was loaded.
    """

    has_fixed_prefix: bool = True  # all images have one prefix, and `encode` gives their embeddings as one tensor
    supports_packing: bool = True  # training: rows may hold several questions and images
    supports_prefix_cache: bool = True  # inference: what follows an image leaves its prefix as it is, to prefill once

    reads_any_shape: bool = True  # `refusal` is always None

    connector: str | None = None  # the module between tower and language model, by its name
    connectors: tuple[str, ...] = ()  # what such a module may be called, where features are read of it (`infer.pooled`)
    can_locate: bool = False  # whether it has a head for places, as moondream has: detect, point, gaze
    typical_crops: int = 1  # that the tower reads of one image, for estimates of memory
    estimates_memory: bool = False  # whether there are `skeleton_prefixes`

    def __init__(self, model: PreTrainedModel, processor: Any, name: str, revision: str | None = None) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.revision = revision

    @classmethod
    @abstractmethod
    def load(
        cls, path_or_id: str, *, revision: str | None = None, dtype: torch.dtype | None = None, **options: Any
    ) -> tuple[PreTrainedModel, Any]:
        """The model and its processor; `options` go to the model's `from_pretrained`. No dtype: the checkpoint's own.

        Whatever is read from a folder of others goes through `models.untrusted.load_untrusted`.
        """

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    @abstractmethod
    def eos_token_id(self) -> int:
        """The id that ends an answer."""

    @property
    def first_only_ids(self) -> tuple[int, ...]:
        """Ids that the family's decoding rules allow as the first generated token and nowhere else."""
        return ()

    @property
    def feature_grid(self) -> tuple[int, int] | None:
        """Rows and columns in which the N image embeddings tile the whole image; None where they have no such order."""
        return None

    @abstractmethod
    def prepare(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Decoded images to the tensors that `encode` takes, on the CPU; dimension 0 is the image."""

    def refusal(self, size: tuple[int, int]) -> str | None:
        """Why the model reads no image of this (width, height); None where it does."""
        return None

    def prefix_length(self, size: tuple[int, int]) -> int:
        """How many ids the prefix of an image of (width, height) has."""
        return len(self.prefix_ids())

    @abstractmethod
    def encode(self, prepared: dict[str, torch.Tensor]) -> torch.Tensor:
        """Prepared images to embeddings (B, N, D) on the model's device."""

    @abstractmethod
    def prefix_inputs(self, image_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward that prefill (B, N, D) image embeddings into an empty KV cache."""

    def is_unused(self, name: str) -> bool:
        """Whether the module of this name changes nothing of what the model gives, so that it cannot be trained."""
        return False

    def prefix_rows(self, prepared: Any) -> list[list[int]]:
        """The ids of each prepared image's prefix, for families whose prefixes differ."""
        raise NotImplementedError

    def row_inputs(self, prepared: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the model's forward for rows (see `train.packing`), for families whose prefixes differ."""
        raise NotImplementedError

    def two_way_blocks(self, prefix: Sequence[int]) -> list[int]:
        """For each id of a prefix the number of the block in which all see each other; -1 where it looks backwards."""
        return [-1] * len(prefix)

    def alike(self, embeds: Any) -> list[list[int]]:
        """Which of the images (their indices in what `encode` gave) have prefixes of one length, group by group."""
        return [list(range(len(embeds)))]

    def shifts(self, count: int) -> list[int]:
        """By how much positions run ahead of the token count behind each of the prefixes that were just prefilled."""
        return [0] * count

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """The model's own form of positions (B, T)."""
        return positions

    @property
    def context(self) -> int:
        """The most tokens of a sequence that the model can read as the engine lays it out."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @staticmethod
    def hidden_states(model: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        """What the vocabulary head reads, (B, S, D), of `model` (a VLM's, or its distributed wrapper)."""
        outputs = model(**inputs, use_cache=False, logits_to_keep=1, output_hidden_states=True)
        return outputs.hidden_states[-1]

    @abstractmethod
    def prefix_ids(self) -> list[int]:
        """The ids of the image prefix, with placeholders for the image; its length is the prefix's."""

    def text_prefix_ids(self) -> list[int]:
        """The ids of a prefix without an image; UserError of a model that answers about images only."""
        raise UserError(f"{self.name} answers about images only: give an image with the question")

    @abstractmethod
    def question_ids(self, question: str) -> list[int]:
        """The ids after the image prefix from which the answer to `question` is decoded."""

    def dialogue_ids(self, history: Sequence[tuple[str, str]], question: str) -> list[int]:
        """As `question_ids`, behind earlier questions and their answers; UserError where a family knows none."""
        if history:
            raise UserError(f"{self.name} answers single questions: give conversations of one turn, or another model")
        return self.question_ids(question)

    @abstractmethod
    def caption_ids(self, length: str) -> list[int]:
        """The ids after the image prefix from which a caption is decoded; `length` is short, normal or long."""

    @abstractmethod
    def answer_ids(self, answer: str) -> list[int]:
        """An answer's ids with the end of text, as it is learned and scored."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""

    def encode_images(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """Decoded images to embeddings, each (N, D)."""
        return list(self.encode(self.prepare(images)))

    @classmethod
    def skeleton_prefixes(
        cls, model: Any, images: int, *, crops: int, dtype: torch.dtype, cached: bool
    ) -> torch.Tensor:
        """The prefixes (images, T, D) as `model` on the meta device makes them of so many images of so many crops.

        `cached`: the images' embeddings come from a feature cache, and the tower does not run.
        """
        raise NotImplementedError

    def save_official(self, out: Path) -> None:
        """Write the folder that the family's own code reads; UserError where that is transformers."""
        raise UserError(f"{self.name} has no layout but transformers' own: use --to merged")

    def save_variant(self, out: Path) -> None:
        """Write the LoRA as the family's own code reads one; UserError where it knows none."""
        raise UserError(f"{self.name}: a variant is a LoRA on moondream; use --to adapter, merged or official")


FAMILIES: Registry[type[VLM]] = Registry(
    "family",
    [
        "vlm_detect.models.moondream.family",
        "vlm_detect.models.tinyllava.family",
        "vlm_detect.models.generic.llava",
        "vlm_detect.models.generic.qwen",
        "vlm_detect.models.generic.architectures",
    ],
)
Family = TypeVar("Family", bound=type[VLM])


def family(*model_types: str) -> Callable[[Family], Family]:
    """Register a family for the `model_type`s that its models' config.json says."""

    def register(cls: Family) -> Family:
        for model_type in model_types:
            FAMILIES.add(model_type, cls)
        return cls

    return register
