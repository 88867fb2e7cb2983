"""The model card of a CNN: architecture, training data, scores, and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_detect.cnn.pixels import Shots
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.train.run_directory import RunDirectory

_TEMPLATE = """---
library_name: transformers
pipeline_tag: image-classification
tags: [vlm-detect, ai-generated-image-detection, {arch}]
---

# {arch}: {task}

A convolutional baseline of {parameters:,} parameters that reads {size}x{size} pixels ({fit}, view: {view}). Made with
vlm-detect by

    {command}

    vlm-detect explain --model {folder} IMAGES --out PAGE.html

## Heads

{heads}

## Data

`{data}`, {n} training images:

{composition}

## Scores

| split | images | accuracy | AUROC | {head_names} |
|---|---|---|---|{head_rules}|
{scores}

The best checkpoint was chosen on the validation split, so its scores are slightly optimistic.

## Limits

A CNN knows the generators, the sizes and the compression that it was trained with, and can be wrong with high
confidence on any other. It gives no reasons; a heat map shows where it looked, not why. A verdict is evidence, not
proof.
"""


def write_card(
    run: RunDirectory,
    config: CnnConfig,
    train: Shots,
    summaries: Mapping[str, Mapping[str, Any]],
    *,
    parameters: int,
    command: Sequence[str],
) -> None:
    """Write `README.md` into the run directory; `summaries` are those of the scored splits, by name."""
    heads: dict[str, list[str]] = config.heads or {}
    counts = Counter(zip(train.column("label"), train.column("generator"), strict=True))
    others = [head for head in heads if head != "verdict"]
    text = _TEMPLATE.format(
        arch=config.arch,
        task=config.task.replace("_", " "),
        parameters=parameters,
        size=config.image_size,
        fit=config.fit,
        view=config.view if config.view == "plain" else f"{config.view}, factor {config.saturation:g}",
        command=" ".join(command),
        folder=run.path,
        heads="\n".join(f"- {head}: {', '.join(classes)}" for head, classes in heads.items()),
        data=run.config["data"],
        n=len(train),
        composition="\n".join(
            f"- {count} {label}" + (f" ({generator})" if generator else "")
            for (label, generator), count in sorted(counts.items())
        ),
        head_names=" | ".join(["verdict head", *others]),
        head_rules="---|" * (len(others) + 1),
        scores="\n".join(_score_line(name, summary, ["verdict", *others]) for name, summary in summaries.items()),
    ).replace("|---||", "|---|")
    Path(run.path, "README.md").write_text(text, encoding="utf-8")


def _score_line(name: str, summary: Mapping[str, Any], heads: Sequence[str]) -> str:
    auroc = summary["auroc"]
    cells = [name, str(summary["n"]), f"{summary['accuracy']:.4f}", "–" if auroc is None else f"{auroc:.4f}"]
    for head in heads:
        found = summary["heads"].get(head)
        cells.append(f"{found['accuracy']:.4f}" if found else "–")
    return "| " + " | ".join(cells) + " |"
