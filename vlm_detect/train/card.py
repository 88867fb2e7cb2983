"""The model card: base model, training data, validation scores, and limits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from vlm_detect.config import command_line
from vlm_detect.train.options import QuestionOptions
from vlm_detect.train.run_directory import RunDirectory

_TEMPLATE = """---
base_model: {base_model}
library_name: peft
pipeline_tag: image-text-to-text
tags: [vlm-detect, ai-generated-image-detection, lora]
---

# AI-image detector: LoRA on {base_model}

Answers "Is this image AI-generated?" and other questions about where an image comes from. Made with vlm-detect by

    {command}

    vlm-detect chat --model {folder} IMAGE "Is this image AI-generated?"

## Data

`{data}`: {units} {unit}.

{data_table}

Questions: {kinds}; {per_image} per image and epoch.{control}

{baselines}

## Validation

{validation}

## Limits

A detector knows the generators and the photos it was trained on. On others it can be wrong with high confidence;
its verdict is evidence, not proof. A probability is only valid for images like the validation images: refit it with
`vlm-detect calibrate`.
"""

_VALIDATION = """Scored by the log-probability of the answers to both polarities of the verdict question. Checkpoint, \
threshold and
temperature are chosen on these images, so their scores are optimistic; quote those of the benchmark.

{score_table}"""
_UNVALIDATED = """There were no validation images: this is the last checkpoint, and its probabilities are not
calibrated (`vlm-detect calibrate`)."""
_PAIRS = "training units of two images (an unaltered one and its counterpart)"
_CONVERSATIONS = "conversations about one image each, with their own questions"
_CONTROL = "\n\n**A control: the labels were shuffled, so this adapter has learned nothing.**"
_COLUMNS = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy", "log_loss": "log loss"}


def write_card(
    run: RunDirectory,
    parts: Sequence[Dataset],
    units: int,
    questions: QuestionOptions,
    history: Sequence[Mapping[str, Any]],
    *,
    scores: Mapping[str, float],
    scored_images: int,
) -> None:
    """Write `README.md` into the run directory, from the training splits `parts` and the Trainer's log history.

    `scores` are those of the saved adapter, on `scored_images` validation images; empty without validation.
    """
    text = _TEMPLATE.format(
        base_model=run.facts["model"],
        command=" ".join(command_line()),
        folder=run.path,
        data=", ".join([str(run.config["data"]), *run.config["mix"]]),
        units=units,
        unit=_CONVERSATIONS if "turns" in parts[0].column_names else _PAIRS,
        data_table=markdown_table(["images", "count"], sorted(sum(map(_composition, parts), Counter()).items())),
        kinds=", ".join(questions.question_kinds),
        per_image=questions.questions_per_image,
        control=_CONTROL if questions.shuffle_labels else "",
        baselines=_baselines(Path(str(run.config["data"])) / "audit.json"),
        validation=_VALIDATION.format(score_table=_scores(history, scores, scored_images)) if scores else _UNVALIDATED,
    )
    (run.path / "README.md").write_text(text, encoding="utf-8")


def _composition(rows: Dataset) -> Counter[str]:
    """The number of images of each kind and generator."""
    if "twin" not in rows.column_names:
        generators = rows["generator"] if "generator" in rows.column_names else [""] * len(rows)
        names = zip(rows["label"], generators, strict=True)
        return Counter(f"{label} ({generator})" if generator else label for label, generator in names)
    twins = zip(rows["kind"], rows["generator"], strict=True)
    return Counter(f"{kind} twins" + (f" ({generator})" if generator else "") for kind, generator in twins)


def _baselines(audit: Path) -> str:
    """The AUC of the audit's probes on the dataset: a detector has to beat them."""
    if not audit.is_file():
        return f"Leaks of the labels were not audited: `vlm-detect audit {audit.parent}`."
    found = json.loads(audit.read_text(encoding="utf-8"))
    probes = [(p["name"], f"{p['auc']:.3f}", " to ".join(f"{x:.3f}" for x in p["ci95"])) for p in found["probes"]]
    findings = "\n".join(f"- {finding}" for finding in found["findings"])
    heading = "Baselines: the area under the ROC curve of small probes (`vlm-detect audit`)."
    return "\n\n".join(part for part in (heading, markdown_table(["probe", "AUC", "95 %"], probes), findings) if part)


def _scores(history: Sequence[Mapping[str, Any]], kept: Mapping[str, float], images: int) -> str:
    lines = [
        [f"{entry['epoch']:.2f}", *(f"{entry[f'eval_{name}']:.3f}" for name in _COLUMNS), str(entry["eval_images"])]
        for entry in history
        if "eval_score" in entry
    ]
    lines.append(["kept", *(f"{kept[name]:.3f}" for name in _COLUMNS), str(images)])
    return markdown_table(["epoch", *_COLUMNS.values(), "images"], lines)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
