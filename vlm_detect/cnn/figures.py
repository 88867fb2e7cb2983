"""What is recorded of a run: its cost, its line on the screen, and the JSON of figures (`docs/design.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_detect.cnn.trainer import CnnTrainer
from vlm_detect.config import command_line, read_run_json, write_json
from vlm_detect.machine import machine_name
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.train.run_directory import RunDirectory


def facts_of(trainer: CnnTrainer, run: RunDirectory) -> dict[str, Any]:
    """Parameters, epochs, cost and place of a run. Seconds are summed over its resumptions."""
    history = trainer.state.log_history
    record = read_run_json(run.path) or {}
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "epochs": trainer.state.epoch,
        "best_epoch": _best_epoch(trainer),
        "seconds": round(sum(entry.get("train_seconds", 0.0) for entry in history), 1),
        "cpu_seconds": round(sum(entry.get("train_cpu_seconds", 0.0) for entry in history), 1),
        "images_trained": round((trainer.state.epoch or 0) * len(trainer.batches)),
        "command": command_line(),
        "begun_at": record.get("commit"),
        "device": machine_name(trainer.args.device.type),
        "processes": trainer.args.world_size,
    }


def line_of(summary: Mapping[str, Any]) -> str:
    """One line: the accuracy of each head with its interval."""
    heads = []
    for head, found in summary["heads"].items():
        interval = (found["ci95"] or {}).get("accuracy")
        heads.append(
            f"{head} {found['accuracy']:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")
        )
    auroc = summary["auroc"]
    return f"{summary['benchmark']}: {', '.join(heads)}" + (f", AUROC {auroc:.4f}" if auroc is not None else "")


def write_figures(
    path: Path, run: RunDirectory, config: CnnConfig, summaries: Mapping[str, Mapping[str, Any]], facts: dict[str, Any]
) -> None:
    """One record per scored split; accuracy and interval are those of the verdict head; other heads have their own."""
    records = []
    for name, summary in summaries.items():
        data, _, split = name.rpartition(" (")
        heads = summary["heads"]
        verdict = heads.get("verdict", summary)
        records.append(
            {
                "arch": config.arch,
                "task": config.task,
                "data": data,
                "split": split.removesuffix(")"),
                "n": verdict["n"],
                "accuracy": verdict["accuracy"],
                "ci95": verdict["ci95"].get("accuracy"),
                "auroc": summary["auroc"],
                "heads": {
                    head: {"n": found["n"], "accuracy": found["accuracy"], "ci95": found["ci95"].get("accuracy")}
                    for head, found in heads.items()
                    if head != "verdict"
                },
                "image_size": config.image_size,
                "view": config.view if config.view == "plain" else f"{config.view} {config.saturation:g}",
                **{name: facts[name] for name in ("parameters", "epochs", "best_epoch", "seconds", "cpu_seconds")},
                "seed": run.config["seed"],
                "command": " ".join(facts["command"]),
                "commit": facts["begun_at"],
                "device": facts["device"],
            }
        )
    write_json(path, records)


def _best_epoch(trainer: CnnTrainer) -> float | None:
    best = trainer.state.best_metric
    name = f"eval_{trainer.args.metric_for_best_model}"
    return next((entry["epoch"] for entry in trainer.state.log_history if entry.get(name) == best), None)
