"""A run's folder: whether there is something to resume, and what stands in it at the end.

    run = RunDirectory.open("runs/moondream_lora", options, model="nano")
    run.finished, run.checkpoint            # nothing left to do; where to go on from

`run.json` is written before the first step with status "running", so that a killed run can be told from another one,
and again at the end with status "finished" and the scores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState

from vlm_detect.config import read_run_json, write_run_json
from vlm_detect.errors import UserError
from vlm_detect.models.sealed import seal_of
from vlm_detect.train.checkpoints import find_checkpoint, holds_model_alone

# What may differ between a run and its resumption: nothing that a step's result depends on.
_FREE_TO_CHANGE = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "cpu_threads",
    "features_dir",
    "disable_tqdm",
    "report_to",
    "run_name",
    "logging_steps",
    "save_total_limit",
    "push_to_hub",
    "hub_model_id",
    "dataloader_num_workers",
    "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
}


@dataclass(frozen=True)
class RunDirectory:
    path: Path
    config: dict[str, Any]
    facts: dict[str, Any]  # what else is known at the start: the model's id, hashes of the data, how many processes
    finished: bool
    checkpoint: str | None

    @classmethod
    def open(cls, path: str | Path | None, options: Sequence[Any], **facts: Any) -> RunDirectory:
        """Look at `path` and decide; raises UserError where it holds a run of other settings or other data."""
        assert path is not None
        path = Path(path)
        config = {
            name: value
            for group in options
            for name, value in (group.to_dict() if hasattr(group, "to_dict") else asdict(group)).items()
        }
        before = read_run_json(path)
        if before is None:
            return cls(path, config, facts, finished=False, checkpoint=None)
        finished = before.get("status") == "finished"
        old = _defaults(options) | before.get("config", {})
        old |= {name: before.get(name, fact) for name, fact in facts.items()}
        new = {**config, **facts}
        if finished:  # by however many processes
            new.pop("processes", None)
        different = [name for name in new if name not in _FREE_TO_CHANGE and str(old.get(name)) != str(new[name])]
        found = find_checkpoint(path)
        if different and not finished and found.path is None:
            return cls(path, config, facts, finished=False, checkpoint=None)  # nothing was learned with the old ones
        if different:
            changes = ", ".join(f"{name} {old.get(name)} -> {new[name]}" for name in different[:3])
            raise UserError(
                f"{path} holds a run with other settings ({changes}): give its own settings again to resume it, choose "
                "another --output_dir, or remove the folder"
            )
        if not finished:
            _tell_damage(found.damaged, found.path)
        if not finished and found.path and holds_model_alone(found.path):
            raise UserError(
                f"{found.path} holds the model alone, as --save_only_model writes it: the optimizer and the learning "
                "rate would begin anew, so the run cannot go on; remove the folder or give another --output_dir"
            )
        return cls(path, config, facts, finished, str(found.path) if found.path else None)

    def write(self, status: str, **results: Any) -> None:
        """`run.json`; of a finished run with the checksums of what it leaves."""
        if status == "finished":
            results["files"] = seal_of(self.path)
        write_run_json(self.path, self.config, status=status, **self.facts, **results)


def last_checkpoint(run: str | Path) -> str | None:
    """The newest complete checkpoint of a run."""
    found = find_checkpoint(run).path
    return str(found) if found else None


def _tell_damage(damaged: Sequence[str], instead: Path | None) -> None:
    if damaged and PartialState().is_main_process:
        goes_on = f"from {instead}" if instead else "from the beginning, as no complete checkpoint is left"
        print(f"damaged checkpoints are passed over ({'; '.join(damaged)}): going on {goes_on}", file=sys.stderr)


def _defaults(options: Sequence[Any]) -> dict[str, Any]:
    """The default of every setting: what it was in a run that was made before the setting existed."""
    found = {}
    for one in (one for group in options for one in fields(group)):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        found[one.name] = None if default is MISSING else getattr(default, "value", default)  # of an enum
    return found
