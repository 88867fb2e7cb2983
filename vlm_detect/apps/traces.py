"""Where a verdict comes from: the run's files, its calibration and its dataset with hashes and versions, its baselines.

    trace = trace_run(detector)
    trace.run, trace.calibration, trace.dataset, trace.baselines

What a run does not have (a Hub model has no dataset here, a run without a benchmark no baselines) is None, and a page
says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_detect.config import file_sha256, read_run_json
from vlm_detect.infer.detector import Detector
from vlm_detect.models.registry import NANO_NAMES, resolve_id
from vlm_detect.stats.calibration import FILE as CALIBRATION

_RUN_FILES = ("run.json", "config.json", "adapter_config.json", "fusion.json", "measures.json")
_SCORES = ("n", "groups", "accuracy", "balanced_accuracy", "auroc", "fpr_at_95_tpr", "ece", "ci95", "benchmark")


@dataclass(frozen=True)
class Trace:
    """Each with `sha256` of the files that were read; None of what there is not."""

    run: dict[str, Any]
    calibration: dict[str, Any] | None
    dataset: dict[str, Any] | None
    baselines: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def trace_run(detector: Detector) -> Trace:
    """That of the model which judges."""
    folder = Path(detector.name)
    record = read_run_json(folder) if folder.is_dir() else None
    return Trace(
        run=_run(detector, folder, record or {}),
        calibration=_calibration(folder, detector),
        dataset=_dataset(record or {}),
        baselines=_baselines(folder),
    )


def _run(detector: Detector, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    base = record.get("model") or record.get("config", {}).get("model")
    expert = detector.witnesses.expert
    facts = {
        "name": detector.name,
        "base": base,
        "revision": record.get("config", {}).get("revision"),
        "written": record.get("written"),
        "commit": record.get("commit"),
        "versions": record.get("versions"),
        "witnesses": {one.name: asdict(one) for one in detector.witnesses.fusion.witnesses},
        # With --expert another CNN than the one that the fusion names.
        "expert": dict(zip(("path", "sha256"), expert.source, strict=True)) if expert else None,
    }
    if not folder.is_dir() and detector.name in NANO_NAMES:
        folder = Path(resolve_id(detector.name).path_or_id)
    if not folder.is_dir():
        return facts | {"revision": resolve_id(detector.name).revision, "files": {}}
    files = [folder / name for name in _RUN_FILES if (folder / name).is_file()]
    return facts | {"files": _hashes(folder, [*files, *folder.glob("*.safetensors")])}


def _calibration(folder: Path, detector: Detector) -> dict[str, Any] | None:
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    return {"file": CALIBRATION, "sha256": file_sha256(path), **detector.calibration.operating_point()}


def _dataset(record: dict[str, Any]) -> dict[str, Any] | None:
    """As the run recorded it; of a dataset that is still there also its own record."""
    name = record.get("config", {}).get("data")
    if not name:
        return None
    facts = {"name": str(name), "files": record.get("data_sha256") or {}}
    own = Path(str(name)) / "run.json"
    if not own.is_file():
        return facts | {"written": None, "version": None, "findings": None}
    about = read_run_json(own.parent) or {}
    return facts | {
        "written": about.get("written"),
        "version": (about.get("versions") or {}).get("vlm-detect"),
        "record_sha256": file_sha256(own),
        "findings": (_read(own.with_name("audit.json")) or {}).get("findings"),
    }


def _baselines(folder: Path) -> dict[str, Any] | None:
    """What the run's benchmark says of it, and what is reached without looking at the images."""
    path = folder / "eval" / "summary.json"
    summary = _read(path)
    if summary is None:
        return None
    scores = {name: summary[name] for name in _SCORES if name in summary}
    return {
        "file": path.relative_to(folder).as_posix(),
        "sha256": file_sha256(path),
        **scores,
        "blind": summary.get("floors") or {},
    }


def _hashes(folder: Path, paths: list[Path]) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(paths)}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
