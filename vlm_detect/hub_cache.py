"""The contents of the local cache of the Hugging Face Hub, without a download or an import of a model."""

from __future__ import annotations

from huggingface_hub import try_to_load_from_cache

_FIRST_FILES = ("config.json", "model_index.json", "tokenizer.json")


def is_cached(model_id: str) -> bool:
    """Whether a Hub repository is in the local cache."""
    return any(isinstance(try_to_load_from_cache(model_id, file), str) for file in _FIRST_FILES)
