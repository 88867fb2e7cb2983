"""How much memory a training config takes, from the model's shapes on the meta device; and the record of the package's.

    python -m vlm_detect.apps.estimates          # recomputes estimates.json, which `vlm-detect doctor` reads

An estimate takes seconds and imports everything, so those of the package's own configs are recorded. A test recomputes
them and compares.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from vlm_detect.apps.recorded import ESTIMATES, sized_configs
from vlm_detect.config import find_config, write_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.infer.footprint import Footprint
from vlm_detect.machine import dtype_of
from vlm_detect.models.base import FAMILIES
from vlm_detect.models.moondream import MoondreamConfig
from vlm_detect.models.moondream.configuration import HUB_ID
from vlm_detect.models.registry import resolve_id
from vlm_detect.models.tinyllava import HUB_ID as TINYLLAVA_ID
from vlm_detect.models.tinyllava import TinyLlavaConfig
from vlm_detect.models.tinyllava.configuration import RELEASE
from vlm_detect.models.untrusted import build_untrusted, load_untrusted
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.memory import Estimate, Step, estimate_memory
from vlm_detect.train.options import DataOptions, LoraOptions, ModelOptions, QuestionOptions, TrainOptions

# The allowed keys of a recipe's config.
_KNOWN = {
    key
    for options in (ModelOptions, DataOptions, QuestionOptions, LoraOptions, TrainArguments)
    for key in options.__dataclass_fields__
}


def record_of(path: str, model: str | None = None) -> dict[str, Any]:
    """An estimate as recorded: bytes of a step by purpose, its images with the crops of each, and bytes of the phases
    in addition to training.

    `validation` scores a batch next to the optimiser's states. `inference` is the least for verdicts, captions and
    serving: the weights in the device's dtype, without quantisation, and one image; larger batches take what is free.
    """
    values = _read(path)
    name = model or values.get("model") or ModelOptions().model
    skeleton = _skeleton(name)
    one, whole = _image_bytes(skeleton), 2 * skeleton.num_parameters()
    estimate, step = _estimate(values, skeleton)
    scored = values.get("per_device_eval_batch_size", TrainOptions.per_device_eval_batch_size)
    held = estimate.parts["weights"] + estimate.parts["optimiser"]
    overhead = estimate.parts["overhead"]
    phases = {"validation": held + scored * one + overhead, "inference": whole + one + overhead}
    return {"parts": estimate.parts, "images": step.images, "crops": step.crops, "phases": phases}


def estimate_config(path: str, model: str | None = None) -> tuple[Estimate, Step]:
    """The memory of a step under a recipe's YAML, for the YAML's model or for `model`."""
    values = _read(path)
    return _estimate(values, _skeleton(model or values.get("model") or ModelOptions().model))


def _image_bytes(skeleton: PreTrainedModel) -> float:
    """The peak of one image's tensors in inference, computed in 16 bits, of the most crops."""
    config, family = skeleton.config, FAMILIES[skeleton.config.model_type]
    with torch.device("meta"):
        prefix = family.skeleton_prefixes(skeleton, 1, crops=1, dtype=torch.bfloat16, cached=True)
    return Footprint(config, 2, prefix.shape[1], 1 + getattr(config.vision_config, "max_crops", 0)).image_bytes


def _read(path: str) -> dict[str, Any]:
    """The values of a recipe's YAML."""
    try:
        values = yaml.safe_load(find_config(path).read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: cannot be read as YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(values, dict) or (unknown := values.keys() - _KNOWN):
        wrong = f"unknown keys {', '.join(sorted(map(str, unknown)))}" if isinstance(values, dict) else "not a mapping"
        raise UserError(f"--config {path}: {wrong}; give a config of vlm-detect train")
    return values


def _estimate(values: dict[str, Any], skeleton: PreTrainedModel) -> tuple[Estimate, Step]:
    """The memory of a step; `skeleton` stays wrapped by the LoRA."""
    lora = LoraOptions(**{key: value for key, value in values.items() if key in LoraOptions.__dataclass_fields__})
    defaults = {key: field.default for key, field in TrainOptions.__dataclass_fields__.items()}
    batch = values.get("per_device_train_batch_size", defaults["per_device_train_batch_size"])
    step = Step(
        dtype=dtype_of(values.get("dtype")) or torch.bfloat16,
        quantize=values.get("quantize"),
        tune=values.get("tune", "lora"),
        optimizer=values.get("optim", "adamw_torch"),
        images=2 * int(batch),
        questions=values.get("questions_per_image", 1),
        crops=FAMILIES[skeleton.config.model_type].typical_crops,
        checkpointing=bool(values.get("gradient_checkpointing", False)),
        cached_features=bool(values.get("cache_features", False)),
    )
    return estimate_memory(skeleton, step, lora), step


def _skeleton(name: str) -> PreTrainedModel:
    """The model without its weights; `auto` and the two Hub ids have their released shapes, without network access."""
    config: PreTrainedConfig
    if name in (HUB_ID, "auto"):
        config = MoondreamConfig()
    elif name == TINYLLAVA_ID:
        config = TinyLlavaConfig.from_dict(deepcopy(RELEASE))
    else:
        resolved = resolve_id(name)
        if not resolved.is_local:
            raise UserError(f"--model {name}: memory is estimated only for {HUB_ID}, {TINYLLAVA_ID}, folders and nano")
        try:
            config = load_untrusted(AutoConfig, resolved.path_or_id)
        except (OSError, ValueError) as error:
            raise UserError(f"--model {name}: its configuration cannot be read ({error})") from error
        if config.model_type not in FAMILIES or not FAMILIES[config.model_type].estimates_memory:
            raise UserError(
                f"--model {name}: memory is estimated for moondream and the LLaVA family, not for {config.model_type}"
            )
    with torch.device("meta"):
        return build_untrusted(AutoModelForImageTextToText, config)


def main(argv: list[str]) -> None:
    write_json(ESTIMATES, {path.stem: record_of(str(path)) for path in sized_configs()})
    print(ESTIMATES)


if __name__ == "__main__":
    run_main(main)
