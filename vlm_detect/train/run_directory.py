"""A run's folder: whether there is something to resume, and its final content.

    run = RunDirectory.open("runs/moondream_lora", options, model="nano")
    run.finished, run.checkpoint            # nothing left to do; where to resume from

`run.json` is written before the first step with status "running", so that a killed run can be recognized, and again at
the end with status "finished" and the scores.
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
from vlm_detect.models.run_checksums import checksums_of_run
from vlm_detect.train.checkpoints import find_checkpoint, has_model_only

# Settings that may differ between a run and its resumption: none affects the result of a step.
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
    facts: dict[str, Any]  # other facts at the start: the model's id, hashes of the data, the number of processes
    finished: bool
    checkpoint: str | None

    @classmethod
    def open(cls, path: str | Path | None, options: Sequence[Any], **facts: Any) -> RunDirectory:
        """Inspect `path`; raises UserError where it contains a run with other settings or data."""
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
        if finished:  # regardless of the number of processes
            new.pop("processes", None)
        different = [name for name in new if name not in _FREE_TO_CHANGE and str(old.get(name)) != str(new[name])]
        found = find_checkpoint(path)
        if different and not finished and found.path is None:
            return cls(path, config, facts, finished=False, checkpoint=None)  # nothing was trained with the old ones
        if different:
            changes = ", ".join(f"{name} {old.get(name)} -> {new[name]}" for name in different[:3])
            raise UserError(
                f"{path} contains a run with other settings ({changes}): use the same settings to resume it, choose "
                "another --output_dir, or remove the folder"
            )
        if not finished:
            _report_damage(found.damaged, found.path)
        if not finished and found.path and has_model_only(found.path):
            raise UserError(
                f"{found.path} contains only the model (--save_only_model): the optimizer and the learning "
                "rate would start over, so the run cannot resume; remove the folder or give another --output_dir"
            )
        return cls(path, config, facts, finished, str(found.path) if found.path else None)

    def write(self, status: str, **results: Any) -> None:
        """Write `run.json`; for a finished run with the checksums of its files."""
        if status == "finished":
            results["files"] = checksums_of_run(self.path)
        write_run_json(self.path, self.config, status=status, **self.facts, **results)


def last_checkpoint(run: str | Path) -> str | None:
    """The newest complete checkpoint of a run."""
    found = find_checkpoint(run).path
    return str(found) if found else None


def _report_damage(damaged: Sequence[str], instead: Path | None) -> None:
    if damaged and PartialState().is_main_process:
        goes_on = f"from {instead}" if instead else "from the beginning, as there is no other complete checkpoint"
        print(f"skipping damaged checkpoints ({'; '.join(damaged)}): continuing {goes_on}", file=sys.stderr)


def _defaults(options: Sequence[Any]) -> dict[str, Any]:
    """The default of every setting: its value in a run from before the setting existed."""
    found = {}
    for one in (one for group in options for one in fields(group)):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        found[one.name] = None if default is MISSING else getattr(default, "value", default)  # of an enum
    return found
