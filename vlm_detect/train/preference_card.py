"""The model card of a run of preference tuning: its preferences and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_detect.config import command_line
from vlm_detect.train.card import markdown_table
from vlm_detect.train.run_directory import RunDirectory

_TEMPLATE = """---
base_model: {base_model}
library_name: peft
pipeline_tag: image-text-to-text
tags: [vlm-detect, ai-generated-image-detection, lora, dpo, trl]
---

# AI-image detector: explanations tuned by preference, from {model}

Says whether an image is AI-generated and why. A LoRA on {base_model}, tuned by DPO (arXiv 2305.18290)
with TRL to prefer checked explanations to the same with a fault. Made with vlm-detect by

    {command}

    vlm-detect chat --model {folder} IMAGE

## Data

`{data}`: {count} preferences, made from its reasons by seed {seed}; no annotator. Chosen explanations were measured,
planted or checked; rejected ones have a fault:

{fault_table}

Faults that need a false sentence take one that the image's own pixels, or the record of its edit, contradict. All
preferences are in `preferences.parquet`.

## Validation

{validation}

## Limits

A preference teaches which of two explanations to give, not how to see: an explanation can still be wrong, and
`vlm-detect chat` checks its sentences against the pixels where possible. The verdict is evidence, not proof.
"""
_FOLLOWED = """On preferences of the validation split: the share in which the chosen explanation has become likelier
than the rejected one, against the model as it was, and by how many nats times beta; with them the verdicts.

{table}"""
_UNVALIDATED = "There was no validation data: this is the last checkpoint."
_COLUMNS = {
    "eval_loss": "loss",
    "eval_rewards/accuracies": "preferred",
    "eval_rewards/margins": "margin",
    "eval_auroc": "AUROC",
    "eval_balanced_accuracy": "balanced accuracy",
}


def write_preference_card(
    run: RunDirectory, base_model: str, faults: Mapping[str, int], history: Sequence[Mapping[str, Any]]
) -> None:
    """Write `README.md` into the run directory, from the Trainer's log history."""
    validation = _UNVALIDATED
    if table := _epochs(history):
        names = ["epoch", *_COLUMNS.values()]
        validation = _FOLLOWED.format(table=markdown_table(names, table))
    text = _TEMPLATE.format(
        base_model=base_model,
        model=run.facts["model"],
        command=" ".join(command_line()),
        folder=run.path,
        data=run.config["data"],
        count=sum(faults.values()),
        seed=run.config["seed"],
        fault_table=markdown_table(["fault", "preferences"], sorted(faults.items())),
        validation=validation,
    )
    (run.path / "README.md").write_text(text, encoding="utf-8")


def _epochs(history: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line per evaluation; the Trainer logs the preferences and the verdicts of an evaluation in two entries."""
    merged: dict[float, dict[str, Any]] = {}
    for entry in history:
        if any(name in entry for name in _COLUMNS):
            merged.setdefault(entry["epoch"], {}).update(entry)
    return [
        [f"{epoch:.2f}", *(f"{found[name]:.3f}" if name in found else "" for name in _COLUMNS)]
        for epoch, found in merged.items()
    ]
