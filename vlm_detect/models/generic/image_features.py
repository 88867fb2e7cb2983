"""What a chat model's tower and projector make of an image: computed apart, and given to the forward for its pixels.

    read = vlm.read(vlm.prepare(images))     # of each image its tensors, with features where pixels were
    vlm.prefix_inputs(vlm.join(read))        # as of `vlm.encode(vlm.prepare(images))`, but the tower does not run again

transformers' models have `get_image_features`, whose output their forward takes as `mm_encoder_outputs`: features of
one level, or of several (Qwen3-VL). No type is known by name here: `features_refusal` tries whether a model's answers
from features are those from pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
import transformers
from peft import PeftModel

from vlm_detect.models.base import VLM
from vlm_detect.models.generic.levels import noise
from vlm_detect.models.generic.measuring import Refused, measuring, tolerance_of
from vlm_detect.models.rows import Answered, Row, stack_rows

_GIVEN = "mm_encoder_outputs"  # the forward's argument
_FEATURE = "@feature"  # begins the names of what `get_image_features` gives
_OF_THE_TOWER = ("last_hidden_state", "hidden_states", "attentions")  # end the names of what the forward does not need
_SIZES = [(64, 48), (40, 90)]  # (width, height) of the images that are tried


class ReadsImageFeatures(VLM):
    """Mixed into the chat models: `read` and `join` for prefixes that differ between images."""

    def read(self, prepared: Any) -> Any:
        """Of each prepared image its tensors on the model's device, with features where pixels were."""
        images: Any = self.encode(prepared)
        return [self._read_one(image) for image in images]

    def _read_one(self, image: dict[str, Any]) -> dict[str, Any]:
        taken, output = self._features(image)
        read = {name: value for name, value in image.items() if not (name in taken and _is_of_pixels(value))}

        def keep(name: str, value: Any) -> None:
            if _is_feature(value):
                read[name] = value

        _mapped(output, keep)
        return read

    def _features(self, image: dict[str, Any]) -> tuple[set[str], Any]:
        """The names of the image's tensors that the features depend on, and the features as the model has them."""
        compute = self._bare.base_model.get_image_features
        taken = inspect.signature(compute).parameters.keys() & image.keys()
        return taken, compute(**{name: image[name] for name in taken}, return_dict=True)

    def join(self, read: Any) -> Any:
        return self.encode(read)

    def with_features(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the forward, in which features that were read stand where it takes them."""
        features = {name: value for name, value in inputs.items() if name.startswith(_FEATURE)}
        if not features:
            return inputs
        rest = {name: value for name, value in inputs.items() if name not in features}
        output = _mapped(self._form, lambda name, value: features[name] if value == _FEATURE else value)
        return {**rest, _GIVEN: {"image": output}}

    @cached_property
    def _form(self) -> Any:
        """What `get_image_features` gives, with a mark in the place of each feature."""
        image = self.encode(self.prepare([noise(_SIZES[0])]))[0]
        with torch.no_grad():
            _, output = self._features(image)  # type: ignore[arg-type]
        return _mapped(output, lambda _, value: _FEATURE if _is_feature(value) else _unless_tensor(value))

    @property
    def read_by(self) -> dict[str, str]:
        """Ids are read, too: the processor's settings, and the prefix that its tokenizer and template give."""
        return {"processor": self.processor.to_json_string(), "prefix": str(self.prefix_ids())}

    @property
    def _bare(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def features_refusal(self) -> str | None:
        """Found by trying: two images with a question each, from pixels and from features."""
        try:
            with measuring(self, "fails with image features in place of pixels"):
                self._try_features()
        except Refused as refused:
            return f"{type(self._bare).__name__} of transformers {transformers.__version__} {refused}"
        return None

    def _try_features(self) -> None:
        """Raises Refused where answers from features are not those from pixels."""
        bare = self._bare
        if not (
            _GIVEN in inspect.signature(bare.forward).parameters and hasattr(bare.base_model, "get_image_features")
        ):
            raise Refused("does not take image features in place of pixels (most models do, from transformers 5.18 on)")
        if not self._difference() <= tolerance_of(self.model):  # NaN is no equality
            raise Refused("answers otherwise from image features than from pixels")

    def _difference(self) -> float:
        """Between logits from pixels and from features, as a part of their spread."""
        prepared = self.prepare([noise(size) for size in _SIZES])
        answered = Answered(self.question_ids("Is it?"), self.answer_ids("Yes."))
        rows = []
        for number, prefix in enumerate(self.prefix_rows(prepared)):
            rows.append(Row())
            rows[-1].add(number, prefix, [answered])
        columns = stack_rows(rows, self.eos_token_id)
        columns["host_inputs"] = self.host_inputs(prepared, columns)
        found = []
        for images in (self.encode(prepared), self.join(self.read(prepared))):
            logits = self.model(**self.row_inputs(images, columns), use_cache=False).logits
            length = columns["ids"].shape[1]  # some models put positions of their own in front
            found.append(logits[:, -length:].flatten(0, 1)[columns["predicting"].to(logits.device)].float())
        pixels, features = found
        return float((features - pixels).std() / pixels.std())


def _is_of_pixels(value: torch.Tensor) -> bool:
    """Pixels, and what says something of each; the grids and sizes of images count positions, too."""
    return value.is_floating_point() or value.ndim > 2


def _is_feature(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _unless_tensor(value: Any) -> Any:
    """Numbers of layers are kept; a tensor without dimensions is a loss of training."""
    return None if isinstance(value, torch.Tensor) else value


def _mapped(value: Any, change: Callable[[str, Any], Any], name: str = _FEATURE) -> Any:
    """Nested mappings and lists with their leaves changed; `change` is called with each leaf's path and value."""
    if isinstance(value, Mapping):
        kept = {key: one for key, one in value.items() if not key.endswith(_OF_THE_TOWER)}
        return type(value)(**{key: _mapped(one, change, f"{name}.{key}") for key, one in kept.items()})
    if isinstance(value, list | tuple):
        return [_mapped(one, change, f"{name}.{place}") for place, one in enumerate(value)]
    return change(name, value)
