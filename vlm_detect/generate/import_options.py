"""The flags of importing images and pairs, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from vlm_detect.config import check_at_least, check_between
from vlm_detect.data.selection import Selection, check_hold_out
from vlm_detect.data.splits import check_shares
from vlm_detect.errors import UserError
from vlm_detect.generate.choices import Layout
from vlm_detect.records import Label


@dataclass(frozen=True)
class ImportConfig:
    """The images to import."""

    layout: Layout = field(
        metadata={
            "help": "Layout of SRC: cifake, genimage, folders, hub, or the name of a published set; docs/data.md has "
            "them.",
            "aliases": ["--from"],
        },
    )
    limit: int | None = field(
        default=None, metadata={"help": "Import N images, balanced over labels, then over splits and generators."}
    )
    labels: list[str] = field(
        default_factory=list,
        metadata={"help": "Meaning of the set's own label names: NAME=real, NAME=generated, NAME=edited."},
    )
    image_column: str = field(
        default="", metadata={"help": "hub, tables: the column of images or files. Default: detected."}
    )
    label_column: str = field(default="", metadata={"help": "hub, tables: the column of labels. Default: detected."})
    mask_column: str = field(default="", metadata={"help": "hub: the column of edit masks. Default: mask."})
    hold_out: list[str] = field(
        default_factory=list,
        metadata={"help": "generator=NAME or source=GLOB: move those images to the split `unseen`."},
    )
    edited: bool = field(default=False, metadata={"help": "cifake parquet: include the edited images next to it."})
    photos: str = field(
        default="",
        metadata={"help": "Photos for a set without real images: a folder, a glob, a list or a Hub dataset."},
    )
    licence: str | None = field(default=None, metadata={"help": "Licence of the images, if the set states none."})
    min_side: int = field(default=16, metadata={"help": "Reject images with a shorter side than this, in pixels."})
    validation: float = field(default=0.1, metadata={"help": "Fraction of the training images for validation."})
    test: float = field(default=0.2, metadata={"help": "Fraction for testing, if the set has no test images."})
    duplicate_bits: int = field(
        default=3,
        metadata={"help": "Images whose 64-bit perceptual hashes differ in at most this many bits share a split."},
    )
    images_per_file: int = field(default=50_000, metadata={"help": "Images per parquet file."})
    shard_size: int = field(default=1024, metadata={"help": "Images per shard, the unit that a worker saves."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "min_side", "images_per_file", "shard_size")
        check_between(self, 0, 32, "duplicate_bits")
        check_shares(self.validation, self.test)
        check_hold_out(self.hold_out)
        _ = self.selection  # for which labels are checked

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
    """Facts about the pairs, unless a CSV gives them."""

    kind: Literal["caption", "vae"] = field(default="caption", metadata={"help": "Kind of the twins."})
    generator: str = field(default="unknown", metadata={"help": "Generator of the twins."})
    licence: str | None = field(default=None, metadata={"help": "Licence of the photos."})
    allow_small: bool = field(default=False, metadata={"help": "Upscale photos that are smaller than their twins."})
    min_side: int = field(default=16, metadata={"help": "Reject images with a shorter side than this, in pixels."})
    limit: int | None = field(default=None, metadata={"help": "Take only the first N pairs."})
    shard_size: int = field(default=64, metadata={"help": "Pairs per shard, the unit that a worker saves."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit", "min_side", "shard_size")
