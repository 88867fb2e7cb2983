"""A diffusers text-to-image pipeline as this toolkit uses it: captions to twins, and photos through its autoencoder.

Any pipeline that `DiffusionPipeline.from_pretrained` opens will do; Stable Diffusion 3 has its prompts encoded once for
many images. Each image has a generator of its own, seeded by its own seed, so on a CPU neither the order of work nor
the neighbours in a batch decide what is drawn, save for the last bits of a matrix product.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.models.registry import ResolvedModel, check_reachable, explain_load_error

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Sampling:
    """How a generator draws: its own best settings, from data_gen/configs."""

    steps: int = 28
    guidance: float = 4.5
    max_sequence_length: int = 256  # tokens of the T5 encoder, where there is one
    dtype: str = "auto"  # auto: bfloat16 on an accelerator, float32 on a CPU


class Renderer:
    """A loaded pipeline."""

    def __init__(self, model: ResolvedModel, sampling: Sampling, device: str | None = None) -> None:
        diffusers = _import_diffusers()
        self.device = torch.device(device or _best_device())
        name = sampling.dtype if sampling.dtype != "auto" else "float32" if self.device.type == "cpu" else "bfloat16"
        try:
            pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
                model.path_or_id, revision=model.revision, dtype=_DTYPES[name]
            )
        except (OSError, ValueError) as error:
            raise UserError(explain_load_error(model, error)) from error
        pipeline.set_progress_bar_config(disable=True)
        if getattr(pipeline, "watermark", None) is not None:
            pipeline.watermark = None  # SDXL's invisible mark would tell every twin
        self.pipeline = pipeline.to(self.device)
        self.sampling = sampling
        self.dtype = name

    @property
    def scheduler(self) -> str:
        return type(self.pipeline.scheduler).__name__

    @property
    def native_side(self) -> int:
        """Side in pixels of the square that the pipeline draws by default."""
        denoiser = getattr(self.pipeline, "transformer", None) or self.pipeline.unet
        latent_side = getattr(self.pipeline, "default_sample_size", None) or denoiser.config.sample_size
        return int(latent_side * self.pipeline.vae_scale_factor)

    @property
    def size_multiple(self) -> int:
        """Width and height must be multiples of this: the autoencoder's factor times the transformer's patch."""
        return int(self.pipeline.vae_scale_factor * (getattr(self.pipeline, "patch_size", None) or 2))

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """For each prompt the arguments of the pipeline's call that stand for it."""
        if type(self.pipeline).__name__ != "StableDiffusion3Pipeline":
            return [{"prompt": prompt} for prompt in prompts]  # the pipeline encodes them itself, batch by batch
        encoded = []
        for prompt in prompts:  # one at a time: a padded neighbour must not change an embedding's last bits
            embeds, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
                prompt=prompt,
                prompt_2=None,
                prompt_3=None,
                do_classifier_free_guidance=self.sampling.guidance > 1,
                max_sequence_length=self.sampling.max_sequence_length,
                device=self.device,
            )
            arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
            if negative is not None:
                arguments |= {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled}
            encoded.append(arguments)
        return encoded

    @torch.inference_mode()
    def render(
        self, prompts: Sequence[dict[str, Any]], seeds: Sequence[int], size: tuple[int, int]
    ) -> list[Image.Image]:
        """Images of `size` (width, height), one for each of `encode_prompts`' results, in one batch."""
        arguments: dict[str, Any] = {}
        for key in prompts[0]:
            values = [prompt[key] for prompt in prompts]
            arguments[key] = torch.cat(values) if isinstance(values[0], torch.Tensor) else values
        if "prompt" in arguments and "max_sequence_length" in inspect.signature(self.pipeline.__call__).parameters:
            arguments["max_sequence_length"] = self.sampling.max_sequence_length
        drawn = self.pipeline(
            **arguments,
            width=size[0],
            height=size[1],
            num_inference_steps=self.sampling.steps,
            guidance_scale=self.sampling.guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="pil",
        )
        return [image.convert("RGB") for image in drawn.images]

    @torch.inference_mode()
    def reconstruct(self, photos: Sequence[Image.Image]) -> list[Image.Image]:
        """Photos of one size through the autoencoder and back: the latents' mode, so that no seed is needed."""
        pixels = self.pipeline.image_processor.preprocess(list(photos)).to(self.device, self.pipeline.vae.dtype)
        latents = self.pipeline.vae.encode(pixels).latent_dist.mode()
        decoded = self.pipeline.vae.decode(latents).sample
        return [image.convert("RGB") for image in self.pipeline.image_processor.postprocess(decoded.float())]


def check_pipeline(model: ResolvedModel) -> None:
    """`UserError` where `model` is no pipeline, or one that the Hub does not give; fetches no weights."""
    index = "model_index.json"
    try:
        if model.is_local:
            if not (Path(model.path_or_id) / index).is_file():
                raise OSError(f"no {index} in it, so it is no diffusers pipeline")
        else:
            check_reachable(model, index)
            hf_hub_download(model.path_or_id, index, revision=model.revision)
    except OSError as error:
        raise UserError(explain_load_error(model, error)) from error


def bucket(photo_size: tuple[int, int], side: int, multiple: int, *, square: bool = False) -> tuple[int, int]:
    """(width, height) with about `side`^2 pixels and about the photo's aspect, each a multiple of `multiple`.

    Aspects beyond 2:1 are cut to it; generators have hardly seen any further. A `square` generator has one bucket.
    """
    aspect = 1.0 if square else min(2.0, max(0.5, photo_size[0] / photo_size[1]))
    width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
    return max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple


def _import_diffusers() -> Any:
    """Late, for it takes seconds that a run with nothing left to do should not spend; and quiet.

    Its warnings tell, on every call, of prompts cut at 77 tokens and of image processors that are not used here; its
    bars show the loading of each part.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    for library in (transformers, diffusers):
        library.utils.logging.disable_progress_bar()
    return diffusers


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
