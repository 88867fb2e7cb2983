"""What keeps a folder one run's: whose results it holds, whether they are complete, and the table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm_detect.bench.items import Benchmark
from vlm_detect.config import file_sha256, read_run_json, write_json
from vlm_detect.errors import UserError

_SETTINGS = "settings.json"  # whose answers results.jsonl holds; written before the first one
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "config.json")
_SHOWN = ("accuracy", "balanced_accuracy", "auroc", "ap", "fpr_at_95_tpr", "ece", "brier")


def default_out(model: str, answers: str | None) -> Path:
    """`<run>/eval` for a run directory, `runs/<name>/eval` for anything else."""
    if answers:
        return Path("runs") / Path(answers).stem / "eval"
    run = Path(model)
    return run / "eval" if run.is_dir() else Path("runs") / model.replace("/", "--") / "eval"


def model_identity(model: str, adapter: str | None) -> dict[str, Any]:
    """What tells one model from another: its name and, of a local folder, its weights."""
    hashes: dict[str, str] = {}
    for folder in (model, adapter):
        if folder and Path(folder).is_dir():
            hashes |= {
                f"{folder}/{name}": file_sha256(Path(folder) / name)
                for name in _WEIGHTS
                if (Path(folder) / name).is_file()
            }
    return {"model": model, "adapter": adapter, "weights_sha256": hashes}


def check_same_run(out: Path, identity: dict[str, Any], *, write: bool) -> None:
    """`UserError` where `out` holds the answers of another model or to another benchmark."""
    path = out / _SETTINGS
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if differing := [name for name in identity if before.get(name) != identity[name]]:
            name = differing[0]
            raise UserError(
                f"{out} holds the answers of another run ({name} was {before.get(name)}, is {identity[name]}); "
                "choose another --out, or remove that folder"
            )
    elif write:
        write_json(path, identity)


def finished(out: Path, config: Any, benchmark: Benchmark) -> bool:
    """Whether `out` has a complete run over just these items."""
    run = read_run_json(out)
    files = all((out / name).is_file() for name in ("summary.json", "report.html"))
    return bool(run and files and run.get("items") == len(benchmark.items) and run["config"].get("by") == config.by)


def print_table(summary: dict[str, Any], out: Path) -> None:
    """The chief figures on stdout, with intervals, floors and what free generation says."""
    print(f"{summary['benchmark']}: {summary['n']} items, {summary['groups']} groups, model {summary['model']}")
    for name in _SHOWN:
        value = summary.get(name)
        if value is None:
            continue
        interval = (summary.get("ci95") or {}).get(name)
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        print(f"  {name:<22}{value:.3f}  {shown}")
    if generate := summary.get("generate"):
        print(f"  {'generated accuracy':<22}{generate['accuracy']:.3f}  ({generate['unparsed']} unparsed)")
    floors = ", ".join(f"{name} {value:.3f}" for name, value in summary["floors"].items())
    print(f"  floors: {floors}\n  {out / 'report.html'}")
