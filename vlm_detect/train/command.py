"""A recipe's command line: all options of a run, repeated for several seeds if requested.

options = Options.parse(argv, doc=__doc__, training=MyDefaults)     # flags override YAML
each_seed(options, finetune)                                        # once, or for each of --seeds
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from vlm_detect.config import parse_config, read_run_json, write_json
from vlm_detect.errors import UsageError, UserError
from vlm_detect.flags import Deferred
from vlm_detect.jobs.launch import Launch
from vlm_detect.locks import held
from vlm_detect.train.options import (
    DataOptions,
    ExpertOptions,
    LoraOptions,
    ModelOptions,
    QuestionOptions,
    TrainOptions,
)
from vlm_detect.train.trainer_flags import trainer_flags

if TYPE_CHECKING:
    from vlm_detect.models.registry import Role


T = TypeVar("T", bound=TrainOptions)


@dataclass(frozen=True)
class Options:
    """All options of a run; `role` decides what `auto` and `nano` select for the recipe."""

    model: ModelOptions
    data: DataOptions
    questions: QuestionOptions
    lora: LoraOptions
    expert: ExpertOptions
    training: TrainOptions
    role: Role = "vlm"
    launch: Launch = field(default_factory=Launch)  # of the workers of a feature cache; a training has none

    @classmethod
    def parse(
        cls,
        argv: Sequence[str],
        *,
        doc: str | None,
        training: type[TrainOptions],
        model: type[ModelOptions] = ModelOptions,
        lora: type[LoraOptions] = LoraOptions,
        nano_config: str | None = None,
        role: Role = "vlm",
        has_launch: bool = False,
    ) -> Options:
        """From `--config YAML` and flags; `training`, `model`, `lora`: the recipe's classes, with its defaults.

        With `has_launch` the flags of executors are among them.

        Without a config and with a nano model, the package's `nano_config` is read: settings for a real model teach
        such a small one nothing.
        """
        trainer = Deferred(training, _arguments, trainer_flags, training.replaced)
        groups: list[type | Deferred] = [model, DataOptions, QuestionOptions, lora, ExpertOptions, trainer]
        groups += [Launch] if has_launch else []
        parsed = parse_config(groups, argv, doc=doc)
        from vlm_detect.models.registry import NANO_NAMES, resolve_id  # lazy: imports torch, which --help does not need

        named = any(arg == "--config" or arg.startswith("--config=") for arg in argv)
        if nano_config and not named and resolve_id(parsed[0].model, role).name in NANO_NAMES:
            print(f"the model is nano: using config {nano_config} for everything not set by a flag")
            parsed = parse_config(groups, ["--config", nano_config, *argv], doc=doc)
        launch = parsed[6] if has_launch else Launch()
        options = replace(cls(*parsed[:6]), role=role, launch=launch)
        if options.data.cache_features and "vision" in options.lora.lora_targets.split("+"):
            raise UsageError("--cache_features needs a frozen tower: remove +vision from --lora_targets")
        if options.data.cache_features and options.lora.train_connector:
            raise UsageError("--cache_features stores what the connector gives: give --train_connector False")
        if options.expert.expert and options.model.tune == "full":
            raise UsageError("--expert is trained with a LoRA: omit --tune full")
        prepare_machine(options.training, options.model, options.data.cpu_threads)
        return options

    @property
    def groups(self) -> list[Any]:
        return [self.model, self.data, self.questions, self.lora, self.expert, self.training]

    def with_seed(self, seed: int) -> Options:
        """The options of one of several seeds: a separate run, in a subfolder of the run directory."""
        return replace(self, training=seeded(self.training, seed))


class Parse(Protocol):
    """The command line of a recipe; with `has_launch` it has the flags of executors."""

    def __call__(self, argv: Sequence[str], doc: str | None = ..., *, has_launch: bool = ...) -> Options: ...
    def __hash__(self) -> int: ...  # functions are keys of caches


def _arguments() -> type:
    from vlm_detect.train.arguments import TrainArguments

    return TrainArguments


def prepare_machine(training: TrainOptions, model: ModelOptions, cpu_threads: int | None) -> None:
    """Prepare the machine for a training with these options."""
    from vlm_detect.machine import prepare_training  # lazy: imports torch, which --help does not need

    wants_float32 = model.dtype == "float32" and getattr(training, "tf32", None) is None
    prepare_training(training.device.type, cpu_threads, wants_float32=wants_float32)


def seeded(training: T, seed: int) -> T:
    """The Trainer's options for one of several seeds, with its own folder and repository."""
    training = copy.copy(training)  # `replace` would run `__post_init__` a second time
    training.seed, training.seeds = seed, []
    folder = Path(str(training.output_dir))
    training.output_dir = str(folder / f"seed_{seed}")
    training.hub_model_id = f"{training.hub_model_id or folder.name}-seed_{seed}"
    return training


class Seeded(Protocol):
    """The options of a run of any recipe."""

    @property
    def training(self) -> TrainOptions: ...

    def with_seed(self, seed: int) -> Self: ...


S = TypeVar("S", bound=Seeded)


def each_seed(options: S, finetune: Callable[[S], None]) -> None:
    """Call `finetune` once, or for each of `--seeds`; then `seeds.json` has every score's mean and spread."""
    training = options.training
    if training.use_liger_kernel and find_spec("liger_kernel") is None:  # before pairs are made and models loaded
        raise UserError(
            "--use_liger_kernel: liger-kernel is not installed; run: pip install liger-kernel, or leave it out"
        )
    folder, is_main = Path(str(training.output_dir)), training.process_index == 0
    with held(folder, flag="--output_dir", when=is_main):
        if not training.seeds:
            finetune(options)
            return
        for seed in training.seeds:
            finetune(options.with_seed(seed))
    if is_main:
        runs = {seed: (read_run_json(folder / f"seed_{seed}") or {})["validation"] for seed in training.seeds}
        summary = spread(list(runs.values()))
        write_json(folder / "seeds.json", {"seeds": runs, **summary})
        for name, value in summary["mean"].items():
            print(f"{name}: {value:.4f} ± {summary['standard_deviation'][name]:.4f} over {len(runs)} seeds")


def spread(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation of each score; the latter is 0 for a single run."""
    columns = {name: [one[name] for one in scores] for name in scores[0]}
    return {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "standard_deviation": {
            name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in columns.items()
        },
    }
