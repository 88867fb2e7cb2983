"""The flags of the verbs that use a model or read files, without heavy imports."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from vlm_detect.apps.settings import ServerSettings, check_settings
from vlm_detect.config import check_at_least
from vlm_detect.errors import UserError


def check_max_fpr(max_fpr: float | None) -> None:
    """`UserError` for a rate that no number of photos can guarantee."""
    if max_fpr is not None and not 0 < max_fpr < 1:
        raise UserError(f"--max_fpr {max_fpr}: give a part of photos above 0 and below 1, for example 0.01")


@dataclass(frozen=True)
class Judge:
    """The model."""

    model: str = field(default="auto", metadata={"help": "Run directory, model folder, Hub id, nano or auto."})
    adapter: str | None = field(default=None, metadata={"metavar": "RUN", "help": "A LoRA to put on --model."})
    expert: str | None = field(
        default=None,
        metadata={"metavar": "RUN", "help": "The run of a CNN, in place of the one that the model's fusion names."},
    )


@dataclass(frozen=True)
class ChatOptions:
    image: str = field(metadata={"positional": True, "help": "An image file."})
    question: str | None = field(
        default=None, metadata={"positional": True, "help": "Ask this once and exit; without it, a conversation."}
    )
    only_confirmed: bool = field(
        default=False,
        metadata={"help": "Of the verdict's explanation, only the sentences that a measurement confirms."},
    )

    def __post_init__(self) -> None:
        if self.only_confirmed and self.question is not None:
            raise UserError("--only_confirmed is about the explanation in a conversation: leave the question out")


@dataclass(frozen=True)
class ServeOptions:
    compare: list[str] = field(
        default_factory=list,
        metadata={"metavar": "RUN_OR_ID", "action": "extend", "help": "Serve these models too."},
    )
    cnn: str | None = field(
        default=None,
        metadata={
            "metavar": "RUN",
            "help": "Run of `vlm-detect train cnn`: show its Grad-CAM with the evidence maps.",
        },
    )
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; by default only this machine can connect."}
    )
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0 picks a free one."})
    api_key: str | None = field(
        default_factory=lambda: os.environ.get("VLM_DETECT_API_KEY"),
        metadata={
            "help": "Require this key of every request. Default: the environment variable VLM_DETECT_API_KEY, "
            "which other users of the machine cannot read."
        },
    )
    api_keys: str | None = field(
        default=None,
        metadata={
            "metavar": "FILE",
            "help": "Require one of the keys of this TOML file, each with a name and a rate limit (docs/server.md).",
        },
    )
    without_key: bool = field(
        default=False,
        metadata={"help": "Listen beyond this machine without a key: anyone who can connect can use the server."},
    )
    max_body_mb: float = field(default=32, metadata={"metavar": "MB", "help": "Maximum size of a request."})
    max_megapixels: float = field(default=50, metadata={"metavar": "MP", "help": "Maximum size of an image."})
    max_images: int = field(default=32, metadata={"help": "Maximum number of images per request."})
    max_new_tokens: int = field(default=512, metadata={"help": "Maximum number of tokens per answer."})
    only_confirmed: bool = field(
        default=False, metadata={"help": "Explanations hold only the sentences that a measurement confirms."}
    )
    queue: int = field(default=64, metadata={"help": "Maximum number of images queued or running."})
    max_batch: int = field(default=16, metadata={"help": "Images per batch."})
    deadline_s: float = field(default=120, metadata={"metavar": "S", "help": "Time limit of a request."})
    drain_s: float = field(
        default=30, metadata={"metavar": "S", "help": "Time to finish running requests after SIGTERM."}
    )
    replicas: int | None = field(
        default=None,
        metadata={
            "metavar": "N",
            "help": "Serve by N processes behind one port, each with its own copy of the models: restarted when they "
            "die, replaced one by one on SIGHUP. Default: this process alone.",
        },
    )
    log_json: bool = field(
        default=False,
        metadata={"help": "Write the log to stderr as JSON lines, with a line for each request; else only errors."},
    )

    def __post_init__(self) -> None:
        limits = "max_body_mb max_megapixels max_images max_new_tokens queue max_batch deadline_s drain_s"
        for name in limits.split():
            if not 0 < (limit := getattr(self, name)) < inf:
                raise UserError(f"--{name} {limit}: give a number above 0")
        check_settings(self.settings)

    @property
    def settings(self) -> ServerSettings:
        return ServerSettings(
            host=self.host,
            port=self.port,
            api_key=self.api_key,
            api_keys=self.api_keys,
            without_key=self.without_key,
            max_body_bytes=int(self.max_body_mb * 2**20),
            max_pixels=int(self.max_megapixels * 1e6),
            max_images=self.max_images,
            max_new_tokens=self.max_new_tokens,
            only_confirmed=self.only_confirmed,
            max_jobs=self.queue,
            max_batch=self.max_batch,
            deadline_s=self.deadline_s,
            drain_s=self.drain_s,
            log_json=self.log_json,
            replicas=self.replicas,
        )


@dataclass(frozen=True)
class DoctorOptions:
    model: str | None = field(
        default=None, metadata={"metavar": "ID", "help": "Estimate for this model. Default: the config's model."}
    )
    config: list[str] = field(
        default_factory=list,
        metadata={"metavar": "YAML", "help": "Recipe configs to estimate: files, or names of the package's configs."},
    )


@dataclass(frozen=True)
class ExportOptions:
    run: str = field(metadata={"positional": True, "help": "Run directory of a recipe."})
    out: str = field(metadata={"positional": True, "help": "A new folder."})
    to: Literal["adapter", "merged", "official", "variant", "mlx", "onnx"] = field(metadata={"help": "Export format."})


@dataclass(frozen=True)
class AuditOptions:
    dataset: str = field(
        metadata={
            "positional": True,
            "help": "Pair or image dataset, folder with real/ and fake/ subfolders, or Hub dataset id.",
        }
    )
    json: bool = field(default=False, metadata={"help": "The audit as JSON on stdout."})
    max_images: int = field(default=2000, metadata={"help": "Maximum number of images to read."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "max_images")


@dataclass(frozen=True)
class ExplainOptions:
    images: list[str] = field(metadata={"positional": True, "help": "Image files and folders."})
    model: str = field(metadata={"metavar": "RUN", "help": "Run directory of a CNN (`vlm-detect train cnn`)."})
    out: str = field(metadata={"metavar": "PAGE", "help": "The HTML page to write."})


@dataclass(frozen=True)
class ReportOptions:
    dataset: str = field(metadata={"positional": True, "help": "A pair or image dataset folder."})
    out: str | None = field(
        default=None, metadata={"metavar": "PAGE", "help": "The HTML page to write. Default: DATASET/report.html."}
    )
    n: int = field(default=24, metadata={"help": "Number of rows to show."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n")


@dataclass(frozen=True)
class ViewOptions:
    source: str = field(
        metadata={
            "positional": True,
            "metavar": "DATASET_OR_RESULTS",
            "help": "A dataset, or a folder with results.jsonl.",
        }
    )
    out: str = field(default="view.html", metadata={"metavar": "PAGE", "help": "The HTML page to write."})
    split: str | None = field(default=None, metadata={"help": "Split of a dataset. Default: the first one."})
    n: int = field(default=200, metadata={"help": "Maximum number of images or errors to show."})
    seed: int = field(default=0, metadata={"help": "Seed of the sample from a dataset."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n")


@dataclass(frozen=True)
class CalibrateOptions:
    run: str = field(
        metadata={"positional": True, "help": "Run directory of a recipe; its calibration.json is replaced."}
    )
    data: str = field(
        metadata={
            "metavar": "PHOTOS_OR_DATASET",
            "help": "Your own images: a dataset or folders named real and fake; with --max_fpr photos alone will do.",
        }
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "Split to calibrate on; never test. Default: validation; with --max_fpr all but test, unless the "
            "run was trained on them."
        },
    )
    max_fpr: float | None = field(
        default=None,
        metadata={
            "help": "Guarantee that at most this part of photos is called generated, by an exact binomial bound at "
            "95 % confidence; 0.01 needs 299 photos."
        },
    )
    limit: int | None = field(default=None, metadata={"help": "Maximum number of images to read."})
    force: bool = field(
        default=False,
        metadata={"help": "Write the calibration even where the model is at chance; it is marked as not reliable."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "limit")
        check_max_fpr(self.max_fpr)
        if self.split == "test":
            raise UserError("--split test: a threshold chosen on the test images cannot be evaluated on them")


@dataclass(frozen=True)
class FitHeadOptions:
    run: str = field(
        metadata={"positional": True, "metavar": "RUN_OR_ID", "help": "Run directory, model folder, Hub id or nano."}
    )
    data: str = field(
        metadata={
            "metavar": "DATASET",
            "help": "Pair or image dataset: its training and validation splits are read.",
        }
    )
    backbone: str | None = field(
        default=None,
        metadata={
            "metavar": "ID",
            "help": "Features of this vision model of transformers. Default: those of the model's own tower.",
        },
    )
    expert: str | None = field(
        default=None,
        metadata={"metavar": "RUN", "help": "A run of `vlm-detect train cnn` that the verdict listens to as well."},
    )
    out: str | None = field(
        default=None,
        metadata={"metavar": "DIR", "help": "Where the head is written. Default: the run; of an id runs/ID_head."},
    )
    limit: int = field(default=4000, metadata={"help": "Training images that are read at most."})
    validation_limit: int | None = field(default=None, metadata={"help": "Validation images. Default: all."})
    novelty_level: float = field(
        default=0.01,
        metadata={"help": "A verdict is unsure if at most this part of ordinary images is as unusual as the image."},
    )

    def __post_init__(self) -> None:
        check_at_least(self, 20, "limit", "validation_limit")
        if not 0 < self.novelty_level < 1:
            raise UserError(f"--novelty_level {self.novelty_level}: a part of images, above 0 and below 1")


@dataclass(frozen=True)
class AdaptOptions:
    run: str = field(metadata={"positional": True, "help": "A run directory with a head."})
    images: str = field(
        metadata={
            "positional": True,
            "help": "At least 50 labelled images: a folder with real/ and fake/ in it, a CSV of path and label, or a "
            "dataset.",
        }
    )
    out: str = field(metadata={"metavar": "RUN2", "help": "A new folder for the adapted run."})
    old: str | None = field(
        default=None,
        metadata={
            "metavar": "DATASET",
            "help": "Whose validation split stands for what the run knew. Default: that of its head.",
        },
    )


@dataclass(frozen=True)
class ConfigsOptions:
    name: str | None = field(
        default=None, metadata={"positional": True, "help": "Print this config, as a template for your own."}
    )
    path: bool = field(default=False, metadata={"help": "Print its path instead."})
