"""Any image-text model of transformers as a `VLM`, from its processor and chat template.

The processor's tensors go to the model's own forward, one question a row, and the tower reads the image each time, or
its features come from a cache (`image_features.py`). That is right for any architecture. Where `probe.py` finds that an
image is read without regard to what follows, questions share its prefix: packed into rows in training, cached at
inference. The subclasses (`architectures.py`, `qwen.py`, `llava.py`) are for what cannot be measured, or has an
implementation of its own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch.nn.functional import pad
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.machine import on_device
from vlm_detect.models.attention import attention_of
from vlm_detect.models.base import LAST_STATE, VLM
from vlm_detect.models.generic.image_features import ReadsImageFeatures
from vlm_detect.models.generic.levels import RAW, GreyLevels
from vlm_detect.models.generic.loading import load_generic, load_processor
from vlm_detect.models.generic.probe import Packing, probe_packing, probe_prefix_cache
from vlm_detect.models.generic.processors import make_processor
from vlm_detect.models.generic.prompts import ChatTemplate
from vlm_detect.models.rows import CAUSAL, IGNORE, PADDING, PREFIX, attention_mask

_TYPE_IDS = ("token_type_ids", "mm_token_type_ids")
_BEHIND = "@behind"  # of what has a column a token, that of the text behind an image
_ORDINARY_ASPECT = 20  # of the longer side to the shorter: up to here every processor reads an image
_KEPT_LENGTHS = 10_000
_CAPTION_QUESTIONS = {
    "short": "Describe this image in a few words.",
    "normal": "Describe this image in one sentence.",
    "long": "Describe this image in detail.",
}


class ChatVLM(ReadsImageFeatures):
    """A model behind its processor's chat template. Prepared images are one dict of tensors each."""

    reads_any_shape = False
    has_fixed_prefix = False
    connectors: tuple[str, ...] = ("multi_modal_projector", "connector", "merger")
    head_is_last: bool | None = None  # whether its output are the logits; seen at the first loss
    kept_states: bool | list[int] = LAST_STATE  # all of them where the last cannot be chosen; seen then too

    @classmethod
    def load(
        cls, path_or_id: str, *, revision: str | None = None, dtype: torch.dtype | None = None, **options: Any
    ) -> tuple[PreTrainedModel, Any]:
        options |= {"dtype": dtype or "auto"}
        return load_generic(path_or_id, revision=revision, make_processor=cls.make_processor, **options)

    @classmethod
    def load_processor(cls, folder: str, config: PreTrainedConfig) -> Any:
        return load_processor(folder, config, cls.make_processor)

    @staticmethod
    def make_processor(config: Any, image_processor: Any, tokenizer: Any, stored: dict[str, Any]) -> Any:
        """The processor of an image processor and a tokenizer; `stored` is what its folder says of it."""
        return make_processor(config, image_processor, tokenizer, stored)

    def __init__(self, model: PreTrainedModel, processor: Any, name: str, revision: str | None = None) -> None:
        super().__init__(model, processor, name, revision)
        bare = model.get_base_model() if isinstance(model, PeftModel) else model
        if model.config.is_encoder_decoder or not isinstance(bare, GenerationMixin):
            raise UserError(f"{name}: {type(bare).__name__} does not continue its prompt word by word: not supported")
        image_ids = _image_ids(model.config, processor)
        self.image_token_id: Any = image_ids[0] if image_ids else None
        self.template = ChatTemplate(processor, image_ids, name)
        self._read = frozenset(inspect.signature(bare.forward).parameters)
        self._lengths: dict[tuple[int, int], int | str] = {}

    @cached_property
    def _packing(self) -> Packing:
        found = probe_packing(self)
        if found.refusal is not None:
            print(f"{self.name}: one question a row, not packed: {found.refusal}", file=sys.stderr)
        return found

    @cached_property
    def _prefix_cache_refusal(self) -> str | None:
        refusal = probe_prefix_cache(self)
        if refusal is not None:
            print(f"{self.name}: each question reads its image again: {refusal}", file=sys.stderr)
        return refusal

    @property
    def supports_packing(self) -> bool:
        """Measured when it is first asked for, as are the next two; a subclass may declare them instead."""
        return self._packing.refusal is None

    @property
    def supports_prefix_cache(self) -> bool:
        return self._prefix_cache_refusal is None

    @property
    def two_way_images(self) -> bool:
        """Whether the tokens of one image see each other in both directions."""
        return self._packing.two_way_images

    @cached_property
    def levels(self) -> GreyLevels | None:
        """How pixels follow from grey levels, in which they travel; None where they travel as numbers."""
        return GreyLevels.find(self.processor.image_processor, self._pixels)

    def _pixels(self, image: Image.Image, settings: dict[str, bool]) -> dict[str, torch.Tensor]:
        """The processor's tensors of an image, made with these settings."""
        return self.template.inputs(image, **settings)

    def _as_sent(self, made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return made if self.levels is None else self.levels.as_bytes(made)

    def _normalized(self, pixels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return pixels if self.levels is None else self.levels.normalize(pixels)

    def without_weights(self) -> VLM:
        _ = self.levels  # found once, for all workers
        return super().without_weights()

    @property
    def eos_token_id(self) -> int:
        return self.template.eos_token_id

    def prepare(self, images: Sequence[Image.Image]) -> Any:
        """The processor's tensors for each image, its text cut off behind the image.

        Raises `ImageRejected` for an image whose shape the processor refuses.
        """
        for image in images:
            if refusal := self.refusal(image.size):
                raise ImageRejected("shape", refusal)
        return [self.prepare_one(image) for image in images]

    def collate(self, prepared: Sequence[Any]) -> Any:
        return [one for image in prepared for one in image]

    def refusal(self, size: tuple[int, int]) -> str | None:
        """What the processor says to an image of a shape that is out of the ordinary; of the others it takes any."""
        if max(size) <= _ORDINARY_ASPECT * min(size):
            return None
        found = self._length(size)
        return found if isinstance(found, str) else None

    def prefix_length(self, size: tuple[int, int]) -> int:
        found = self._length(size)
        if isinstance(found, str):
            raise ImageRejected("shape", found)
        return found

    def _length(self, size: tuple[int, int]) -> int | str:
        """How many ids the prefix of an image of this size has, or why it has none; tried on an empty image."""
        if size not in self._lengths:
            if len(self._lengths) == _KEPT_LENGTHS:
                self._lengths.clear()
            try:
                self._lengths[size] = self.prepare_one(Image.new("RGB", size))["input_ids"].shape[1]
            except ValueError as error:  # by which processors refuse a shape
                self._lengths[size] = f"{size[0]}x{size[1]} pixels, which {self.name} cannot read: {error}"
        return self._lengths[size]

    def prepare_one(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Of what has a column a token, the prefix's columns, and the last one, which is that of all text behind it."""
        inputs = self._as_sent(self.template.inputs(image, **(RAW if self.levels else {})))
        length = self.template.prefix_length(inputs)
        if "mm_token_type_ids" in self._read and "mm_token_type_ids" not in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.image_token_id).long()
        for name in inputs.keys() & {*self.template.token_names, "mm_token_type_ids"}:
            inputs[name + _BEHIND] = inputs[name][:, -1:]
            inputs[name] = inputs[name][:, :length]
        return inputs

    def encode(self, prepared: Any) -> Any:
        images = [{name: self._sent(value) for name, value in image.items()} for image in prepared]
        return [{name: self._cast(value) for name, value in self._normalized(image).items()} for image in images]

    def _cast(self, value: Any) -> Any:
        """Pixels in the model's dtype, to which not every tower rounds them itself."""
        is_pixels = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(self.model.dtype) if is_pixels else value

    def _sent(self, value: Any) -> Any:
        """What is no tensor is read on the host."""
        return on_device(value, self.device) if isinstance(value, torch.Tensor) else value

    def alike(self, embeds: Any) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for i, image in enumerate(embeds):
            groups.setdefault(image["input_ids"].shape[1], []).append(i)
        return list(groups.values())

    def prefix_inputs(self, image_embeds: Any) -> dict[str, torch.Tensor]:
        first = image_embeds[0].items()
        names = [name for name, value in first if isinstance(value, torch.Tensor) and not name.endswith(_BEHIND)]
        along = self.joined_along if len(image_embeds) > 1 else {}
        return self.with_features(
            {name: _join([image[name] for image in image_embeds], along.get(name, 0)) for name in names}
        )

    @property
    def joined_along(self) -> dict[str, int]:
        """For each tensor of images the dimension along which those of several are joined; else the first."""
        return self.template.joined_along

    def head_and_inputs(
        self, model: Callable[..., Any], inputs: dict[str, Any]
    ) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
        """Where the head is not the last step (its logits are scaled, or capped), the logits themselves."""
        # Some models put positions of their own, those of the image, in front.
        length = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"].shape[1]
        if self.head_is_last is not False:
            one = {"logits_to_keep": 1} if "logits_to_keep" in self._read else {}
            options = {"use_cache": False, **one}
            head = self.model.get_output_embeddings()
            if self.head_is_last is None:  # in bfloat16 a cap or a scale could pass for rounding
                with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                    outputs = model(**inputs, **options, output_hidden_states=self.kept_states)
                    if outputs.get("hidden_states") and outputs.hidden_states[-1] is None:
                        self.kept_states = True
                        outputs = model(**inputs, **options, output_hidden_states=True)
                    self.head_is_last = _is_last(head, outputs)
            if self.head_is_last:
                states = model(**inputs, **options, output_hidden_states=self.kept_states).hidden_states
                return head, states[-1][:, -length:]
        return torch.nn.Identity(), model(**inputs, use_cache=False).logits[:, -length:]

    @property
    def inner(self) -> Any:
        """The model without its head, which peft wraps more deeply."""
        wrapped = "base_model" in dict(self.model.named_children())
        return self.model.get_submodule("base_model.model.model" if wrapped else "model")

    @property
    def context(self) -> int:
        """The decoder's context; behind cached prefixes no further than its sliding window, whose mask is not made."""
        if self._window is None or not self.supports_prefix_cache:
            return super().context
        return min(super().context, self._window)

    @property
    def _window(self) -> int | None:
        """How many tokens back the decoder sees, or those of its layers that slide; None: all of them."""
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        return getattr(config, "sliding_window", None) if kinds is None or "sliding_attention" in kinds else None

    def prefix_rows(self, prepared: Any) -> list[list[int]]:
        return [image["input_ids"][0].tolist() for image in prepared]

    def two_way_blocks(self, prefix: Sequence[int]) -> list[int]:
        return self.image_runs(prefix) if self.two_way_images else super().two_way_blocks(prefix)

    def image_runs(self, prefix: Sequence[int]) -> list[int]:
        """For each id of a prefix the number of its run of image tokens; CAUSAL for other ids."""
        runs = groupby(prefix, lambda token: token == self.image_token_id)
        return [number if is_image else CAUSAL for number, (is_image, run) in enumerate(runs) for _ in run]

    def host_inputs(self, prepared: Any, columns: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Packed rows: their positions. Others: what has a column a token, other than ids and mask."""
        images = [prepared[i] for i in columns["row_order"]]
        if columns["packed"]:
            return {"position_ids": self.row_positions(images, columns)}
        branch, made = columns["branch"], {}
        for name in _token_names(images[0]) - {"input_ids", "attention_mask"}:
            made[name] = torch.cat([_extended(image, name, branch[i]) for i, image in enumerate(images)])
            if name in _TYPE_IDS and self.prefix_lm:
                answered = (columns["labels"] != IGNORE).to(made[name].dtype)
                made[name] = torch.where(branch == PREFIX, made[name], answered)
        return made

    def row_inputs(self, images: Any, batch: dict[str, Any]) -> dict[str, Any]:
        names = ("ids", "image", "branch", "block", "position_ids")
        rows = {name: on_device(batch[name], self.device) for name in names}
        ready = {name: on_device(tensor, self.device) for name, tensor in batch["host_inputs"].items()}
        known = _token_names(images[0]) | {"position_ids"}  # of rows, not of images alone
        some = [images[i] for i in batch["row_order"]]
        inputs = self.prefix_inputs([{k: v for k, v in image.items() if k not in known} for image in some])
        mask = self._masks(rows) if batch["packed"] else (rows["branch"] != PADDING).long()
        return {**inputs, "input_ids": rows["ids"], "attention_mask": mask, **ready}

    def _masks(self, rows: dict[str, torch.Tensor]) -> Any:
        """The mask of packed rows; where layers differ in how far they see, one for each kind of layer."""
        config = self.model.config.get_text_config()
        mask = partial(attention_mask, rows, self.model.dtype, flex=attention_of(config) == "flex_attention")
        if getattr(config, "layer_types", None) is None or self._window is None:
            return mask(window=self._window)
        return {"full_attention": mask(), "sliding_attention": mask(window=self._window)}

    def row_positions(self, images: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> torch.Tensor:
        """The positions of packed rows, in the model's own form and on the host.

        `images` are those of the rows, prepared, one after another.
        """
        return columns["position_ids"]

    @cached_property
    def _prefix_ids(self) -> list[int]:
        return self.prepare_one(Image.new("RGB", (512, 512)))["input_ids"][0].tolist()

    def prefix_ids(self) -> list[int]:
        """Those of a square image; where the number of tokens goes by an image's shape, others have more or fewer."""
        return self._prefix_ids

    def question_ids(self, question: str) -> list[int]:
        return self.template.question_ids(question)

    def dialogue_ids(self, history: Sequence[tuple[str, str]], question: str) -> list[int]:
        return self.template.dialogue_ids(history, question)

    def caption_ids(self, length: str) -> list[int]:
        return self.question_ids(_CAPTION_QUESTIONS[length])

    def answer_ids(self, answer: str) -> list[int]:
        return self.template.answer_ids(answer)

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(token_ids, skip_special_tokens=True))


def _image_ids(config: Any, processor: Any) -> list[int]:
    """The ids that stand for an image, the configuration's first."""
    named = [getattr(config, name, None) for name in ("image_token_id", "image_token_index")]
    named += [getattr(processor, "image_token_id", None), *getattr(processor, "image_token_ids", ())]
    return list(dict.fromkeys(one for one in named if isinstance(one, int)))


def _is_last(head: Any, outputs: Any) -> bool:
    """Whether logits are what the head makes of the last hidden states; seen at the last position."""
    states = outputs.get("hidden_states")
    if head is None or not states or states[-1].shape[-1] != head.in_features:
        return False
    # Of a model in half precision accelerate returns states in float32; logits may differ by one rounding.
    hidden, logits, dtype = states[-1][:, -1], outputs.logits[:, -1].float(), head.weight.dtype
    with torch.autocast(hidden.device.type, dtype, enabled=dtype is not torch.float32):
        made = head(hidden).float()
    tolerance = max(1e-4, torch.finfo(dtype).eps)  # a cap moves the largest logits by more
    spread = float(made.std())  # not of logits, in which a model may suppress tokens by the lowest number
    return made.shape == logits.shape and torch.allclose(made, logits, rtol=tolerance, atol=tolerance * spread)


def _token_names(image: Mapping[str, Any]) -> set[str]:
    """Of a prepared image, what has a column a token."""
    return {name.removesuffix(_BEHIND) for name in image if name.endswith(_BEHIND)}


def _extended(image: dict[str, torch.Tensor], name: str, branch: torch.Tensor) -> torch.Tensor:
    """What has a column a token, for a row (S,): the image's on its prefix, behind it that of text."""
    row = image[name + _BEHIND].repeat(1, len(branch), *[1] * (image[name].ndim - 2))
    row[:, branch == PREFIX] = image[name]
    return row


def _join(tensors: list[torch.Tensor], along: int) -> torch.Tensor:
    """One batch of images; what differs in size (crops, height, width) is padded by zeros, as processors do."""
    largest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [0 if d == along else largest[d] - size for d, size in enumerate(tensor.shape)]
        padded.append(pad(tensor, [amount for size in reversed(missing) for amount in (0, size)]))
    return torch.cat(padded, dim=along)
