"""The common interface of model families for the trainer and the engine: a `VLM` wraps one model and its processor.

An image becomes a prefix that any number of prompts can follow:

    images --prepare--> tensors --encode--> image embeddings --prefix_inputs--> the cached prefix | prompt | answer

The trainer and the engine use models only through this class, so a new family is one class, registered under the model
types of its `config.json`. Class attributes declare a family's capabilities. For families whose prefixes differ between
images, training uses only `row_inputs`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel

from vlm_detect.errors import UserError
from vlm_detect.models.onnx import OnnxTower
from vlm_detect.plugins import Registry

LAST_STATE = [-1]  # which of a model's hidden states are kept: those of its tower's layers are the largest tensors
MEASURED = ((1024, 1024), (1152, 896))  # (width, height) of images whose cost counts: a megapixel, as generators make


class ImageCost(NamedTuple):
    """What the memory for an image depends on."""

    prefix_tokens: int  # ids of its prefix in the decoder
    pixel_values: int  # numbers that the tower reads: all pixels of all crops, times three


def dtype_in(stored: Mapping[str, Any]) -> str | None:
    """The dtype of the weights by their config.json: `dtype`, or `torch_dtype` as transformers 4 wrote it."""
    dtype = stored.get("dtype") or stored.get("torch_dtype")
    return None if dtype is None else str(dtype).removeprefix("torch.")


class VLM(ABC):
    """A loaded vision-language model.

    `name` is the requested id (a Hub id, a folder, or `nano`), `revision` the exact one that was loaded.
    """

    has_fixed_prefix: bool = (
        True  # all images have the same prefix ids, and `encode` returns their embeddings as one tensor
    )
    prefix_lm: bool = False  # image and question see each other in both directions, and only the answer is causal

    reads_any_shape: bool = True  # `refusal` is always None

    connector: str | None = None  # the module between tower and language model, by its name
    connectors: tuple[str, ...] = ()  # what such a module may be called, where features are read of it (`infer.pooled`)
    trained_whole: tuple[str, ...] = ()  # modules that a LoRA trains in full, by their names
    can_locate: bool = False  # whether it has a head for places, as moondream has: detect, point, gaze
    typical_crops: int = 1  # that the tower reads of one image, for estimates of memory
    estimates_memory: bool = False  # whether there are `skeleton_prefixes`; else the tower's memory follows its config
    stored_dtype: str | None = None  # of the checkpoint, by its config.json; set by `load_vlm`

    def __init__(self, model: PreTrainedModel, processor: Any, name: str, revision: str | None = None) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.revision = revision
        self._prefixes: dict[torch.device, torch.Tensor] = {}

    @classmethod
    @abstractmethod
    def load(
        cls, path_or_id: str, *, revision: str | None = None, dtype: torch.dtype | None = None, **options: Any
    ) -> tuple[PreTrainedModel, Any]:
        """The model and its processor; `options` go to the model's `from_pretrained`. No dtype: the checkpoint's own.

        Everything from untrusted folders is loaded with `models.untrusted.load_untrusted`.
        """

    @classmethod
    def load_processor(cls, folder: str, config: PreTrainedConfig) -> Any:
        """The processor in a folder, without a model: for estimates of memory by families without
        `skeleton_prefixes`."""
        raise UserError(f"{cls.__name__} has no estimate of memory: it has no `skeleton_prefixes`")

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def supports_packing(self) -> bool:
        """In training, rows may hold several questions and images."""
        return True

    @property
    def supports_prefix_cache(self) -> bool:
        """At inference, an image's prefix does not depend on what follows, so that it is prefilled once."""
        return True

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
        """Rows and columns in which the N image embeddings tile the image; None if they have no spatial order."""
        return None

    @classmethod
    def trained_in_float16(cls, stored: Mapping[str, Any]) -> bool:
        """Whether the weights with this config.json compute in float16: those that were published in it do."""
        return dtype_in(stored) == "float16"

    @property
    def overflows_in_float16(self) -> bool:
        """Whether activations may exceed float16: those of weights that were published in bfloat16."""
        return self.stored_dtype == "bfloat16"

    def refuse_float16(self, flag: str) -> None:
        """UserError where the model does not compute in float16, which `flag` asks for."""
        if self.overflows_in_float16:
            raise UserError(
                f"{flag}: {self.name} was trained in bfloat16, and its activations overflow in float16: use bfloat16, "
                "or float32 on a GPU without it"
            )

    @abstractmethod
    def prepare(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Decoded images to the inputs of `encode`: tensors on the CPU, whose dimension 0 is the image, or lists."""

    def collate(self, prepared: Sequence[Any]) -> Any:
        """As `prepare` of several images, from what it made of each alone."""
        return {name: torch.cat([image[name] for image in prepared]) for name in prepared[0]}

    def refusal(self, size: tuple[int, int]) -> str | None:
        """Why the model cannot read an image of this (width, height); None if it can."""
        return None

    def prefix_length(self, size: tuple[int, int]) -> int:
        """How many ids the prefix of an image of (width, height) has."""
        return len(self.prefix_ids())

    @cached_property
    def image_cost(self) -> ImageCost:
        """Of the more expensive of two ordinary images: where an image is cut into crops, their number depends on its
        shape."""
        costs = []
        for size in MEASURED:
            prepared = self.prepare([Image.new("RGB", size)])
            tensors = (prepared if isinstance(prepared, dict) else prepared[0]).values()
            pixels = max(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor))
            costs.append(ImageCost(self.prefix_length(size), pixels))
        return max(costs)

    @abstractmethod
    def encode(self, prepared: dict[str, Any]) -> torch.Tensor:
        """Prepared images to embeddings (B, N, D) on the model's device."""

    def read(self, prepared: Any) -> Any:
        """What a feature cache holds of prepared images: what frozen parts make of them.

        With a fixed prefix {name: (B, ...)}, else a list of one dict of tensors and numbers an image.
        """
        return {"image_embeds": self.encode(prepared)}

    def join(self, read: Any) -> Any:
        """From what `read` gives what `encode` gives, or what stands for it."""
        return read["image_embeds"]

    @property
    def read_by(self) -> dict[str, str]:
        """What `read` depends on in addition to the tower's weights and the image processor."""
        return {}

    def features_refusal(self) -> str | None:
        """Why the model cannot answer from what `read` gives; None if it can."""
        return None

    @abstractmethod
    def prefix_inputs(self, image_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward that prefill (B, N, D) image embeddings into an empty KV cache."""

    def is_unused(self, name: str) -> bool:
        """Whether the module of this name does not affect the model's output, so that it cannot be trained."""
        return False

    def prefix_rows(self, prepared: Any) -> list[list[int]]:
        """The ids of each prepared image's prefix, for families whose prefixes differ."""
        raise NotImplementedError

    def host_inputs(self, prepared: Any, columns: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Those arguments of the forward for rows that are made on the host, where making them waits for no GPU.

        `columns`: what `models.rows.stack_rows` gives; `row_inputs` finds the result as `host_inputs` in its batch.
        """
        return {}

    def row_inputs(self, images: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the model's forward for rows (see `models.rows`), for families whose prefixes differ.

        `images`: what `encode` gives for the batch's images.
        """
        raise NotImplementedError

    def two_way_blocks(self, prefix: Sequence[int]) -> list[int]:
        """For each id of a prefix the number of its bidirectional block; -1 where attention is causal."""
        return [-1] * len(prefix)

    def alike(self, embeds: Any) -> list[list[int]]:
        """The images (by index in the output of `encode`), grouped by equal prefix length."""
        return [list(range(len(embeds)))]

    def shifts(self, embeds: Any) -> list[int]:
        """The offset of positions from the token count after the prefix of each image, of the output of `encode`."""
        return [0] * len(embeds)

    def position_ids(self, positions: torch.Tensor) -> torch.Tensor:
        """Positions (B, T) in the model's own form."""
        return positions

    @property
    def context(self) -> int:
        """The maximum number of tokens of a sequence in the engine's layout."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @staticmethod
    def hidden_states(model: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        """The input of the vocabulary head, (B, S, D), for `model` (a VLM's, or its distributed wrapper)."""
        outputs = model(**inputs, use_cache=False, logits_to_keep=1, output_hidden_states=LAST_STATE)
        return outputs.hidden_states[-1]

    def head_and_inputs(
        self, model: Callable[..., Any], inputs: dict[str, Any]
    ) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
        """The vocabulary head, and its input at every position (B, S, D)."""
        return self.model.get_output_embeddings(), self.hidden_states(model, inputs)

    @abstractmethod
    def prefix_ids(self) -> list[int]:
        """The ids of the image prefix, with placeholders for the image; its length is the prefix's."""

    def prefix_tensor(self) -> torch.Tensor:
        """`prefix_ids` (1, P) on the model's device, copied there once: a copy waits for a GPU."""
        device = self.device
        if device not in self._prefixes:
            with torch.inference_mode(mode=False):  # training takes it too
                self._prefixes[device] = torch.tensor([self.prefix_ids()], device=device)
        return self._prefixes[device]

    def without_weights(self) -> VLM:
        """A copy that prepares images and texts, for worker processes: no weights, nothing on a device."""
        reader: Any = copy.copy(self)
        reader.model, reader._prefixes = None, {}
        return reader

    def text_prefix_ids(self) -> list[int]:
        """The ids of a prefix without an image; UserError for a model that needs an image."""
        raise UserError(f"{self.name} answers about images only: give an image with the question")

    @abstractmethod
    def question_ids(self, question: str) -> list[int]:
        """The prompt ids after the image prefix for an answer to `question`."""

    def dialogue_ids(self, history: Sequence[tuple[str, str]], question: str) -> list[int]:
        """As `question_ids`, after earlier questions and answers; UserError for a family without conversations."""
        if history:
            raise UserError(f"{self.name} answers single questions: give conversations of one turn, or another model")
        return self.question_ids(question)

    @abstractmethod
    def caption_ids(self, length: str) -> list[int]:
        """The prompt ids after the image prefix for a caption; `length` is short, normal or long."""

    @abstractmethod
    def answer_ids(self, answer: str) -> list[int]:
        """An answer's ids with the end of text, as in training and scoring."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""

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

    def onnx_tower(self) -> OnnxTower:
        """The image tower as a module that ONNX can hold; UserError for a family without one."""
        raise UserError(f"{self.name}: --to onnx knows the image towers of moondream and LLaVA, not this model's")

    def save_extra(self, folder: str | Path) -> None:
        """Write what a run directory needs in addition to adapter and processor; by default nothing."""
        return

    def save_official(self, out: Path) -> None:
        """Write a folder in the family's official layout; UserError if that is transformers'."""
        raise UserError(f"{self.name} has no layout other than transformers': use --to merged")

    def save_mlx(self, out: Path) -> None:
        """Write a folder that mlx-vlm reads; UserError for a model that it does not compute as it is."""
        raise UserError(f"{self.name}: --to mlx knows moondream and LLaVA; use --to merged")

    def save_variant(self, out: Path) -> None:
        """Write the LoRA in the family's official format; UserError if there is none."""
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
    """Register a family for `model_type`s of config.json."""

    def register(cls: Family) -> Family:
        for model_type in model_types:
            FAMILIES.add(model_type, cls)
        return cls

    return register
