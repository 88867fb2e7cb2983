"""Generators render twins: a class that turns prompts into images, and optionally photos into reconstructions.

    @generator("my_gan")
    class MyGan(Generator):
        native_side = 256
        def render(self, prompts, seeds, size): ...

    make_pairs --generator my_gan

A diffusers pipeline needs no class (`renderer.Renderer` handles them), at most a YAML with its settings (`presets.py`);
`generator_yaml` registers such a file under a name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from PIL import Image

from vlm_detect.errors import UserError
from vlm_detect.generate.options import Sampling
from vlm_detect.images.edits import Place
from vlm_detect.models.registry import ResolvedModel
from vlm_detect.plugins import Registry
from vlm_detect.records import TwinKind


class Overflow(UserError):
    """No image is finite: all others of the run would be the same."""


class Generator(ABC):
    """A loaded generator. Equal prompts, seeds and sizes must give equal images.

    Args:
        model: its name, source and revision, which receipts record.
        sampling: the settings of the run; inapplicable ones are ignored.
        device: default: the best available one.
    """

    revision: ClassVar[str | None] = None  # its version, for the receipts
    can_reconstruct: ClassVar[bool] = False  # VAE twins
    can_instruct: ClassVar[bool] = False  # edits by instruction

    def __init__(self, model: ResolvedModel, sampling: Sampling, device: str | None = None) -> None:
        self.model, self.sampling = model, sampling

    @classmethod
    def resolve(cls, name: str, revision: str | None = None) -> ResolvedModel:
        """The model of `--generator name`."""
        return ResolvedModel(name, name, cls.revision)

    @classmethod
    def check(cls, model: ResolvedModel) -> None:
        """Raise UserError if it is unavailable; called before captioning, so it loads nothing."""
        return None

    @classmethod
    def check_kinds(cls, model: ResolvedModel, kinds: Sequence[TwinKind]) -> None:
        """Raise UserError for kinds of twin that it cannot make; called before captioning too."""
        if "vae" in kinds and not cls.can_reconstruct:
            raise UserError(f"--twins vae: {model.name} has no autoencoder to encode photos with; give --twins caption")
        if "instruct" in kinds and not cls.can_instruct:
            raise UserError(f"--twins instruct: {model.name} takes no image to edit; give --twins caption")

    @classmethod
    def check_inpainting(cls, model: ResolvedModel) -> None:
        """Raise UserError if it cannot inpaint and no other edit is asked for; called before captioning too."""
        return None

    @property
    @abstractmethod
    def native_side(self) -> int:
        """Default side of its square images, in pixels."""

    @property
    def size_multiple(self) -> int:
        """Width and height must be multiples of this."""
        return 1

    @property
    def steps(self) -> int | None:
        """Denoising steps, for the receipts; None if unknown."""
        return self.sampling.steps

    @property
    def guidance(self) -> float | None:
        """Strength of guidance, for the receipts; None if unknown."""
        return self.sampling.guidance

    @property
    def scheduler(self) -> str:
        """The sampler's name, for the receipts."""
        return ""

    @property
    def dtype(self) -> str:
        """The dtype of its weights, for the receipts."""
        return "float32"

    @property
    def compiled_shapes(self) -> int:
        """How many shapes of input its compiled part has met; 0 if nothing is compiled."""
        return 0

    @property
    def can_inpaint(self) -> bool:
        return False

    def encode_prompts(self, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """The input of `render` for each prompt; a pipeline may encode texts here, once for all images."""
        return [{"prompt": prompt} for prompt in prompts]

    @abstractmethod
    def render(
        self, prompts: Sequence[dict[str, Any]], seeds: Sequence[int], size: tuple[int, int]
    ) -> list[Image.Image]:
        """RGB images of `size` (width, height), one for each of `encode_prompts`' results, in one batch."""

    def reconstruct(self, photos: Sequence[Image.Image]) -> list[Image.Image]:
        """Reconstruct photos of one size with its autoencoder."""
        raise NotImplementedError

    def instruct(self, image: Image.Image, seed: int, arguments: Mapping[str, Any]) -> Image.Image:
        """Edit `image` by the instruction whose `encode_prompts` result is `arguments`; the size stays."""
        raise NotImplementedError

    def inpaint(self, image: Image.Image, place: Place, seed: int, arguments: Mapping[str, Any]) -> Image.Image:
        """Inpaint `image` under the mask of `place`; `arguments` are a result of `encode_prompts`."""
        raise NotImplementedError


# Classes, and YAML files that name their generator.
GENERATORS: Registry[type[Generator] | Path] = Registry("generator", [])
Class = TypeVar("Class", bound=type[Generator])


def generator(name: str) -> Callable[[Class], Class]:
    """Register a class as `--generator name`."""

    def register(cls: Class) -> Class:
        GENERATORS.add(name, cls)
        return cls

    return register


def generator_yaml(name: str, path: Path) -> None:
    """Register the YAML of a generator (`presets.read_preset`) as `--generator name`."""
    if not path.is_file():
        raise UserError(f"generator {name!r}: there is no file {path}")
    GENERATORS.add(name, path)
