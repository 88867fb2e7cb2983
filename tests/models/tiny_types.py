"""A tiny model of any image-text type of transformers with its processor, made by rule on the spot.

    folder = save_tiny_type("qwen3_vl", tmp_path)       # what `load_vlm` loads

The tokenizer has a token a byte and the special tokens that the processor's source names; ids in the configuration are
those of the tokenizer. The image processor is the PIL class, with the tower's patch and image size.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from tests.models.tiny_chat import byte_tokenizer, turns
from tests.models.tiny_configs import SETTINGS, STD, tiny_config
from vlm_detect.models.generic.processors import absent_parts, image_only, own_class

TYPES = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

# As their checkpoints say; transformers' table has no processor for these types.
_PROCESSORS = {
    "cosmos3_omni": "Qwen3VLProcessor",
    "fast_vlm": "LlavaProcessor",
    "glm_ocr": "Glm46VProcessor",
    "glmga": "Glm46VProcessor",
    "qwen2_5_omni_thinker": "Qwen2_5OmniProcessor",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeProcessor",
    "kosmos-2": "Kosmos2Processor",
    "kosmos-2.5": "Kosmos2_5Processor",
}
_IMAGE_PROCESSORS = {
    "diffusion_gemma": "Gemma4ImageProcessorPil",
    "fast_vlm": "CLIPImageProcessorPil",
    "glm4v_moe": "Glm4vImageProcessorPil",
    "glm_ocr": "Glm46VImageProcessorPil",
    "qwen2_5_omni_thinker": "Qwen2VLImageProcessorPil",
    "qwen3_omni_moe_thinker": "Qwen2VLImageProcessorPil",
    "qwen3_vl_moe": "Qwen2VLImageProcessorPil",
}
_MARKER = re.compile(r"[\"'](<[^\s\"'<>]+>|\[[A-Z_]+\]|\|[A-Z_]+\|)[\"']")
_NAMED = re.compile(r"tokenizer[,.] ?\"?(\w+_token)\b")


class Untried(Exception):
    """Why no tiny model of a type can be made here."""


def processor_class(model_type: str) -> Any:
    name = PROCESSOR_MAPPING_NAMES.get(model_type) or _PROCESSORS.get(model_type)
    if name is None:
        raise Untried("transformers has no processor for it")
    found = own_class(getattr(transformers, name))
    if getattr(found, "is_dummy", False):
        raise Untried(f"{name} needs torchvision")
    return found


def image_processor_class(model_type: str) -> Any:
    known = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {"pil": _IMAGE_PROCESSORS.get(model_type)}
    name = known.get("pil") or known.get("torchvision")
    if name is None:
        raise Untried("transformers has no image processor for it")
    if not known.get("pil"):
        raise Untried(f"{name} needs torchvision")
    return getattr(transformers, name, None) or _find(name)


def _find(name: str) -> Any:
    """An image processor that transformers does not list at its top."""
    folder = Path(transformers.__file__).parent / "models"
    for path in folder.glob("*/image_processing_*.py"):
        if f"class {name}(" in path.read_text(encoding="utf-8"):
            return getattr(importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}"), name)
    raise Untried(f"transformers has no {name}")


def _source(cls: Any) -> str:
    return inspect.getsource(importlib.import_module(cls.__module__))


def tokenizer_for(cls: Any, config: Any) -> PreTrainedTokenizerFast:
    source = _source(cls)
    named = {name: f"<{name}>" for name in sorted(set(_NAMED.findall(source))) if not name.startswith("add_")}
    if SETTINGS.get(config.model_type, {}).get("unnamed"):
        named = {}
    for name in ("pad_token", "bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token"):
        named.pop(name, None)
    markers = sorted(set(_MARKER.findall(source)) - {"<pad>", "<s>", "</s>"} - set(named.values()))
    reserved = [f"<{name}>" for name in sorted(set(_ids(config)))]
    turn = ["<|turn|>", "<|end_of_turn|>"]
    words = list(dict.fromkeys([*named.values(), *markers, *reserved, *turn]))
    made = byte_tokenizer(*words, "<unk>", **named)
    made.unk_token, made.sep_token = "<unk>", "</s>"
    return made


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig) and value is not config:
            yield from _parts(value)


_OWN = {"pad", "bos", "eos", "sep", "decoder_start", "cls", "mask", "forced_eos", "forced_bos"}


def _token_of(name: str) -> str | None:
    """What the token is called of which a setting of a configuration has the id."""
    found = re.fullmatch(r"(\w+?)(_token)?_(id|index|ids)", name)
    return found[1] if found and not found[1].endswith("layer") else None


def _ids(config: PreTrainedConfig) -> Iterator[str]:
    """What the ids of tokens in a configuration are called."""
    for part in _parts(config):
        for name, value in dict(vars(part)).items():
            token = _token_of(name)
            if token and token not in _OWN and isinstance(value, int):
                yield token


def set_ids(config: PreTrainedConfig, processor: Any) -> None:
    tokenizer = processor.tokenizer
    plain = {"pad": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    plain |= {"sep": plain["eos"], "decoder_start": plain["bos"], "cls": plain["bos"], "forced_eos": None}
    plain |= {"forced_bos": None, "mask": plain["pad"]}
    vocabulary = tokenizer.get_vocab()
    if "vocabulary_map" in vars(config):
        config.vocabulary_map = {**config.vocabulary_map, "<image>": processor.image_token_id}
    if "visual_indicator_token_ids" in vars(config):
        words = [f"<IMG_{name}>" for name in ("START", "GRID", "COL", "ROW", "END")]
        config.visual_indicator_token_ids = tokenizer.convert_tokens_to_ids(words)
    for part in _parts(config):
        for name, value in list(vars(part).items()):
            token = _token_of(name)
            if token is None:
                continue
            if token in plain and (isinstance(value, int | list) or value is None):
                setattr(part, name, plain[token])
            elif isinstance(value, int) or name in ("image_token_id", "image_token_index"):
                setattr(part, name, _id_of(token, processor, vocabulary))


def _id_of(name: str, processor: Any, vocabulary: dict[str, int]) -> int | None:
    tokenizer = processor.tokenizer
    if name == "image":
        if "<IMG_ATOM>" in vocabulary:
            return vocabulary["<IMG_ATOM>"]
        found = getattr(tokenizer, "image_token_id", None) or getattr(processor, "image_token_id", None)
        word = str(getattr(processor, "image_token", None) or f"<{name}>")
        return vocabulary.get(word) if found is None else found
    for owner in (processor, tokenizer):
        if (own := getattr(owner, f"{name}_token", None)) in vocabulary:
            return vocabulary[str(own)]
    letters = re.sub(r"[^a-z]", "", name)
    for word, token_id in vocabulary.items():
        if re.sub(r"[^a-z]", "", word) == letters:
            return token_id
    return vocabulary[f"<{name}>"]


def _first(config: PreTrainedConfig, name: str) -> Any:
    return next((getattr(part, name) for part in _parts(config) if getattr(part, name, None) is not None), None)


def make_image_processor(model_type: str, config: PreTrainedConfig) -> Any:
    cls = image_processor_class(model_type)
    made = cls()
    vision = getattr(config, "vision_config", None) or config
    patch, side = _first(vision, "patch_size"), _first(vision, "image_size")
    patch = patch[-1] if isinstance(patch, list | tuple) else patch
    side = side[-1] if isinstance(side, list | tuple) else side
    settings: dict[str, Any] = {}
    if isinstance(patch, int) and isinstance(getattr(made, "patch_size", None), int):
        settings["patch_size"] = patch
    side = side if isinstance(side, int) else 4 * (patch or 16)
    size = _sizes(getattr(made, "size", None))
    if hasattr(made, "merge_size") and {"shortest_edge", "longest_edge"} <= set(size):  # areas, of two frames in GLM
        settings["size"] = {"shortest_edge": side * side // 4, "longest_edge": 2 * side * side}
    elif size:
        settings["size"] = dict.fromkeys(size, side)
    for name in ("crop_size", "max_image_size"):
        if sizes := _sizes(getattr(made, name, None)):
            settings[name] = dict.fromkeys(sizes, side)
    if getattr(made, "image_grid_pinpoints", None):
        settings["image_grid_pinpoints"] = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]
        config.image_grid_pinpoints = settings["image_grid_pinpoints"]
    made = cls(**{**settings, **SETTINGS.get(model_type, {}).get("image_processor", {})})
    source = _source(processor_class(model_type))
    if "image_processor.image_seq_length" in source:
        made.image_seq_length = (side // patch) ** 2 if isinstance(patch, int) else 1
    return made


def _sizes(value: Any) -> dict[str, Any]:
    """The named numbers of an image processor's `size`."""
    found = dict(value) if hasattr(value, "__iter__") and not isinstance(value, list | tuple) else {}
    return {name: number for name, number in found.items() if number is not None}


def make_processor(
    model_type: str, config: PreTrainedConfig, image_processor: Any = None, words: Sequence[str] = ()
) -> Any:
    """`words` are tokens that the tokenizer has in addition."""
    cls = processor_class(model_type)
    tokenizer = tokenizer_for(cls, config)
    tokenizer.add_tokens(list(words), special_tokens=True)
    image_processor = image_processor or make_image_processor(model_type, config)
    known = inspect.signature(cls.__init__).parameters
    settings = {name: value for name in known if (value := _setting(name, config)) is not None}
    own = SETTINGS.get(model_type, {})
    settings |= own.get("processor", {})
    if "images_kwargs" in own:
        cls.images_kwargs = {**cls.images_kwargs, **own["images_kwargs"]}
    try:
        narrowed, absent = image_only(cls), absent_parts(cls)
    except ValueError as error:
        raise Untried(str(error)) from error
    processor = narrowed(image_processor=image_processor, tokenizer=tokenizer, **absent, **settings)
    place = own.get("place", getattr(processor, "image_token", None) or "")
    processor.chat_template = turns("<|turn|>", place, "<|end_of_turn|>")
    return processor


def _setting(name: str, config: PreTrainedConfig) -> Any:
    """What a processor wants to know of its model."""
    vision = getattr(config, "vision_config", None) or config
    if name == "num_additional_image_tokens":
        return 1 if vision.model_type == "clip_vision_model" else 0
    if name in ("image_seq_length", "image_seq_len") and _first(config, "mm_tokens_per_image"):
        return _first(config, "mm_tokens_per_image")
    if name == "patch_size":
        found = _first(vision, "patch_size")
        return found[-1] if isinstance(found, list | tuple) else found
    if name in ("image_seq_length", "image_seq_len", "num_image_tokens"):
        patch, side = (
            one[-1] if isinstance(one, list | tuple) else one
            for one in (_first(vision, "patch_size"), _first(vision, "image_size"))
        )
        if isinstance(patch, int) and isinstance(side, int):
            ratio = _first(config, "scale_factor") or _first(config, "downsample_ratio") or 1
            count = (side // patch) ** 2
            return int(count * ratio**2) if ratio < 1 else int(count // ratio**2)
        return None
    if name == "vision_feature_select_strategy":
        return getattr(config, name, None)
    if name in ("spatial_merge_size", "downsample_rate"):
        return _first(config, name)
    return None


def make_tiny_type(model_type: str) -> tuple[Any, Any]:
    """A model of random weights and its processor; `Untried` where this machine lacks what either needs."""
    image_processor_class(model_type)  # what cannot be had is told first
    config = tiny_config(model_type, 2048)
    processor = make_processor(model_type, config)
    set_ids(config, processor)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])(config)
        for parameter in model.parameters():
            if not parameter.any():  # gates that start closed would hide what stands behind them
                torch.nn.init.normal_(parameter, std=STD)
        for name, module in model.named_modules():
            if "vqmodel" in name and isinstance(module, torch.nn.Conv2d):
                module.reset_parameters()
            if "quantize" in name and isinstance(module, torch.nn.Embedding):  # codes far enough apart to differ
                torch.nn.init.normal_(module.weight)
    return model, processor


def save_tiny_type(model_type: str, folder: Path) -> Path:
    model, processor = make_tiny_type(model_type)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
