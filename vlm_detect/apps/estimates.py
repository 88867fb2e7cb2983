"""How much memory a training config takes, from the model's shapes on the meta device; and the record of the package's.

    python -m vlm_detect.apps.estimates          # recomputes estimates.json, which `vlm-detect doctor` reads

An estimate takes seconds and imports everything, so those of the package's own configs are recorded. A test recomputes
them and compares.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from vlm_detect.apps.recorded import ESTIMATES, sized_configs
from vlm_detect.config import find_config, write_json
from vlm_detect.errors import UserError, first_line, run_main
from vlm_detect.extras import asked_for
from vlm_detect.infer.footprint import Footprint
from vlm_detect.machine import dtype_of
from vlm_detect.models.base import FAMILIES, VLM, ImageCost, dtype_in
from vlm_detect.models.generic.loading import is_supported
from vlm_detect.models.generic.published import PUBLISHED
from vlm_detect.models.moondream import MoondreamConfig
from vlm_detect.models.moondream.configuration import HUB_ID
from vlm_detect.models.registry import resolve_id
from vlm_detect.models.tinyllava import HUB_ID as TINYLLAVA_ID
from vlm_detect.models.tinyllava import TinyLlavaConfig
from vlm_detect.models.tinyllava.configuration import RELEASE
from vlm_detect.models.untrusted import build_untrusted, load_untrusted
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.memory import Estimate, Step, estimate_memory, family_of
from vlm_detect.train.options import DataOptions, LoraOptions, ModelOptions, QuestionOptions, TrainOptions

# The allowed keys of a recipe's config.
_KNOWN = {
    key
    for options in (ModelOptions, DataOptions, QuestionOptions, LoraOptions, TrainArguments)
    for key in options.__dataclass_fields__
}


@dataclass(frozen=True)
class Subject:
    """A model without its weights, and the cost of one of its images."""

    skeleton: PreTrainedModel
    image: ImageCost
    stored_dtype: str | None = None  # of the published weights

    @property
    def family(self) -> type[VLM]:
        return family_of(self.skeleton.config)

    @property
    def without_bfloat16(self) -> torch.dtype:
        """What it computes in on a GPU without bfloat16."""
        in_float16 = self.family.trained_in_float16({"dtype": self.stored_dtype})
        return torch.float16 if in_float16 else torch.float32


def record_of(path: str, model: str | None = None, *, bfloat16: bool = True) -> dict[str, Any]:
    """An estimate as recorded: bytes of a step by purpose, its images with the crops or tokens of each, and bytes of
    the phases in addition to training, for a GPU that computes in `bfloat16` or does not.

    `validation` scores a batch next to the optimiser's states. `inference` is the least for verdicts, captions and
    serving: the weights in the device's dtype, without quantisation, and one image; larger batches take what is free.
    """
    values = _read(path)
    subject = subject_of(model or values.get("model") or ModelOptions().model)
    dtype = torch.bfloat16 if bfloat16 else subject.without_bfloat16
    one = Footprint(subject.skeleton.config, dtype.itemsize, subject.image).image_bytes
    whole = dtype.itemsize * subject.skeleton.num_parameters()
    estimate, step = _estimate(values, subject, dtype)
    scored = values.get("per_device_eval_batch_size", TrainOptions.per_device_eval_batch_size)
    held = estimate.parts["weights"] + estimate.parts["optimiser"]
    overhead = estimate.parts["overhead"]
    phases = {"validation": held + scored * one + overhead, "inference": whole + one + overhead}
    described = {"images": step.images, "crops": step.crops, "tokens": subject.image.prefix_tokens}
    dtypes = {"dtype": _name(step.dtype), "without_bfloat16": _name(subject.without_bfloat16)}
    return {"parts": estimate.parts, **described, "phases": phases, **dtypes}


def estimate_config(path: str, model: str | None = None) -> tuple[Estimate, Step]:
    """The memory of a step under a recipe's YAML, for the YAML's model or for `model`."""
    values = _read(path)
    return _estimate(values, subject_of(model or values.get("model") or ModelOptions().model))


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


def _estimate(values: dict[str, Any], subject: Subject, dtype: torch.dtype = torch.bfloat16) -> tuple[Estimate, Step]:
    """The memory of a step, in `dtype` unless the YAML sets another; the skeleton stays wrapped by the LoRA."""
    lora = LoraOptions(**{key: value for key, value in values.items() if key in LoraOptions.__dataclass_fields__})
    defaults = {key: field.default for key, field in TrainOptions.__dataclass_fields__.items()}
    batch = values.get("per_device_train_batch_size", defaults["per_device_train_batch_size"])
    step = Step(
        dtype=dtype_of(values.get("dtype")) or dtype,
        quantize=values.get("quantize"),
        tune=values.get("tune", "lora"),
        optimizer=values.get("optim", "adamw_torch"),
        images=2 * int(batch),
        questions=values.get("questions_per_image", 1),
        crops=subject.family.typical_crops,
        image=subject.image,
        checkpointing=bool(values.get("gradient_checkpointing", False)),
        cached_features=bool(values.get("cache_features", False)),
    )
    return estimate_memory(subject.skeleton, step, lora), step


def subject_of(name: str) -> Subject:
    """The model of this name, from what is on this machine: nothing is downloaded. `auto` and some Hub ids have their
    released sizes.

    Raises:
        UserError: for a model whose files are not here, or one that is not supported.
    """
    if name in (HUB_ID, "auto"):
        skeleton = _skeleton(MoondreamConfig())
    elif name == TINYLLAVA_ID:
        skeleton = _skeleton(TinyLlavaConfig.from_dict(deepcopy(RELEASE)))
    elif name in PUBLISHED:
        published = PUBLISHED[name]
        return Subject(_skeleton(published.make_config()), published.image, published.dtype)
    else:
        folder = _folder_of(name)
        try:
            config = load_untrusted(AutoConfig, folder)
        except (OSError, ValueError) as error:
            raise UserError(f"--model {name}: its configuration cannot be read ({first_line(error)})") from error
        if config.model_type not in FAMILIES and not is_supported(config):
            raise UserError(
                f"--model {name}: memory is estimated for image-text models, which {config.model_type} is not"
            )
        try:
            skeleton = _skeleton(config)
        except ImportError as error:
            raise UserError(f"--model {name}: {asked_for(error) or first_line(error)}") from error
    family = family_of(skeleton.config)
    if family.estimates_memory:
        return Subject(skeleton, _fixed_cost(skeleton, family))
    try:
        processor = family.load_processor(folder, skeleton.config)
    except (OSError, ValueError, ImportError) as error:
        needed = asked_for(error) or f"no processor tells how many tokens an image has ({first_line(error)})"
        raise UserError(f"--model {name}: {needed}") from error
    return Subject(skeleton, family(skeleton, processor, name).image_cost, dtype_in(config.to_dict()))


def _folder_of(name: str) -> str:
    """The folder of a model that is here: given, embedded, or in the Hub's cache."""
    resolved = resolve_id(name)
    if resolved.is_local:
        return resolved.path_or_id
    try:
        return snapshot_download(name, revision=resolved.revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model {name}: memory is estimated from its configuration and processor, which are not here: run "
            f"hf download {name} --exclude '*.safetensors' '*.bin'"
        ) from error


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return build_untrusted(AutoModelForImageTextToText, config)


def _fixed_cost(skeleton: PreTrainedModel, family: type[VLM]) -> ImageCost:
    """Of an image of the most crops, for the families in which all images have equally many tokens."""
    vision = skeleton.config.vision_config
    side = getattr(vision, "crop_size", None) or vision.image_size
    with torch.device("meta"):
        prefix = family.skeleton_prefixes(skeleton, 1, crops=1, dtype=torch.bfloat16, cached=True)
    return ImageCost(prefix.shape[1], 3 * side**2 * (1 + getattr(vision, "max_crops", 0)))


def main(argv: list[str]) -> None:
    write_json(ESTIMATES, {path.stem: record_of(str(path)) for path in sized_configs()})
    print(ESTIMATES)


if __name__ == "__main__":
    run_main(main)
