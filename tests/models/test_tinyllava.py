"""The TinyLLaVA family: which members load, which are refused, and the image's place in a full vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    Qwen2Config,
    SiglipVisionConfig,
    StableLmConfig,
)

from tests.models.tiny_chat import SIGLIP, TEXT, byte_tokenizer
from vlm_detect.errors import UserError
from vlm_detect.models.registry import load_vlm
from vlm_detect.models.tinyllava import TinyLlavaConfig, load_tinyllava
from vlm_detect.models.tinyllava.processing import make_image_processor, place_of_image

GPT_TEXT = {name: value for name, value in TEXT.items() if name != "head_dim"}
MEMBERS: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2Config(vocab_size=272, tie_word_embeddings=True, **GPT_TEXT), SiglipVisionConfig(**SIGLIP)),
    "llama": (LlamaConfig(vocab_size=272, **TEXT), CLIPVisionConfig(**SIGLIP)),
    "stablelm": (StableLmConfig(vocab_size=272, **GPT_TEXT), SiglipVisionConfig(**SIGLIP)),
    "gemma": (GemmaConfig(vocab_size=272, tie_word_embeddings=True, **TEXT), SiglipVisionConfig(**SIGLIP)),
}


def save_member(folder: Path, text: Any, vision: Any, **changes: Any) -> tuple[Any, Any]:
    """A released folder made of the parts that transformers itself builds: (language model, tower)."""
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        language_model, tower = AutoModelForCausalLM.from_config(text), AutoModel.from_config(vision)
        connector = torch.nn.Sequential(
            torch.nn.Linear(vision.hidden_size, text.hidden_size),
            torch.nn.GELU(),
            torch.nn.Linear(text.hidden_size, text.hidden_size),
        )
    tensors = {f"language_model.{name}": tensor for name, tensor in language_model.state_dict().items()}
    tensors |= {f"vision_tower._vision_tower.vision_model.{name}": t for name, t in tower.state_dict().items()}
    tensors |= {f"connector._connector.{name}": tensor for name, tensor in connector.state_dict().items()}
    if text.tie_word_embeddings:
        tensors.pop("language_model.lm_head.weight")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {
        "model_type": "tinyllava",
        "llm_model_name_or_path": "some/model",
        "vision_model_name_or_path": "some/tower",
        "connector_type": "mlp2x_gelu",
        "text_config": text.to_dict(),
        "vision_config": vision.to_dict(),
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return language_model.eval(), tower.eval()


@pytest.mark.parametrize("name", list(MEMBERS))
def test_members_equal_their_parts(name: str, tmp_path: Path) -> None:
    language_model, _ = save_member(tmp_path / "model", *MEMBERS[name])
    model, processor = load_tinyllava(tmp_path / "model")
    ids = torch.tensor([[5, 9, 100, 37]])
    with torch.inference_mode():
        assert (model(input_ids=ids).logits - language_model(input_ids=ids).logits).abs().max() < 1e-5
    assert model.config.image_seq_length == (16 if name == "llama" else 15)  # CLIP's class token is what is dropped
    assert processor.tokenizer.convert_ids_to_tokens(processor.image_token_id) == "<image>"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_config": {"model_type": "openelm"}}, "language model 'openelm'"),
        ({"vision_config": {"model_type": "dinov2"}}, "vision tower 'dinov2'"),
        ({"vision_model_name_or_path2": "another/tower"}, "two towers"),
        ({"connector_type": "resampler"}, "connector 'resampler'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
    ],
)
def test_unsupported_members_are_refused_in_one_line(changes, words: str, tmp_path: Path) -> None:
    save_member(tmp_path / "model", *MEMBERS["qwen2"], **changes)
    with pytest.raises(UserError, match=f"{words}.*supported are") as refused:
        load_vlm(str(tmp_path / "model"))
    assert "\n" not in str(refused.value)


def test_a_full_vocabulary_reuses_a_token_that_no_text_encodes_to() -> None:
    tokenizer = byte_tokenizer("<unused0>")
    assert place_of_image(tokenizer, len(tokenizer)) == "<unused0>"
    tokenizer = byte_tokenizer("<unk>")
    tokenizer.unk_token = "<unk>"
    size = len(tokenizer)
    assert place_of_image(tokenizer, size) == "<unk>"
    assert len(tokenizer) == size
    with pytest.raises(ValueError, match="none is left for the image"):
        place_of_image(byte_tokenizer(), size - 1)


def test_the_modes_of_a_clip_tower() -> None:
    """CLIP crops what is not square, and pads it first in the other mode."""
    for mode, pad in (("square", False), ("pad", True)):
        vision = {**CLIPVisionConfig(**SIGLIP).to_dict()}
        config = TinyLlavaConfig(vision_config=vision, text_config={"model_type": "llama"}, image_aspect_ratio=mode)
        processor = make_image_processor(config)
        assert (processor.do_pad, processor.do_center_crop) == (pad, True)


@pytest.mark.parametrize(
    "first",
    [
        "import vlm_detect.models",
        pytest.param("from transformers import AutoModelForImageTextToText", marks=pytest.mark.slow),
    ],
)
def test_the_auto_classes_know_it_after_import(first: str, tmp_path: Path) -> None:
    save_member(tmp_path / "model", *MEMBERS["llama"])
    model, processor = load_tinyllava(tmp_path / "model")
    model.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    program = (
        f"{first}\nimport vlm_detect.models\nfrom transformers import AutoModelForImageTextToText\n"
        f"print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path / 'own')!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "TinyLlavaForConditionalGeneration"
