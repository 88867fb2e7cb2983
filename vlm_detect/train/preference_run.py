"""The command line of preference tuning: all options of a run, from YAML and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlm_detect.config import parse_config
from vlm_detect.flags import Deferred
from vlm_detect.train.command import prepare_machine, seeded
from vlm_detect.train.options import LoraOptions
from vlm_detect.train.preference_options import (
    PreferenceData,
    PreferenceModel,
    PreferenceOptions,
    PreferenceTraining,
)
from vlm_detect.train.trainer_flags import trainer_flags

if TYPE_CHECKING:
    from vlm_detect.train.preference_trainer import PreferenceArguments


@dataclass(frozen=True)
class PreferenceRun:
    """All options of preference tuning."""

    model: PreferenceModel
    data: PreferenceData
    preferences: PreferenceOptions
    lora: LoraOptions
    training: PreferenceArguments

    @classmethod
    def parse(cls, argv: Sequence[str], doc: str | None) -> PreferenceRun:
        trainer = Deferred(PreferenceTraining, _arguments, trainer_flags, PreferenceTraining.replaced)
        groups: list[Any] = [PreferenceModel, PreferenceData, PreferenceOptions, LoraOptions, trainer]
        options = cls(*parse_config(groups, argv, doc=doc))
        prepare_machine(options.training, options.model, options.data.cpu_threads)
        return options

    @property
    def groups(self) -> list[Any]:
        return [self.model, self.data, self.preferences, self.lora, self.training]

    def with_seed(self, seed: int) -> PreferenceRun:
        """The options of one of several seeds."""
        return replace(self, training=seeded(self.training, seed))


def _arguments() -> type:
    from vlm_detect.extras import require

    require("preference", "trl")
    from vlm_detect.train.preference_trainer import PreferenceArguments

    return PreferenceArguments
