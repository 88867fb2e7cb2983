"""TinyLLaVA as transformers' own LLaVA, with the head's bias that the stock class has no place for.

    model = TinyLlavaForConditionalGeneration.from_pretrained("tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B")

Everything else of a LLaVA (generation, LoRA, quantisation, gradient checkpointing) is transformers'.
tests/models/test_tinyllava_golden.py holds it to the official code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from vlm_detect.models.stored import check_tensors, stored_dtype
from vlm_detect.models.tinyllava.checkpoint import open_checkpoint, save_official
from vlm_detect.models.tinyllava.configuration import TinyLlavaConfig
from vlm_detect.models.untrusted import load_untrusted, no_foreign_code


class TinyLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA whose vocabulary head has a bias where the language model's own has one (phi-2)."""

    config_class = TinyLlavaConfig

    def __init__(self, config: TinyLlavaConfig) -> None:
        super().__init__(config)
        if config.head_has_bias:
            self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=True)
            self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', from a Hub id or folder in the released layout or our own, or from the output folder of a
        TinyLLaVA_Factory run, a LoRA in which is merged.

        Every tensor is checked against the configuration first: one missing, unknown or misshapen raises ValueError
        with its name, and nothing is loaded halfway. `dtype` defaults to the stored one.
        """
        hub_names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
        hub_options = {name: kwargs.pop(name) for name in hub_names if kwargs.get(name) is not None}
        config = kwargs.pop("config", None)
        if config is None:
            config = load_untrusted(TinyLlavaConfig, pretrained_model_name_or_path, **hub_options)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None)
        dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        tensors = open_checkpoint(pretrained_model_name_or_path, dtype, **hub_options)
        if config.tie_word_embeddings:  # saved under both names by some versions of transformers, under one by others
            tensors.pop("lm_head.weight", None)
        with torch.device("meta"), no_foreign_code(pretrained_model_name_or_path):
            skeleton = cls(config)
        wanted = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
        if config.tie_word_embeddings:
            wanted.pop("lm_head.weight")
        check_tensors(tensors, wanted)
        dtype = dtype or stored_dtype(tensors)
        model = load_untrusted(super(), None, *args, config=config, state_dict=tensors, dtype=dtype, **kwargs)
        model.config.name_or_path = model.name_or_path = str(pretrained_model_name_or_path)
        return model

    def save_official(self, save_directory: str | Path, tokenizer: Any) -> None:
        """Write the folder that TinyLLaVA_Factory reads: its `config.json`, `model.safetensors` and the tokenizer."""
        save_official(self, Path(save_directory), tokenizer)
