"""How much memory inference takes for an image, by the sizes in a model's config.

    Footprint.of(vlm).image_bytes        # the peak of one image's tensors; of a batch, as many times that

An estimate: one image's pixels and activations in the tower, its KV cache, and its activations in the decoder.
`tests/train/test_memory.py` holds it against a simulation of the released models (`tests/bench/memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from vlm_detect.models.base import VLM

_TEXT_TOKENS = 200  # questions, candidates or a caption, in addition to the prefix
_PREDICTED = 20  # tokens of them whose logits are computed
_ELSE_SIZE = (1024, 1024)  # of an image, for models whose number of image tokens depends on it


@dataclass(frozen=True)
class Footprint:
    """Bytes for an image whose prefix has `prefix_tokens`, read by the tower in `crops` crops."""

    config: Any
    itemsize: int  # bytes of a number
    prefix_tokens: int
    crops: int
    is_dynamic: bool = False  # the tower's grid follows the image

    @classmethod
    def of(cls, vlm: VLM) -> Self:
        is_dynamic = not vlm.has_fixed_prefix
        tokens = vlm.prefix_length(_ELSE_SIZE) if is_dynamic else len(vlm.prefix_ids())
        return cls(vlm.model.config, vlm.model.dtype.itemsize, tokens, vlm.most_crops, is_dynamic)

    @property
    def image_bytes(self) -> float:
        """The peak of one image's tensors: in the tower, or in the decoder with the KV cache."""
        text = self.config.get_text_config()
        cache = (self.prefix_tokens + _TEXT_TOKENS) * self.kv_token_bytes
        logits = _PREDICTED * text.vocab_size * 3 * 4  # thrice, in float32
        decoder = cache + self.prefix_tokens * self._layer_bytes(text) + logits
        embeddings = self.prefix_tokens * text.hidden_size * self.itemsize
        return max(self._tower_bytes, decoder) + embeddings

    @property
    def row_bytes(self) -> float:
        """Of a prompt after a copy of its prefix: the prefix, its growing copy, and the next one."""
        return 3 * self.prefix_tokens * self.kv_token_bytes

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        text = self.config.get_text_config()
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        return int(2 * text.num_hidden_layers * kv_heads * width * self.itemsize)

    @property
    def _tower_bytes(self) -> float:
        vision = getattr(self.config, "vision_config", None)
        if vision is None:
            return 0
        patch = getattr(vision, "patch_size", None)
        patch = patch if isinstance(patch, int) else 14
        side = getattr(vision, "crop_size", None) or getattr(vision, "image_size", None)
        tokens = (side // patch) ** 2 * self.crops if isinstance(side, int) else 0
        if self.is_dynamic:  # so many patches are merged to a token
            tokens = max(tokens, self.prefix_tokens * (getattr(vision, "spatial_merge_size", None) or 1) ** 2)
        pixels = tokens * 3 * patch**2 * (4 + self.itemsize)  # in float32, and as the tower reads them
        return tokens * self._layer_bytes(vision) + pixels

    def _layer_bytes(self, config: Any) -> int:
        """Activations of one token in one layer: the MLP's hidden units before and after the nonlinearity, of a gated
        MLP those of both branches, next to the residual stream and the layer's other states."""
        inner, width = (getattr(config, name, None) or 0 for name in ("intermediate_size", "hidden_size"))
        nonlinearity = getattr(config, "hidden_act", None)
        # Of the configurations with this GELU, decoders alone have a `head_dim`, and they gate it.
        is_gated = nonlinearity in ("silu", "swish") or (
            nonlinearity in (None, "gelu_pytorch_tanh") and hasattr(config, "head_dim")
        )
        return int(((3 if is_gated else 2) * inner + 5 * width) * self.itemsize)
