"""Verify the weights and configurations of a finished run by checksum.

    checksums_of_run("runs/moondream_lora")       # {file: sha256}, which run.json has under `files`
    check_run_files("runs/moondream_lora")    # UserError if one of them has changed

The name of an adapter's base is excluded: a base may move, and its name in adapter_config.json be corrected. So are
files that are replaced later, such as calibration.json.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vlm_detect.config import file_sha256, read_run_json
from vlm_detect.errors import UserError

_CONFIGS = ("adapter_config.json", "config.json")
_WEIGHTS = ("model", "adapter_model")  # in one file or in several
_OF_THE_BASE = ("base_model_name_or_path", "revision", "_name_or_path")


def checksums_of_run(run: str | Path) -> dict[str, str]:
    """The checksums of a run's weights and configurations; heads that are fitted later are excluded."""
    weights = sorted(path.name for kind in _WEIGHTS for path in Path(run).glob(f"{kind}*.safetensors"))
    return {name: _digest(Path(run) / name) for name in (*_CONFIGS, *weights) if (Path(run) / name).is_file()}


def check_run_files(run: str | Path) -> None:
    """`UserError` where a file of a finished run is missing or has been altered; other folders pass."""
    record = read_run_json(run)
    if record is None or record.get("status") != "finished" or not isinstance(record.get("files"), dict):
        return
    for name, digest in record["files"].items():
        path = Path(run) / name
        try:
            state = (
                None
                if _digest(path) == digest
                else "has changed since the run finished: its checksum differs from run.json"
            )
        except OSError:
            state = "is missing"
        if state:
            raise UserError(f"{path} {state}; restore it from a copy, or train the run again")


def _digest(path: Path) -> str:
    if path.name not in _CONFIGS:
        return file_sha256(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: value for name, value in found.items() if name not in _OF_THE_BASE}
    except (ValueError, AttributeError):
        return file_sha256(path)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
