"""The flags of adding reasons, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlm_detect.config import check_at_least, check_url
from vlm_detect.errors import UserError
from vlm_detect.generate.choices import ADDABLE_SOURCES, ReasonSources
from vlm_detect.records import TextsLayout


@dataclass(frozen=True)
class ReasonsConfig:
    """The reasons to add."""

    reasons: ReasonSources | None = field(
        default=None,
        metadata={"help": f"Of {','.join(ADDABLE_SOURCES)}. Default: measured, and edit if the dataset has edits."},
    )
    measured_reasons: int = field(default=4, metadata={"help": "Maximum number of measured reasons per image."})
    seed: int = field(default=0, metadata={"help": "Seed of the wordings."})
    rows_per_file: int = field(default=50_000, metadata={"help": "Rows per parquet file."})
    shard_size: int = field(default=1024, metadata={"help": "Rows per shard, the unit that a worker saves."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "measured_reasons", "rows_per_file", "shard_size")


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher and the judge (for --reasons teacher)."""

    teacher: str | None = field(
        default=None, metadata={"help": "A vision-language model: its name at --teacher_endpoint, or an ID to load."}
    )
    teacher_endpoint: str | None = field(
        default=None, metadata={"help": "URL of an OpenAI-compatible endpoint (.../v1): images are sent there."}
    )
    judge: str | None = field(
        default=None, metadata={"help": "Model that checks sentences without the label. Default: the teacher."}
    )
    judge_endpoint: str | None = field(default=None, metadata={"help": "URL of the judge's endpoint."})
    api_key_env: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the endpoints' key."}
    )
    min_margin: float = field(
        default=1.0,
        metadata={"help": "Minimum difference of log-odds (nats) of a sentence between its image and the other."},
    )
    teacher_limit: int | None = field(default=None, metadata={"help": "Show the teacher only the first N rows."})
    teacher_shard_size: int = field(default=16, metadata={"help": "Rows per shard of the teacher."})
    parallel: int = field(default=8, metadata={"help": "Concurrent requests to an endpoint."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "teacher_limit", "teacher_shard_size", "parallel")
        check_at_least(self, 0, "min_margin")
        check_url(self, "teacher_endpoint", "judge_endpoint")
        for endpoint, model in (("teacher_endpoint", "teacher"), ("judge_endpoint", "judge")):
            if getattr(self, endpoint) and not getattr(self, model):
                raise UserError(f"--{endpoint} {getattr(self, endpoint)}: give its model's name with --{model}")


@dataclass(frozen=True)
class TextsConfig:
    """Third-party texts about the images (for --reasons imported)."""

    texts: str | None = field(
        default=None, metadata={"help": "A file of texts about the dataset's images; for x_aigd a folder of parquet."}
    )
    texts_layout: TextsLayout = field(
        default="plain",
        metadata={
            "help": "conversations (LLaVA's layout: FakeVLM's FakeClue, TeoScardov), loki, synthscars, x_aigd, "
            "or plain: {image or id, text, kind?, box?, about?}."
        },
    )
