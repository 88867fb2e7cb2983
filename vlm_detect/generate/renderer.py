"""The generator for diffusers' text-to-image pipelines: captions to twins, and photos through the autoencoder.

Any pipeline that `DiffusionPipeline.from_pretrained` opens works; those of `prompt_encoding.py` encode their prompts
first, so that the text encoders are freed before rendering. Each image has its own random generator and seed: neither
the order of work nor the other images of a batch change a result. The batch size and the index in the batch do, in the
last bits of a matrix product, so receipts record them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.extras import require
from vlm_detect.generate.autoencoders import through_autoencoder
from vlm_detect.generate.compiled import compile_blocks
from vlm_detect.generate.generator import GENERATORS, Generator, Overflow
from vlm_detect.generate.options import Sampling
from vlm_detect.generate.pipeline_files import check_pipeline, load_pipeline, pipeline_class, read_index
from vlm_detect.generate.pipelines import call_of, denoiser_of, inpaint_class, native_side_of, with_parts_of
from vlm_detect.generate.prompt_encoding import encode_ahead, encodes_ahead, joined
from vlm_detect.images.edits import Place
from vlm_detect.machine import DTYPES, best_device, computes_in_bfloat16
from vlm_detect.models.registry import ResolvedModel, resolve_id
from vlm_detect.quiet import quiet
from vlm_detect.records import TwinKind

# They warn on every call about prompts truncated at 77 tokens and about image processors that are not used here, and
# show progress bars of loading.
QUIET = quiet("transformers", "diffusers")
_EDITORS = "black-forest-labs/FLUX.1-Kontext-dev or Qwen/Qwen-Image-Edit"


class Renderer(Generator):
    """A loaded pipeline."""

    can_reconstruct = True
    can_instruct = True  # of classes that take an image: `check_kinds`

    @classmethod
    def resolve(cls, name: str, revision: str | None = None) -> ResolvedModel:
        return resolve_id(name, "renderer", revision)

    @classmethod
    def check(cls, model: ResolvedModel) -> None:
        check_pipeline(model)

    @classmethod
    def check_kinds(cls, model: ResolvedModel, kinds: Sequence[TwinKind]) -> None:
        super().check_kinds(model, kinds)
        pipeline = pipeline_class(model)
        call, name = call_of(pipeline), pipeline.__name__
        if call.needs_image and "caption" in kinds:
            raise UserError(f"--twins caption: {name} edits an image and renders none from a caption; give --twins vae")
        if not call.takes_image and "instruct" in kinds:
            raise UserError(
                f"--twins instruct: {name} takes no image to edit; give an editing model, such as {_EDITORS}"
            )

    @classmethod
    def check_inpainting(cls, model: ResolvedModel) -> None:
        pipeline = pipeline_class(model)
        if inpaint_class(pipeline) is None:
            raise UserError(
                f"--edit_operations inpaint: diffusers has no inpainting pipeline for {pipeline.__name__}; "
                "give other operations"
            )

    @QUIET
    def __init__(self, model: ResolvedModel, sampling: Sampling, device: str | None = None) -> None:
        self.device = torch.device(device or best_device())
        name = sampling.dtype if sampling.dtype != "auto" else default_dtype(self.device.type)
        if sampling.quantization == "nf4" and self.device.type != "cuda":
            raise UserError("--quantization nf4: diffusers quantises only on a CUDA device; omit it here")
        options = {"quantization_config": _nf4(model, DTYPES[name])} if sampling.quantization == "nf4" else {}
        self._take(load_pipeline(model, dtype=DTYPES[name], **options), sampling, name)

    @classmethod
    def from_pipeline(cls, pipeline: Any, sampling: Sampling, device: str | None = None) -> Renderer:
        """A renderer of a loaded pipeline; its dtype is the denoiser's."""
        renderer = cls.__new__(cls)
        renderer.device = torch.device(device or best_device())
        dtype = next(name for name, value in DTYPES.items() if value == denoiser_of(pipeline).dtype)
        renderer._take(pipeline, sampling, dtype)
        return renderer

    def _take(self, pipeline: Any, sampling: Sampling, dtype: str) -> None:
        self._call = call_of(pipeline)
        _prepare(pipeline)
        self.pipeline, self.sampling, self._dtype = pipeline, sampling, dtype
        modules = {key: part for key, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        self._encoders = [part for key, part in modules.items() if key.startswith("text_encoder")]
        self._others = [part for key, part in modules.items() if not key.startswith("text_encoder")]
        if sampling.offload == "group":
            streams = self.device.type == "cuda"  # MPS has none
            pipeline.enable_group_offload(onload_device=self.device, offload_type="leaf_level", use_stream=streams)
        else:
            self._move(self._others, self.device)
            if not encodes_ahead(pipeline):
                self._move(self._encoders, self.device)
        vae: Any = getattr(pipeline, "vae", None)
        if hasattr(vae, "enable_slicing"):
            vae.enable_slicing()  # one image at a time: of eight of 1024 pixels SD 3.5's decoder holds 13 GB at once
        self._shapes: set[Any] = set()
        self._was_finite = False  # an image so far
        if sampling.compile:
            # Prompts that are encoded ahead have one length, so that sizes alone are shapes; others may have any.
            dynamic = False if encodes_ahead(pipeline) else None
            self._shapes = compile_blocks(denoiser_of(pipeline), dynamic=dynamic)

    def _move(self, parts: Sequence[torch.nn.Module], device: torch.device) -> None:
        if self.sampling.offload != "group":
            for part in parts:
                part.to(device)

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def scheduler(self) -> str:
        return type(self.pipeline.scheduler).__name__

    @property
    def compiled_shapes(self) -> int:
        return len(self._shapes)

    @property
    def native_side(self) -> int:
        """Default side of the pipeline's square images, in pixels."""
        return native_side_of(self.pipeline)

    @property
    def size_multiple(self) -> int:
        """Width and height must be multiples of this: the autoencoder's factor times the transformer's patch."""
        return int(self.pipeline.vae_scale_factor * (getattr(self.pipeline, "patch_size", None) or 2))

    @QUIET
    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """The pipeline's arguments for each prompt.

        The text encoders are moved to the device and back: a T5 needs as much memory as the denoiser.
        """
        if not encodes_ahead(self.pipeline):
            return [{"prompt": prompt} for prompt in prompts]  # the pipeline encodes them itself, batch by batch
        if self.sampling.offload == "stages":
            self._move(self._others, torch.device("cpu"))
        self._move(self._encoders, self.device)
        encoded: list[dict[str, Any]] = []
        for prompt in prompts:
            first = encoded[0] if encoded else {}
            encoded.append(encode_ahead(self.pipeline, prompt, first, self.sampling, self.device))
        if self.device.type != "cpu":
            self._move(self._encoders, torch.device("cpu"))
            self._move(self._others, self.device)
            torch.accelerator.empty_cache()
        return encoded

    @QUIET
    @torch.inference_mode()
    def render(
        self, prompts: Sequence[dict[str, Any]], seeds: Sequence[int], size: tuple[int, int]
    ) -> list[Image.Image]:
        """Images of `size` (width, height), one for each of `encode_prompts`' results, in one batch."""
        output = self.pipeline(
            **self._call.arguments(self.sampling, size) | joined(prompts),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="pt",
        )
        return self._checked(output.images, size)

    @QUIET
    @torch.inference_mode()
    def reconstruct(self, photos: Sequence[Image.Image]) -> list[Image.Image]:
        """Reconstruct photos of one size with the autoencoder, from the mode of the latents, so that no seed is
        needed."""
        pixels = self.pipeline.image_processor.preprocess(list(photos)).to(self.device)
        decoded = through_autoencoder(self.pipeline.vae, pixels)
        images = self.pipeline.image_processor.postprocess(decoded.float(), output_type="pt")
        return self._checked(images, photos[0].size)

    @QUIET
    @torch.inference_mode()
    def instruct(self, image: Image.Image, seed: int, arguments: Mapping[str, Any]) -> Image.Image:
        """One image at a time: several are several references for one edit in FLUX.2."""
        output = self.pipeline(
            **self._call.arguments(self.sampling, image.size) | dict(arguments),
            image=image,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pt",
        )
        return self._checked(output.images, image.size)[0]

    @property
    def can_inpaint(self) -> bool:
        return inpaint_class(type(self.pipeline)) is not None

    @QUIET
    @torch.inference_mode()
    def inpaint(self, image: Image.Image, place: Place, seed: int, arguments: Mapping[str, Any]) -> Image.Image:
        """Inpaint `image` under the mask of `place`, with the prompt of `arguments`."""
        output = self._inpainter(
            **call_of(self._inpainter).arguments(self.sampling, image.size) | dict(arguments),
            image=image,
            mask_image=Image.fromarray(place.covered(image.size)),
            strength=1.0,
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pt",
        )
        return self._checked(output.images, image.size)[0]

    @functools.cached_property
    def _inpainter(self) -> Any:
        """The same weights in diffusers' inpainting pipeline."""
        return _prepare(with_parts_of(inpaint_class(type(self.pipeline)), self.pipeline))

    def _checked(self, pixels: torch.Tensor, size: tuple[int, int]) -> list[Image.Image]:
        """(B, 3, H, W) in [0, 1] to images.

        Raises:
            Overflow: if no image is finite, and none was before, as of weights that do not compute in float16.
            UserError: if one is not, or has another size: HiDream, for one, renders a megapixel whatever it is asked
                for.
        """
        height, width = pixels.shape[-2:]
        name = type(self.pipeline).__name__
        finite = pixels.isfinite().flatten(1).all(1).cpu()
        self._was_finite |= bool(finite.any())
        if not finite.all():
            remedy = "give --dtype float32" if self.dtype == "float16" else "its weights may be damaged"
            message = f"{name} renders pixels that are not finite in {self.dtype}: {remedy}"
            raise UserError(message) if self._was_finite else Overflow(message)
        if (width, height) != size:
            raise UserError(
                f"{name} rendered {width}x{height} pixels instead of {size[0]}x{size[1]}; "
                f"give --render_size {self.native_side}"
            )
        return _to_images(pixels)


def _prepare(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "watermark", None) is not None:
        pipeline.watermark = None  # SDXL's invisible watermark would leak the label
    return pipeline


def _to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """(B, 3, H, W) in [0, 1] to images, rounded on the device in the same way as in diffusers."""
    whole = (pixels.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in whole]


def default_dtype(device_type: str) -> str:
    """bfloat16 on an accelerator; float16 on a GPU that only emulates bfloat16."""
    if device_type == "cuda" and not computes_in_bfloat16(device_type):
        return "float16"
    return "float32" if device_type == "cpu" else "bfloat16"


def _nf4(model: ResolvedModel, dtype: torch.dtype) -> Any:
    """Four bits for the denoiser and T5, which are large; the other parts would lose quality."""
    import diffusers

    require("quant", "bitsandbytes")
    index = read_index(model)
    large = [key for key, value in index.items() if key in ("transformer", "unet") or "T5EncoderModel" in str(value)]
    return diffusers.PipelineQuantizationConfig(
        quant_backend="bitsandbytes_4bit",
        quant_kwargs={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype},
        components_to_quantize=large,
    )


# Width by height. Few, so that batches are full and compiled denoisers see few shapes; those of cameras and screens are
# among them, and a photo between two of them loses at most a seventh of a side.
ASPECTS = (9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9)


def find_generator(name: str, revision: str | None = None) -> tuple[type[Generator], ResolvedModel]:
    """The class for `--generator name`, and its source: the diffusers class unless one is registered."""
    if name in GENERATORS and not isinstance(cls := GENERATORS[name], Path):
        return cls, cls.resolve(name, revision)
    return Renderer, Renderer.resolve(name, revision)


def bucket(photo_size: tuple[int, int], side: int, multiple: int, *, square: bool = False) -> tuple[int, int]:
    """(width, height) with about `side`^2 pixels, multiples of `multiple`: of `ASPECTS` the nearest the photo.

    The photo is cropped alike. A `square` generator has one bucket.
    """
    sizes = [
        (_nearest(side * math.sqrt(aspect), multiple), _nearest(side / math.sqrt(aspect), multiple))
        for aspect in ((1.0,) if square else ASPECTS)
    ]
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - math.log(photo_size[0] / photo_size[1])))


def _nearest(length: float, multiple: int) -> int:
    return max(1, round(length / multiple)) * multiple
