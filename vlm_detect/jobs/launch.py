"""The flags of what runs a step's shards; without the imports that running takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from vlm_detect.config import check_at_least
from vlm_detect.errors import UserError


@dataclass(frozen=True)
class Launch:
    """Who runs the shards."""

    executor: Literal["local", "slurm", "ray"] = field(default="local", metadata={"help": "What runs the shards."})
    workers: int = field(default=1, metadata={"help": "Processes, or tasks of a cluster; one a GPU."})
    gpus: int | None = field(
        default=None,
        metadata={"help": "Slurm, Ray: GPUs of a worker. Default: 1 where models of full size run, else 0."},
    )
    cpus: int = field(default=1, metadata={"help": "Slurm, Ray: CPUs of a worker."})
    memory_gb: int = field(default=4, metadata={"help": "Slurm, Ray: memory of a worker."})
    slurm_partition: str | None = field(default=None, metadata={"help": "Slurm: the partition."})
    slurm_time: str = field(default="24:00:00", metadata={"help": "Slurm: time limit of a worker."})
    slurm_args: list[str] = field(default_factory=list, metadata={"help": "Slurm: more of sbatch, each NAME=VALUE."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "workers", "cpus", "memory_gb")
        check_at_least(self, 0, "gpus")
        for argument in self.slurm_args:
            if "=" not in argument:
                raise UserError(f"--slurm_args {argument}: give each as NAME=VALUE, like account=me")

    def with_models(self, full_size: bool) -> Launch:
        """The same with a GPU a worker, unless `--gpus` says otherwise: on CPUs such models take weeks."""
        return self if self.gpus is not None else replace(self, gpus=int(full_size))
