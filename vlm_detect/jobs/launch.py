"""The flags of executors, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from vlm_detect.config import check_at_least
from vlm_detect.errors import UserError


@dataclass(frozen=True)
class Launch:
    """The execution of shards."""

    executor: Literal["local", "slurm", "ray"] = field(default="local", metadata={"help": "Executor of the shards."})
    workers: int = field(default=1, metadata={"help": "Number of processes or cluster tasks; one per GPU."})
    gpus: int | None = field(
        default=None,
        metadata={"help": "Slurm, Ray: GPUs per worker. Default: 1 for full-size models, else 0."},
    )
    cpus: int = field(default=1, metadata={"help": "Slurm, Ray: CPUs per worker."})
    memory_gb: int = field(default=4, metadata={"help": "Slurm, Ray: memory per worker."})
    slurm_partition: str | None = field(default=None, metadata={"help": "Slurm: partition."})
    slurm_time: str = field(default="24:00:00", metadata={"help": "Slurm: time limit per worker."})
    slurm_args: list[str] = field(
        default_factory=list, metadata={"help": "Slurm: additional sbatch options, each NAME=VALUE."}
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "workers", "cpus", "memory_gb")
        check_at_least(self, 0, "gpus")
        for argument in self.slurm_args:
            if "=" not in argument:
                raise UserError(f"--slurm_args {argument}: give each as NAME=VALUE, like account=me")

    def with_models(self, full_size: bool) -> Launch:
        """With one GPU per worker unless `--gpus` is given: on CPUs such models take weeks."""
        return self if self.gpus is not None else replace(self, gpus=int(full_size))
