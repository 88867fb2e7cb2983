"""How much memory inference takes for an image, by the sizes in a model's config.

    Footprint.of(vlm).image_bytes        # the peak of one image's tensors; of a batch, as many times that

An estimate: one image's pixels and activations in the tower, its KV cache, and its activations in the decoder.
`tests/train/test_memory.py` holds it against a simulation of the released models (`tests/bench/memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from vlm_detect.models.base import VLM, ImageCost

_TEXT_TOKENS = 200  # questions, candidates or a caption, in addition to the prefix
_PREDICTED = 20  # tokens of them whose logits are computed


@dataclass(frozen=True)
class Footprint:
    """Bytes for an image of this cost."""

    config: Any
    itemsize: int  # bytes of a number
    image: ImageCost

    @classmethod
    def of(cls, vlm: VLM) -> Self:
        return cls(vlm.model.config, vlm.model.dtype.itemsize, vlm.image_cost)

    @property
    def image_bytes(self) -> float:
        """The peak of one image's tensors: in the tower, or in the decoder with the KV cache."""
        text = self.config.get_text_config()
        cache = (self.image.prefix_tokens + _TEXT_TOKENS) * self.kv_token_bytes
        logits = _PREDICTED * text.vocab_size * 3 * 4  # thrice, in float32
        decoder = cache + self.image.prefix_tokens * self._layer_bytes(text) + logits
        embeddings = self.image.prefix_tokens * text.hidden_size * self.itemsize
        return max(self.tower_bytes, decoder) + embeddings

    @property
    def row_bytes(self) -> float:
        """Of a prompt after a copy of its prefix: the prefix, its growing copy, and the next one."""
        return 3 * self.image.prefix_tokens * self.kv_token_bytes

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        text = self.config.get_text_config()
        heads = _most(text, "num_attention_heads")
        width = _most(text, "head_dim") or text.hidden_size // heads
        kv_heads = _most(text, "num_key_value_heads") or heads
        return int(2 * text.num_hidden_layers * kv_heads * width * self.itemsize)

    @property
    def tower_bytes(self) -> float:
        """The peak of one image's tensors in the tower, which is not trained."""
        pixels = self.image.pixel_values * (4 + self.itemsize)  # in float32, and as the tower reads them
        vision = getattr(self.config, "vision_config", None)
        if vision is None:
            return pixels
        patch = getattr(vision, "patch_size", None)
        patch = patch[-1] if isinstance(patch, list | tuple) else patch
        frames = getattr(vision, "temporal_patch_size", None) or 1  # of a video; an image is repeated
        tokens = self.image.pixel_values // (3 * (patch if isinstance(patch, int) else 14) ** 2 * frames)
        return tokens * self._layer_bytes(vision) + pixels

    def _layer_bytes(self, config: Any) -> int:
        """Activations of one token in one layer: the MLP's hidden units before and after the nonlinearity, of a gated
        MLP those of both branches, next to the residual stream and the layer's other states."""
        inner, width = (_most(config, name) for name in ("intermediate_size", "hidden_size"))
        nonlinearity = getattr(config, "hidden_act", None)
        # Of the configurations with this GELU, decoders alone have a `head_dim`, and they gate it.
        is_gated = nonlinearity in ("silu", "swish") or (
            nonlinearity in (None, "gelu_pytorch_tanh") and _most(config, "head_dim") > 0
        )
        return int(((3 if is_gated else 2) * inner + 5 * width) * self.itemsize)


def _most(config: Any, name: str) -> int:
    """A size; where layers differ in it, that of the largest; 0 where there is none."""
    try:
        found = getattr(config, name, None)
    except RuntimeError:  # transformers' for what each layer has of its own
        found = [getattr(layer, name, None) or 0 for layer in config.per_layer_config]
    return max(found) if isinstance(found, list | tuple) else found or 0
