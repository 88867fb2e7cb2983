"""A generator behind an OpenAI-compatible endpoint: `/v1/images/generations`, and `/v1/images/edits` for photos.

    make_pairs --generator_endpoint http://localhost:8000/v1 --generator Qwen/Qwen-Image --twins caption

OpenAI, vLLM-Omni and SGLang serve it. Texts are sent there, and photos for instruct twins and inpainting
(`disclosure`). Fields beyond the prompt and the size (a seed, steps, guidance) that the server calls unknown are
omitted from then on, and the receipts have only those that were sent. A seed that is accepted may still be ignored: the
images cannot be reproduced from their receipts.

An answer has to contain the image in base64. A URL in its place is never fetched, because a server must not choose what
this machine requests. Each request is one image, so that a failure loses no other; several in a row end the run.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.generate.generator import Generator
from vlm_detect.generate.options import RenderConfig
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.images.edits import EDITS, Place
from vlm_detect.infer.endpoint import data_url
from vlm_detect.infer.endpoint_client import EndpointClient, Failed, OutOfBounds, Refused, Unavailable, is_this_machine
from vlm_detect.models.registry import ResolvedModel

SIDE = 1024  # default side in pixels: the one square that all hosted models render
_TIMEOUT_S = 300.0
_IN_A_ROW = 3  # failed or unusable answers; then the run ends, because each may have to be paid


class Unusable(UserError):
    """An answer without an image, or with an image that cannot be used."""


class EndpointGenerator(Generator):
    """A model that an endpoint serves. Raises `Unavailable` for failures of every request, UserError for one image."""

    can_instruct = True

    def __init__(self, model: ResolvedModel, config: RenderConfig) -> None:
        super().__init__(model, config.sampling)
        self._client = EndpointClient(
            model.path_or_id,
            model.name,
            api_key=os.environ.get(config.api_key_env),
            flag="--generator_endpoint",
            timeout_s=_TIMEOUT_S,
        )
        # What not every server knows. PNG: SGLang answers in JPEG otherwise.
        self._options: dict[str, Any] = {"response_format": "b64_json", "output_format": "png", "seed": 0}
        if config.steps is not None:
            self._options["num_inference_steps"] = config.steps
        if config.guidance is not None:
            self._options["guidance_scale"] = config.guidance
        self._masks = ["mask_image"]  # vLLM-Omni's name, in addition to `mask`
        self._failures = 0  # in a row
        self._printed: set[str] = set()

    @property
    def native_side(self) -> int:
        return SIDE

    @property
    def size_multiple(self) -> int:
        return 16

    @property
    def can_inpaint(self) -> bool:
        return True

    @property
    def steps(self) -> int | None:
        return self._options.get("num_inference_steps")

    @property
    def guidance(self) -> float | None:
        return self._options.get("guidance_scale")

    @property
    def scheduler(self) -> str:
        return f"chosen by {self._client.url}; not reproducible by seed"

    @property
    def dtype(self) -> str:
        return ""  # the server's

    def render(
        self, prompts: Sequence[dict[str, Any]], seeds: Sequence[int], size: tuple[int, int]
    ) -> list[Image.Image]:
        return [self._image(one["prompt"], seed, size) for one, seed in zip(prompts, seeds, strict=True)]

    def instruct(self, image: Image.Image, seed: int, arguments: Mapping[str, Any]) -> Image.Image:
        return self._image(arguments["prompt"], seed, image.size, image)

    def inpaint(self, image: Image.Image, place: Place, seed: int, arguments: Mapping[str, Any]) -> Image.Image:
        """The server's edit of the complete image; a server that ignores the mask changes more than the place."""
        return self._image(arguments["prompt"], seed, image.size, image, mask_of(image.size, place))

    def _image(
        self,
        prompt: str,
        seed: int,
        size: tuple[int, int],
        photo: Image.Image | None = None,
        mask: Image.Image | None = None,
    ) -> Image.Image:
        try:
            image = self._usable(self._answer(prompt, seed, size, photo, mask), size)
        except (Failed, OutOfBounds, Unusable) as error:
            self._failures += 1
            if self._failures >= _IN_A_ROW:
                raise Unavailable(f"{error} ({self._failures} images in a row)") from error
            raise
        self._failures = 0
        return image

    def _answer(
        self, prompt: str, seed: int, size: tuple[int, int], photo: Image.Image | None, mask: Image.Image | None
    ) -> bytes:
        """The body of the answer; fields that the server calls unknown are omitted."""
        images = self._client.openai.images.with_raw_response
        while True:
            extra = dict(self._options)
            if "seed" in extra:
                extra["seed"] = seed % 2**31  # servers read 32 bits
            given: dict[str, Any] = {"model": self.model.name, "prompt": prompt, "n": 1, "size": f"{size[0]}x{size[1]}"}
            if photo is not None:
                given["image"] = ("photo.png", _png(photo), "image/png")  # decoding has dropped the metadata
            if mask is not None:
                given["mask"] = ("mask.png", _png(mask), "image/png")
                extra |= {name: data_url(mask) for name in self._masks}
            try:
                with self._client.explained():
                    answer = (images.generate if photo is None else images.edit)(**given, extra_body=extra)
            except OutOfBounds:
                raise
            except Refused as refused:
                name = refused.unknown_field([*self._options, *self._masks], sent=prompt)
                if name is None:
                    raise Refused(f"refused: {refused}") from refused
                self._omit(name)
            else:
                return answer.content

    def _omit(self, name: str) -> None:
        if name in self._masks:
            self._masks.remove(name)
        else:
            del self._options[name]
        self._print_once(f"{self._client.url}: the field {name} is unknown there and is omitted from now on")

    def _usable(self, answer: bytes, size: tuple[int, int]) -> Image.Image:
        try:
            entry = json.loads(answer)["data"][0]
            encoded = entry.get("b64_json")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
            begins = self._client.shown(answer[:2000].decode("utf-8", "replace"))
            raise Unusable(f"no images in the answer, which begins {begins[:60]!r}") from error
        if not isinstance(encoded, str):
            if entry.get("url"):
                raise Unusable(
                    "the answer is a URL, which is never fetched; set the server to answer in base64 "
                    "(response_format b64_json), or use one that does"
                )
            raise Unusable("the answer has no image in base64 (b64_json)")
        try:
            decoded = decode_image(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Unusable(f"b64_json is not base64 ({error})") from error
        except ImageRejected as rejected:
            raise Unusable(str(rejected)) from rejected
        if decoded.format != "PNG":
            self._print_once(
                f"{self._client.url}: answers in {decoded.format} although PNG was requested; traces of a lossy "
                "compression distinguish its images from photos"
            )
        if decoded.image.size != size:
            raise Unusable(
                f"the answer has {decoded.width}x{decoded.height} pixels instead of {size[0]}x{size[1]}; "
                "give --render_size N --aspect square for the square that the model renders"
            )
        return decoded.image

    def _print_once(self, text: str) -> None:
        if text not in self._printed:
            self._printed.add(text)
            print(text, file=sys.stderr, flush=True)


def mask_of(size: tuple[int, int], place: Place) -> Image.Image:
    """RGBA of an image of `size`: transparent white where it is repainted, opaque black elsewhere.

    OpenAI repaints what is transparent; pipelines of diffusers, which read no transparency, what is white.
    """
    covered = place.covered(size)
    return Image.fromarray(np.dstack([covered, covered, covered, 255 - covered]))


def inpaints(config: RenderConfig) -> bool:
    """Whether some of the edits are made by the generator."""
    return "edit" in config.twins.kinds and any(EDITS[name].needs_paint for name in config.edit_operations.operations)


def disclosure(config: RenderConfig) -> str:
    """What is sent to whom, in one sentence."""
    url, kinds = str(config.generator_endpoint), config.twins.kinds
    sent = ["captions"] if "caption" in kinds or inpaints(config) else []
    sent += ["instructions"] if "instruct" in kinds else []
    sent += ["photos"] if "instruct" in kinds or (inpaints(config) and config.edits_on != "twins") else []
    if not sent:
        return f"nothing is sent to {url}"
    listed = " and ".join([", ".join(sent[:-1]), sent[-1]] if len(sent) > 1 else sent)
    here = "on this machine" if is_this_machine(url) else "and leave this machine"
    plain = ", unencrypted" if url.startswith("http://") and not is_this_machine(url) else ""
    return f"{listed} are sent to {url} {here}{plain}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
