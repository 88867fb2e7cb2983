"""The flags of making pairs by step, without the steps' heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vlm_detect.config import check_at_least, check_between, check_url
from vlm_detect.data.selection import check_hold_out
from vlm_detect.data.splits import check_shares
from vlm_detect.errors import UserError
from vlm_detect.extras import require
from vlm_detect.generate.choices import EditOperations, Share, TwinKinds

FROM_COLUMN = "column"


@dataclass(frozen=True)
class SourceConfig:
    """The photos."""

    images: str = field(
        metadata={"help": "SRC: a folder, a glob, a list file, or a dataset as id:config:split:column."}
    )
    limit: int | None = field(default=None, metadata={"help": "Take only the first N photos."})
    caption_column: str = field(
        default="caption", metadata={"help": "Column of the captions, for '--captioner column'."}
    )
    shard_size: int = field(default=64, metadata={"help": "Photos per shard, the unit that a worker saves."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "shard_size")


@dataclass(frozen=True)
class CaptionConfig:
    """The captioner."""

    captioner: str = field(
        default="auto",
        metadata={
            "help": f"A moondream: auto, nano, a folder or a Hub id; '{FROM_COLUMN}' uses the source's captions."
        },
    )
    caption_length: Literal["short", "normal", "long"] = field(default="normal")
    caption_question: str | None = field(
        default=None, metadata={"help": "A question to ask the captioner instead of captioning."}
    )
    prompts: str | None = field(
        default=None,
        metadata={"help": "YAML of prompts to render instead of captions, for an image dataset without pairs."},
    )
    caption_batch: int = field(default=16, metadata={"help": "Photos per captioning batch."})
    min_side: int = field(default=16, metadata={"help": "Reject photos with a shorter side than this, in pixels."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "caption_batch", "min_side")


@dataclass(frozen=True)
class Sampling:
    """The generator's sampling settings. Default: its preset in vlm_detect/configs/generators."""

    steps: int = 28
    guidance: float = 4.5
    max_sequence_length: int = 256  # tokens of the T5 encoder, if there is one
    dtype: str = "auto"  # auto: bfloat16 on an accelerator, float16 on a GPU without it, float32 on a CPU
    quantization: str = "none"  # nf4: the denoiser and T5 in four bits
    offload: str = "none"  # stages: encoders and denoiser take turns on the GPU; group: layers are loaded when needed
    compile: bool = False

    @property
    def variant(self) -> str:
        """The suffix of the generator's name: with other settings it counts as another generator."""
        chosen = [value for value in (self.quantization, self.offload) if value != "none"]
        return "".join(f"+{value}" for value in [*chosen, *(["compile"] if self.compile else [])])


@dataclass(frozen=True)
class RenderConfig:
    """The generator and its settings. Defaults come from its preset in vlm_detect/configs/generators."""

    generator: str = field(
        default="auto",
        metadata={"help": "A text-to-image pipeline: auto, nano, a folder, a Hub id, or a YAML with its settings."},
    )
    generator_endpoint: str | None = field(
        default=None,
        metadata={
            "help": "URL of an OpenAI-compatible endpoint (.../v1) that serves --generator. Texts are sent there, and "
            "photos for instruct twins and inpainting."
        },
    )
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the endpoint's key."}
    )
    twins: TwinKinds = field(
        default=TwinKinds("caption,vae"), metadata={"help": "Kinds of twin: caption, vae, edit, instruct."}
    )
    steps: int | None = field(default=None, metadata={"help": "Denoising steps."})
    guidance: float | None = field(default=None, metadata={"help": "Classifier-free guidance; at most 1 is off."})
    render_size: int | None = field(
        default=None, metadata={"help": "Size of a twin: the side of a square with as many pixels."}
    )
    aspect: Literal["photo", "square"] | None = field(default=None, metadata={"help": "Shape of twins."})
    max_sequence_length: int | None = field(default=None, metadata={"help": "Maximum number of prompt tokens for T5."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Dtype of the weights; auto: bfloat16 on an accelerator, float32 on a CPU."}
    )
    render_batch: int | None = field(default=None, metadata={"help": "Twins per batch."})
    quantization: Literal["none", "nf4"] = field(
        default="none", metadata={"help": "nf4: denoiser and T5 in four bits; it counts as another generator."}
    )
    offload: Literal["none", "stages", "group"] = field(
        default="none",
        metadata={"help": "stages: text encoders and denoiser take turns on the GPU; group: so do its layers."},
    )
    compile: bool = field(default=False, metadata={"help": "Compile the denoiser, and fill up each batch."})
    prompt_suffix: str = field(default="", metadata={"help": "Neutral suffix for every caption."})
    allow_small: bool = field(default=False, metadata={"help": "Upscale photos that are smaller than their twins."})
    edit_operations: EditOperations = field(
        default=EditOperations(),
        metadata={"help": "Edits to sample from, such as blur,splice. Default: all built-in ones (docs/data.md)."},
    )
    edits_on: Literal["photos", "twins", "both"] = field(
        default="both", metadata={"help": "Edit photos, their first caption or VAE twin, or both."}
    )
    instructions: str = field(
        default="",
        metadata={"help": "YAML of instructions for --twins instruct, as for --prompts. Default: general ones."},
    )
    seed: int = field(default=0, metadata={"help": "Base seed; all seeds derive from it and the photo's id."})
    share: Share = field(
        default=Share(),
        metadata={"help": "K/N: render only the Kth of N shares of the photos, for several generators (docs/data.md)."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "steps", "max_sequence_length", "render_batch")
        check_at_least(self, 0, "guidance")
        check_at_least(self, 16, "render_size")
        check_url(self, "generator_endpoint")
        if self.generator_endpoint:
            self._check_endpoint()

    def _check_endpoint(self) -> None:
        if self.generator == "auto":
            raise UserError(f"--generator_endpoint {self.generator_endpoint}: give its model's name with --generator")
        chosen_there = {"quantization": "none", "offload": "none", "compile": False}
        for name, default in (chosen_there | {"dtype": None, "max_sequence_length": None}).items():
            if getattr(self, name) != default:
                raise UserError(f"--{name} {getattr(self, name)}: the server of --generator_endpoint decides; omit it")
        if (self.render_batch or 1) > 1:
            raise UserError(
                f"--render_batch {self.render_batch}: an endpoint renders one image per request; give --workers"
            )

    def check_installed(self) -> None:
        """UserError if a package that renders, or queries an endpoint, is missing."""
        if self.generator_endpoint:
            require("data", "imagehash")
            require("eval", "openai", wanted_by="--generator_endpoint")
        else:
            require("data", "diffusers", "imagehash")

    @property
    def sampling(self) -> Sampling:
        names = ("steps", "guidance", "max_sequence_length", "dtype", "quantization", "offload", "compile")
        given = {name: getattr(self, name) for name in names}
        return Sampling(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class PackConfig:
    """The layout of the dataset."""

    size: int | None = field(
        default=None,
        metadata={"help": "Size of both members: the side of a square with as many pixels. Default: the twin's."},
    )
    validation: float = field(default=0.1, metadata={"help": "Fraction of the photos for validation."})
    test: float = field(default=0.2, metadata={"help": "Fraction of the photos for testing."})
    duplicate_bits: int = field(
        default=3,
        metadata={"help": "Photos whose 64-bit perceptual hashes differ in at most this many bits are duplicates."},
    )
    hold_out: list[str] = field(
        default_factory=list,
        metadata={
            "help": "generator=NAME or source=GLOB: move those photos, with all their twins, to the split `unseen`."
        },
    )
    pairs_per_file: int = field(default=5000, metadata={"help": "Pairs per parquet file."})

    def __post_init__(self) -> None:
        check_at_least(self, 16, "size")
        check_at_least(self, 1, "pairs_per_file")
        check_between(self, 0, 32, "duplicate_bits")
        check_shares(self.validation, self.test)
        check_hold_out(self.hold_out)


@dataclass(frozen=True)
class Upload:
    """Upload of the finished dataset."""

    push_to_hub: str | None = field(
        default=None, metadata={"help": "Upload the dataset as the private Hub dataset OWNER/NAME."}
    )

    def __post_init__(self) -> None:
        if self.push_to_hub is None:
            return
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError

        try:
            huggingface_hub.utils.validate_repo_id(self.push_to_hub)
        except HFValidationError as error:  # checked before the work, not after it
            raise UserError(f"--push_to_hub {self.push_to_hub}: not a Hub name like owner/name") from error
