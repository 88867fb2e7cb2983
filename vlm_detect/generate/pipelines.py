"""How a pipeline of diffusers is called, read from the signature of its class.

    call = call_of(pipeline)
    pipeline(prompt=..., **call.arguments(sampling, size))

Pipelines name the strength of guidance in three ways, and some ask for more: a negative prompt without which guidance
is silently off, the number of pixels in addition to width and height, or a flag that keeps them from resizing their
images or rewriting the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm_detect.errors import UserError
from vlm_detect.generate.options import Sampling
from vlm_detect.quiet import quiet

# The first that a call has with a number for its default: `guidance_scale` of Qwen-Image, whose default is None, is for
# distilled weights alone, and `true_cfg_scale` of FLUX is 1, which is off.
_GUIDANCE = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale")
_NEEDED = ("width", "height", "num_inference_steps", "generator", "output_type")
# What a call has that would change the image or its prompt behind the drawing.
_OFF = {
    "use_resolution_binning": False,  # Sana, PixArt: renders at the nearest of its own sizes, and resizes
    "clean_caption": False,  # Sana, PixArt: takes Markdown and more out of the prompt, by libraries that few have
    "enable_prompt_rewrite": False,  # LongCat: has a language model write another prompt
    "use_pe": False,  # ERNIE-Image: likewise
    "_auto_resize": False,  # Kontext: resizes its image to the nearest of its own sizes
}
# Editing models that render nothing without an image; Kontext and FLUX.2, which take one too, do.
_NEED_IMAGE = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
SIDE = 1024  # in pixels, of pipelines that say nothing: what generators of today are trained at


@dataclass(frozen=True)
class PipelineCall:
    """The names of a pipeline's arguments."""

    guidance: str | None  # None: it has none
    takes_length: bool  # `max_sequence_length`, in tokens of a T5 or a language model
    takes_area: bool = False  # `max_area`, to which Kontext scales every width and height
    takes_image: bool = False  # `image`, which it edits by the prompt
    needs_image: bool = False  # it cannot render from a caption
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, sampling: Sampling, size: tuple[int, int]) -> dict[str, Any]:
        """Everything but the prompt and the seed; `size` is (width, height) in pixels."""
        width, height = size
        arguments: dict[str, Any] = {"num_inference_steps": sampling.steps, "width": width, "height": height}
        arguments |= self.fixed
        if self.takes_area:
            arguments["max_area"] = width * height
        if self.guidance:
            arguments[self.guidance] = sampling.guidance
        if self.takes_length:
            arguments["max_sequence_length"] = sampling.max_sequence_length
        return arguments


def call_of(pipeline: Any) -> PipelineCall:
    """The call of a pipeline or of its class; UserError where it takes no prompt, size or seed."""
    cls = pipeline if isinstance(pipeline, type) else type(pipeline)
    name, parameters = cls.__name__, _parameters(cls)
    if missing := [needed for needed in ("prompt", *_NEEDED) if needed not in parameters]:
        raise UserError(
            f"{name} cannot render twins: its call takes no {', '.join(missing)}; give a text-to-image pipeline"
        )
    guidance = next((one for one in _GUIDANCE if one in parameters and _is_number(parameters[one].default)), None)
    fixed: dict[str, Any] = {argument: value for argument, value in _OFF.items() if argument in parameters}
    if guidance == "true_cfg_scale":
        fixed["negative_prompt"] = " "  # without one there is no guidance; Qwen-Image's own examples give a space
    return PipelineCall(
        guidance,
        takes_length="max_sequence_length" in parameters,
        takes_area="max_area" in parameters,
        takes_image="image" in parameters and not parameters.keys() & {"strength", "mask_image"},
        needs_image=name in _NEED_IMAGE,
        fixed=fixed,
    )


def native_side_of(pipeline: Any) -> int:
    """Side in pixels of the square that a pipeline renders by default."""
    if isinstance(side := _parameters(type(pipeline))["height"].default, int):
        return side
    config = denoiser_of(pipeline).config
    latent = getattr(pipeline, "default_sample_size", None) or getattr(config, "sample_size", None)
    return int(latent) * int(pipeline.vae_scale_factor) if isinstance(latent, int) else SIDE


def denoiser_of(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or pipeline.unet


def inpaint_class(cls: type) -> Any:
    """diffusers' class that repaints a part of an image with the weights of this pipeline class, or None."""
    import diffusers  # lazy: takes seconds

    with quiet("transformers"):
        return getattr(diffusers, cls.__name__.removesuffix("Pipeline") + "InpaintPipeline", None)


def with_parts_of(cls: Any, pipeline: Any) -> Any:
    """Another pipeline class with the same weights and settings."""
    known = {**pipeline.config, **pipeline.components}
    return cls(**{name: known[name] for name in inspect.signature(cls.__init__).parameters if name in known})


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls.__call__).parameters


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
