"""What differs between architectures of transformers and cannot be measured on a loaded model."""

from __future__ import annotations

from vlm_detect.models.base import family
from vlm_detect.models.generic.family import ChatVLM


@family("paligemma")
class PaliGemmaVLM(ChatVLM):
    """In training its `token_type_ids` say which tokens are the answer's, and so causal: a meaning, not an effect."""

    prefix_lm = True
