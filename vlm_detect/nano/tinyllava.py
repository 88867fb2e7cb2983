"""The nano TinyLLaVA: SigLIP, an MLP and Phi on transformers' LLaVA, for images of 32 pixels.

    model, processor = build_tinyllava(NanoTinyLlava(), train_tokenizer(texts, 1300))

Its folder (`save_tinyllava`) is read by `load_tinyllava` and `load_vlm` like the real one's. Nothing is trained
here. `start_from_moondream` copies the weights of a nano moondream of the same widths, because moondream's tower is a
SigLIP and its decoder a Phi.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    LlavaProcessor,
    PhiConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from vlm_detect.models.moondream import MoondreamForConditionalGeneration
from vlm_detect.models.tinyllava import TinyLlavaConfig, TinyLlavaForConditionalGeneration
from vlm_detect.models.tinyllava.processing import make_processor
from vlm_detect.nano.captioner import TowerHeads
from vlm_detect.nano.judge import Judge


@dataclass(frozen=True)
class NanoTinyLlava:
    """Sizes. The defaults have 2.6 million parameters and 63 image tokens: an 8 x 8 grid less its first patch."""

    image_size: int = 32
    patch_size: int = 4
    vision_width: int = 128
    vision_layers: int = 6
    """the features are those of the last but one, as in the real model"""
    vision_heads: int = 4
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = 2
    max_positions: int = 512


def build_tinyllava(
    sizes: NanoTinyLlava, tokenizer: PreTrainedTokenizerFast
) -> tuple[TinyLlavaForConditionalGeneration, LlavaProcessor]:
    """An untrained model and its processor; `tokenizer` gets a token for the image's place."""
    vision = SiglipVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
    )
    text = PhiConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        hidden_act="gelu_pytorch_tanh",  # phi-2's gelu_new, in one kernel instead of eight
        max_position_embeddings=sizes.max_positions,
        partial_rotary_factor=0.5,  # 32 dimensions, as phi-2 rotates of its heads of 80
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = TinyLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_seq_length=(sizes.image_size // sizes.patch_size) ** 2 - 1,
        tokenizer_model_max_length=sizes.max_positions,
    )
    processor = make_processor(config, tokenizer)
    config.image_token_index = processor.image_token_id
    return TinyLlavaForConditionalGeneration(config), processor


def tinyllava_tower(model: TinyLlavaForConditionalGeneration, judge: Judge) -> TowerHeads:
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector

    def see(crops: Tensor) -> Tensor:
        states = tower(crops, output_hidden_states=True).hidden_states
        return states[model.config.vision_feature_layer]

    def project(features: Tensor) -> Tensor:
        first = int(model.config.vision_feature_select_strategy == "default")  # drops the first patch
        return projector(features[:, first:])

    return TowerHeads(tower, see, project, model.config.vision_config.hidden_size, judge)


def start_from_moondream(
    model: TinyLlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    moondream: MoondreamForConditionalGeneration,
    moondream_tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """Copy tower, decoder and the entries of words that both tokenizers have; returns the names of what is not copied.

    Not copied are the projector, the tower's last layer, which LLaVA does not read, and the norms behind both towers'
    layers. Both models need the same grid of patches, heads and widths.
    """
    theirs, ours = moondream.state_dict(), model.state_dict()
    copied: dict[str, Tensor] = {}

    def copy(name: str, weight: Tensor) -> None:
        copied[name] = weight.reshape(ours[name].shape)

    tower = "model.vision_tower."
    copy(f"{tower}embeddings.patch_embedding.weight", theirs["model.vision.patch_emb.weight"])
    copy(f"{tower}embeddings.patch_embedding.bias", theirs["model.vision.patch_emb.bias"])
    copy(f"{tower}embeddings.position_embedding.weight", theirs["model.vision.pos_emb"])
    for i in range(moondream.config.vision_config.num_hidden_layers):
        _copy_layer(copy, theirs, f"model.vision.blocks.{i}.", f"{tower}encoder.layers.{i}.", _VISION_NAMES)
    for i in range(moondream.config.text_config.num_hidden_layers):
        _copy_layer(copy, theirs, f"model.text.blocks.{i}.", f"model.language_model.layers.{i}.", _TEXT_NAMES)
    for part in ("weight", "bias"):
        copy(f"model.language_model.final_layernorm.{part}", theirs[f"model.text.post_ln.{part}"])

    known, words = moondream_tokenizer.get_vocab(), tokenizer.get_vocab()
    both = [(words[word], known[word]) for word in words if word in known]
    to, origin = (torch.tensor(ids) for ids in zip(*both, strict=True))
    for name, their_name in _VOCABULARY_NAMES.items():
        entries = ours[name].clone()
        entries[to] = theirs[their_name][origin]
        copied[name] = entries
    model.load_state_dict(ours | copied)
    return sorted(ours.keys() - copied.keys())


_VISION_NAMES = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TEXT_NAMES = {"ln": "input_layernorm", "attn.proj": "self_attn.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
_VOCABULARY_NAMES = {
    "model.language_model.embed_tokens.weight": "model.text.wte.weight",
    "lm_head.weight": "model.text.lm_head.weight",
    "lm_head.bias": "model.text.lm_head.bias",
}


def _copy_layer(
    copy: Callable[[str, Tensor], None], theirs: dict[str, Tensor], source: str, target: str, names: dict[str, str]
) -> None:
    for part in ("weight", "bias"):
        for their_name, our_name in names.items():
            copy(f"{target}{our_name}.{part}", theirs[f"{source}{their_name}.{part}"])
        for letter, weight in zip("qkv", theirs[f"{source}attn.qkv.{part}"].chunk(3), strict=True):
            copy(f"{target}self_attn.{letter}_proj.{part}", weight)


def save_tinyllava(model: TinyLlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write the folder that `load_tinyllava` reads."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
