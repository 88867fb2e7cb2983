"""Architectures of transformers in which an image's prefix is the same whatever follows, and what else they differ in.

Each was seen to give the plain path's answers, losses and gradients when rows are packed and prefixes cached.
"""

from __future__ import annotations

from vlm_detect.models.base import family
from vlm_detect.models.generic.family import ChatVLM


@family("idefics2", "idefics3", "internvl", "llava_onevision", "smolvlm", "vipllava")
class CausalVLM(ChatVLM):
    """An image in a decoder that looks backwards only."""

    supports_packing = True
    supports_prefix_cache = True


@family("gemma3")
class Gemma3VLM(ChatVLM):
    supports_packing = True
    supports_prefix_cache = True
    two_way_images = True


@family("paligemma")
class PaliGemmaVLM(ChatVLM):
    """Image and question see each other: nothing of it can be packed or cached."""

    prefix_lm = True
