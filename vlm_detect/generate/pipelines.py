"""How a pipeline of diffusers is called, read from the signature of its class.

    call = call_of(pipeline)
    pipeline(prompt=..., **call.arguments(sampling))

Pipelines name the strength of guidance in three ways, and some ask for more: a negative prompt without which guidance
is silently off, or a word that keeps them from resizing their images or rewriting the prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm_detect.errors import UserError
from vlm_detect.generate.options import Sampling

# The first that a call has with a number for its default: `guidance_scale` of Qwen-Image, whose default is None, is for
# distilled weights alone, and `true_cfg_scale` of FLUX is 1, which is off.
_GUIDANCE = ("guidance_scale", "true_cfg_scale", "distilled_guidance_scale")
_NEEDED = ("width", "height", "num_inference_steps", "generator", "output_type")
# What a call has that would change the image or its prompt behind the drawing.
_OFF = {
    "use_resolution_binning": False,  # Sana, PixArt: renders at the nearest of its own sizes, and resizes
    "clean_caption": False,  # Sana, PixArt: takes Markdown and more out of the prompt, by libraries that few have
    "enable_prompt_rewrite": False,  # LongCat: has a language model write another prompt
}
SIDE = 1024  # in pixels, of pipelines that say nothing: what generators of today are trained at


@dataclass(frozen=True)
class PipelineCall:
    """The names of a pipeline's arguments."""

    guidance: str | None  # None: it has none
    takes_length: bool  # `max_sequence_length`, in tokens of a T5 or a language model
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, sampling: Sampling) -> dict[str, Any]:
        """Steps, guidance and what else does not depend on an image."""
        arguments: dict[str, Any] = {"num_inference_steps": sampling.steps, **self.fixed}
        if self.guidance:
            arguments[self.guidance] = sampling.guidance
        if self.takes_length:
            arguments["max_sequence_length"] = sampling.max_sequence_length
        return arguments


def call_of(pipeline: Any) -> PipelineCall:
    """The call of a pipeline; UserError where it cannot render an image of a given size from a text and a seed."""
    name = type(pipeline).__name__
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if missing := [needed for needed in ("prompt", *_NEEDED) if needed not in parameters]:
        raise UserError(
            f"{name} cannot render twins: its call takes no {', '.join(missing)}; give a text-to-image pipeline"
        )
    guidance = next((one for one in _GUIDANCE if one in parameters and _is_number(parameters[one].default)), None)
    fixed: dict[str, Any] = {argument: value for argument, value in _OFF.items() if argument in parameters}
    if guidance == "true_cfg_scale":
        fixed["negative_prompt"] = " "  # without one there is no guidance; Qwen-Image's own examples give a space
    return PipelineCall(guidance, "max_sequence_length" in parameters, fixed)


def native_side_of(pipeline: Any) -> int:
    """Side in pixels of the square that a pipeline renders by default."""
    config = denoiser_of(pipeline).config
    latent = getattr(pipeline, "default_sample_size", None) or getattr(config, "sample_size", None)
    return int(latent) * int(pipeline.vae_scale_factor) if isinstance(latent, int) else SIDE


def denoiser_of(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or pipeline.unet


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
