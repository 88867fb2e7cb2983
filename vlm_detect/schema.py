"""Schema numbers of files that are used across versions: runs, datasets, feature caches and benchmark results.

A file carries its number under the key `schema`; version 0.1 wrote none, which counts as 0. Readers accept every number
up to their own and refuse a newer one in one line.

Increase a number when a reader of the previous one would misread the file, and let the new reader upgrade old files.
Adding a key needs no new number: a key that an old record lacks has its default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vlm_detect.errors import UserError

Kind = Literal["run", "results", "summary", "calibration", "features", "fusion", "expert_tokens", "measures", "case"]

SCHEMAS: dict[Kind, int] = {
    "run": 1,  # run.json of runs, datasets and results
    "results": 1,  # settings.json next to results.jsonl, and the lines of the latter
    "summary": 1,
    "calibration": 1,
    "fusion": 1,
    "expert_tokens": 1,
    "measures": 1,  # measures.json: percentiles of the measures as currently defined
    "case": 1,  # case.json
    "features": 1,  # metadata of the safetensors files of a feature cache
}


def with_schema(kind: Kind, record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` preceded by this version's schema number of its kind."""
    return {"schema": SCHEMAS[kind], **record}


def check_schema(kind: Kind, record: Mapping[str, Any], path: str | Path) -> None:
    """`UserError` if a newer version than this one wrote `record`, which was read from `path`."""
    found = record.get("schema", 0)
    if not str(found).isdigit() or int(found) > SCHEMAS[kind]:
        raise UserError(
            f"{path}: has schema {found} and this version reads up to {SCHEMAS[kind]}, so a newer vlm-detect wrote it; "
            "upgrade with `pip install -U vlm-detect`"
        )


def check_folder(folder: str | Path) -> None:
    """The same for a run's or a dataset's folder; one without a readable run.json is not ours and passes."""
    path = Path(folder) / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(record, dict):
        check_schema("run", record, path)
