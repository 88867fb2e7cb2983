"""The flags of data generation, step by step; without the imports that the steps take."""

from __future__ import annotations

from argparse import ArgumentTypeError  # the one exception whose message argparse shows
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from vlm_detect.config import check_at_least, check_between, check_url
from vlm_detect.data.selection import Selection, check_hold_out
from vlm_detect.data.splits import check_shares
from vlm_detect.errors import UserError
from vlm_detect.records import Label, ReasonSource, TextsLayout, TwinKind

FROM_COLUMN = "column"


@dataclass(frozen=True)
class SourceConfig:
    """Which photos."""

    images: str = field(
        metadata={"help": "SRC: a folder, a glob, a list file, or a dataset as id:config:split:column."}
    )
    limit: int | None = field(default=None, metadata={"help": "Take only the first N photos."})
    caption_column: str = field(
        default="caption", metadata={"help": "Column of the captions, for '--captioner column'."}
    )
    shard_size: int = field(default=64, metadata={"help": "Photos in a shard: what a worker does before it saves."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "shard_size")


@dataclass(frozen=True)
class CaptionConfig:
    """Who describes them, and how."""

    captioner: str = field(
        default="auto",
        metadata={
            "help": f"A moondream: auto, nano, a folder or a Hub id; '{FROM_COLUMN}' takes the source's captions."
        },
    )
    caption_length: Literal["short", "normal", "long"] = field(default="normal")
    caption_question: str | None = field(
        default=None, metadata={"help": "What the captioner is asked instead of for a caption."}
    )
    prompts: str | None = field(
        default=None,
        metadata={"help": "YAML of prompts to draw instead of captions: an image dataset without pairs comes out."},
    )
    caption_batch: int = field(default=16, metadata={"help": "Photos that the captioner sees at a time."})
    min_side: int = field(default=16, metadata={"help": "Photos with a shorter side, in pixels, are rejected."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "caption_batch", "min_side")


@dataclass(frozen=True)
class Sampling:
    """How a generator draws: its own best settings, from vlm_detect/configs/generators."""

    steps: int = 28
    guidance: float = 4.5
    max_sequence_length: int = 256  # tokens of the T5 encoder, where there is one
    dtype: str = "auto"  # auto: bfloat16 on an accelerator, float32 on a CPU
    quantization: str = "none"  # nf4: the denoiser and T5 in four bits
    offload: str = "none"  # stages: encoders and denoiser take turns; group: layers come when they are needed
    compile: bool = False

    @property
    def variant(self) -> str:
        """What the generator's name gets behind it: drawn in another way, it is another generator."""
        chosen = [value for value in (self.quantization, self.offload) if value != "none"]
        return "".join(f"+{value}" for value in [*chosen, *(["compile"] if self.compile else [])])


class TwinKinds(str):
    """Kinds of twin with commas between, checked where the command line is parsed."""

    def __new__(cls, text: str) -> TwinKinds:
        known = get_args(TwinKind)
        if unknown := [kind for kind in text.split(",") if kind not in known]:
            raise ArgumentTypeError(f"known kinds are {', '.join(known)}, not {', '.join(unknown)}")
        return super().__new__(cls, ",".join(kind for kind in known if kind in text.split(",")))

    @property
    def kinds(self) -> list[TwinKind]:
        return [cast(TwinKind, kind) for kind in self.split(",")]


class EditOperations(str):
    """Operations with commas between, checked where the command line is parsed."""

    def __new__(cls, text: str = "") -> EditOperations:
        if not text:  # asks for no import
            return super().__new__(cls)
        from vlm_detect.images.edits import EDITS  # late: with NumPy and SciPy, which --help does without

        if unknown := [name for name in text.split(",") if name not in EDITS]:
            raise ArgumentTypeError(f"known edits are {', '.join(EDITS)}, not {', '.join(unknown)}")
        return super().__new__(cls, ",".join(name for name in EDITS if name in text.split(",")))

    @classmethod
    def all_own(cls) -> EditOperations:
        """Every one of this package."""
        from vlm_detect.images.edits import EDITS

        return cls(",".join(EDITS.own))

    @property
    def operations(self) -> list[str]:
        return (self or self.all_own()).split(",")


@dataclass(frozen=True)
class RenderConfig:
    """Who draws the twins, and how. What is not given is the generator's own, from vlm_detect/configs/generators."""

    generator: str = field(
        default="auto",
        metadata={"help": "A text-to-image pipeline: auto, nano, a folder, a Hub id, or a YAML with its settings."},
    )
    twins: TwinKinds = field(default=TwinKinds("caption,vae"), metadata={"help": "Kinds of twin: caption, vae, edit."})
    steps: int | None = field(default=None, metadata={"help": "Denoising steps."})
    guidance: float | None = field(default=None, metadata={"help": "Classifier-free guidance; at most 1 is off."})
    render_size: int | None = field(default=None, metadata={"help": "Side of the square of as many pixels as a twin."})
    aspect: Literal["photo", "square"] | None = field(default=None, metadata={"help": "Shape of twins."})
    max_sequence_length: int | None = field(default=None, metadata={"help": "Tokens that T5 reads of a prompt."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Of the weights; auto: bfloat16 on an accelerator, float32 on a CPU."}
    )
    render_batch: int | None = field(default=None, metadata={"help": "Twins drawn at a time."})
    quantization: Literal["none", "nf4"] = field(
        default="none", metadata={"help": "nf4: denoiser and T5 in four bits; another generator by its name."}
    )
    offload: Literal["none", "stages", "group"] = field(
        default="none",
        metadata={"help": "stages: text encoders and denoiser take turns on the GPU; group: its layers do as well."},
    )
    compile: bool = field(default=False, metadata={"help": "torch.compile the denoiser."})
    prompt_suffix: str = field(default="", metadata={"help": "Neutral words after every caption."})
    allow_small: bool = field(default=False, metadata={"help": "Enlarge photos that are smaller than their twins."})
    edit_operations: EditOperations = field(
        default=EditOperations(),
        metadata={"help": "Edits to draw from, as in blur,splice; default all of this package (docs/data.md)."},
    )
    edits_on: Literal["photos", "twins", "both"] = field(
        default="both", metadata={"help": "Edits go into photos, into their first caption or VAE twin, or both."}
    )
    seed: int = field(default=0, metadata={"help": "All seeds derive from this one and the photo's id."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "steps", "max_sequence_length", "render_batch")
        check_at_least(self, 0, "guidance")
        check_at_least(self, 16, "render_size")

    @property
    def sampling(self) -> Sampling:
        names = ("steps", "guidance", "max_sequence_length", "dtype", "quantization", "offload", "compile")
        given = {name: getattr(self, name) for name in names}
        return Sampling(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class PackConfig:
    """What the dataset looks like."""

    size: int | None = field(
        default=None, metadata={"help": "Side of the square of as many pixels as both members; by default the twin's."}
    )
    validation: float = field(default=0.1, metadata={"help": "Part of the photos for validation."})
    test: float = field(default=0.2, metadata={"help": "Part of the photos for the test."})
    duplicate_bits: int = field(default=3, metadata={"help": "Photos whose 64-bit hashes differ by no more are one."})
    hold_out: list[str] = field(
        default_factory=list,
        metadata={"help": "generator=NAME or source=GLOB: those photos, with all their twins, go to a split unseen."},
    )
    pairs_per_file: int = field(default=5000, metadata={"help": "Pairs in one parquet file."})

    def __post_init__(self) -> None:
        check_at_least(self, 16, "size")
        check_at_least(self, 1, "pairs_per_file")
        check_between(self, 0, 32, "duplicate_bits")
        check_shares(self.validation, self.test)
        check_hold_out(self.hold_out)


class Layout(str):
    """The name of an importer, checked where the command line is parsed."""

    def __new__(cls, text: str) -> Layout:
        from vlm_detect.data.image_sets import IMPORTERS  # late: with `datasets`, which --help does without

        if text not in IMPORTERS:
            raise ArgumentTypeError(f"known layouts are {', '.join(IMPORTERS)}, not {text}")
        return super().__new__(cls, text)


@dataclass(frozen=True)
class ImportConfig:
    """What is read, and what of it."""

    layout: Layout = field(
        metadata={
            "help": "Layout of SRC: cifake, genimage, folders, hub, or one of an installed package.",
            "aliases": ["--from"],
        },
    )
    limit: int | None = field(
        default=None, metadata={"help": "Take N images: labels alike as far as they go, then splits and generators."}
    )
    labels: list[str] = field(
        default_factory=list,
        metadata={"help": "What the set's own names mean: NAME=real, NAME=generated, NAME=edited."},
    )
    image_column: str = field(
        default="", metadata={"help": "hub, tables: the column of images or files. Default: found."}
    )
    label_column: str = field(default="", metadata={"help": "hub, tables: the column of labels. Default: found."})
    mask_column: str = field(default="", metadata={"help": "hub: the column of masks of edits. Default: mask."})
    hold_out: list[str] = field(
        default_factory=list,
        metadata={"help": "generator=NAME or source=GLOB, which go to a split of their own, unseen."},
    )
    edited: bool = field(default=False, metadata={"help": "cifake parquet: with the edited images beside it."})
    licence: str | None = field(default=None, metadata={"help": "Licence of the images, where the set states none."})
    min_side: int = field(default=16, metadata={"help": "Images with a shorter side, in pixels, are rejected."})
    validation: float = field(default=0.1, metadata={"help": "Part of the training images for validation."})
    test: float = field(default=0.2, metadata={"help": "Part for the test, where the set publishes no test images."})
    duplicate_bits: int = field(
        default=3, metadata={"help": "Images whose 64-bit hashes differ by no more share a split."}
    )
    images_per_file: int = field(default=50_000, metadata={"help": "Images in one parquet file."})
    shard_size: int = field(default=1024, metadata={"help": "Images in a shard: what a worker does before it saves."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "min_side", "images_per_file", "shard_size")
        check_between(self, 0, 32, "duplicate_bits")
        check_shares(self.validation, self.test)
        check_hold_out(self.hold_out)
        _ = self.selection  # whose labels are checked

    @property
    def selection(self) -> Selection:
        labels: list[tuple[str, Label]] = []
        for pair in self.labels:
            name, _, label = pair.rpartition("=")
            if not name or label not in get_args(Label):
                raise UserError(f"--labels {pair}: give NAME={', NAME='.join(get_args(Label))}")
            labels.append((name, cast(Label, label)))
        columns = {name: getattr(self, name) for name in ("image_column", "label_column", "mask_column")}
        return Selection(self.limit, tuple(self.hold_out), tuple(labels), self.edited, **columns)


@dataclass(frozen=True)
class PairSetConfig:
    """What is known of the pairs where a CSV does not say otherwise."""

    kind: Literal["caption", "vae"] = field(default="caption", metadata={"help": "What the twins are."})
    generator: str = field(default="unknown", metadata={"help": "What drew them."})
    licence: str | None = field(default=None, metadata={"help": "Licence of the photos."})
    allow_small: bool = field(default=False, metadata={"help": "Enlarge photos that are smaller than their twins."})
    min_side: int = field(default=16, metadata={"help": "Images with a shorter side, in pixels, are rejected."})
    limit: int | None = field(default=None, metadata={"help": "Take only the first N pairs."})
    shard_size: int = field(default=64, metadata={"help": "Pairs in a shard: what a worker does before it saves."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "min_side", "shard_size")


@dataclass(frozen=True)
class Upload:
    """Where the finished dataset goes besides."""

    push_to_hub: str | None = field(default=None, metadata={"help": "Upload the dataset as OWNER/NAME, private."})

    def __post_init__(self) -> None:
        if self.push_to_hub is None:
            return
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError

        try:
            huggingface_hub.utils.validate_repo_id(self.push_to_hub)
        except HFValidationError as error:  # found out before the work, not behind it
            raise UserError(f"--push_to_hub {self.push_to_hub}: no Hub name like owner/name") from error


ADDABLE_SOURCES: tuple[ReasonSource, ...] = ("measured", "edit", "teacher", "imported")  # that add-reasons can find


class ReasonSources(str):
    """Sources with commas between, checked where the command line is parsed."""

    def __new__(cls, text: str) -> ReasonSources:
        if unknown := [name for name in text.split(",") if name not in ADDABLE_SOURCES]:
            raise ArgumentTypeError(
                f"known sources of reasons are {', '.join(ADDABLE_SOURCES)}, not {', '.join(unknown)}"
            )
        return super().__new__(cls, ",".join(name for name in ADDABLE_SOURCES if name in text.split(",")))

    @property
    def sources(self) -> list[ReasonSource]:
        return [cast(ReasonSource, name) for name in self.split(",")]


@dataclass(frozen=True)
class ReasonsConfig:
    """Which reasons are added."""

    reasons: ReasonSources | None = field(
        default=None,
        metadata={"help": f"Sources, of {','.join(ADDABLE_SOURCES)}; measured, and edit where the dataset has edits."},
    )
    measured_reasons: int = field(default=4, metadata={"help": "Measured reasons of an image, at most."})
    seed: int = field(default=0, metadata={"help": "Of the wordings."})
    rows_per_file: int = field(default=50_000, metadata={"help": "Rows in one parquet file."})
    shard_size: int = field(default=1024, metadata={"help": "Rows in a shard: what a worker does before it saves."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "measured_reasons", "rows_per_file", "shard_size")


@dataclass(frozen=True)
class TeacherConfig:
    """Who says what it sees, and who judges that (for --reasons teacher)."""

    teacher: str | None = field(
        default=None, metadata={"help": "A vision-language model: its name at --teacher_endpoint, else an ID to load."}
    )
    teacher_endpoint: str | None = field(
        default=None, metadata={"help": "URL of an OpenAI-compatible endpoint (.../v1): images are sent there."}
    )
    judge: str | None = field(
        default=None, metadata={"help": "Who is asked whether a sentence is true, without the label; the teacher."}
    )
    judge_endpoint: str | None = field(default=None, metadata={"help": "URL of the judge's endpoint."})
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the endpoints' key."}
    )
    min_margin: float = field(
        default=1.0, metadata={"help": "Nats by which a sentence has to be likelier of its image than of the other."}
    )
    teacher_limit: int | None = field(default=None, metadata={"help": "Show the teacher the first N rows only."})
    teacher_shard_size: int = field(default=16, metadata={"help": "Rows in a shard of the teacher."})
    parallel: int = field(default=8, metadata={"help": "Requests to an endpoint at a time."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "teacher_limit", "teacher_shard_size", "parallel")
        check_at_least(self, 0, "min_margin")
        check_url(self, "teacher_endpoint", "judge_endpoint")
        for endpoint, model in (("teacher_endpoint", "teacher"), ("judge_endpoint", "judge")):
            if getattr(self, endpoint) and not getattr(self, model):
                raise UserError(f"--{endpoint} {getattr(self, endpoint)}: name the --{model} that it has")


@dataclass(frozen=True)
class TextsConfig:
    """What others wrote about the images (for --reasons imported)."""

    texts: str | None = field(
        default=None, metadata={"help": "A file of texts about the dataset's images; for x_aigd a folder of parquet."}
    )
    texts_layout: TextsLayout = field(
        default="plain",
        metadata={
            "help": "conversations (LLaVA's form: FakeVLM's FakeClue, TeoScardov), loki, synthscars, x_aigd, "
            "or plain: {image or id, text, kind?, box?, about?}."
        },
    )
