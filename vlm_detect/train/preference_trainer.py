"""TRL's DPOTrainer for VLMs of any family, with the data order, progress and error handling of the other recipes.

The ids of a question and of its answers are those of training and inference (`VLM.question_ids`, `answer_ids`), not
those of a text that a processor tokenizes again. The reference is the initial model: TRL keeps a frozen copy of its
adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from trl import DPOConfig, DPOTrainer

from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage, undecoded
from vlm_detect.models.base import VLM
from vlm_detect.models.rows import IGNORE, PADDING, Answered, Row, stack_rows
from vlm_detect.train.examples import EpochSampler
from vlm_detect.train.preference_options import PreferenceTraining
from vlm_detect.train.preferences import image_of
from vlm_detect.train.progress import Counts, Progress
from vlm_detect.train.row_shapes import RowLengths, RowShapes
from vlm_detect.train.usable import context_of
from vlm_detect.train.validation import ValidationSet, scores_of
from vlm_detect.train.vlm_trainer import VLMTrainer

METRICS = {"rewards/accuracies": "preferred", "rewards/margins": "margin"}  # TRL's names of the printed metrics


@dataclass
class PreferenceArguments(PreferenceTraining, DPOConfig):
    """The Trainer's arguments. A module-level class, so that the Trainer can pickle it."""


@dataclass(frozen=True)
class PreferenceCollator:
    """Turns preferences into a batch: the images as prepared by `VLM.prepare`, and rows of [image prefix, question,
    answer].

    The rows (2 * B, S) are those of `vlm_detect.models.rows`, the chosen answers first, then the rejected ones;
    `row_images` (2 * B,) is the image of each row.
    """

    vlm: VLM
    rows: Dataset  # the undecoded split
    max_length: int
    lengths: RowLengths = field(default_factory=RowLengths)

    def __getstate__(self) -> dict[str, Any]:
        """State for spawned worker processes."""
        return {**vars(self), "vlm": self.vlm.without_weights()}

    def image(self, preference: Mapping[str, Any]) -> StoredImage:
        """The image of a preference."""
        return image_of(self.rows, preference)

    def __call__(self, preferences: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        images = [self.image(one) for one in preferences]
        prepared = self.vlm.prepare([image.open() for image in images])
        prefixes = (
            [self.vlm.prefix_ids()] * len(images) if self.vlm.has_fixed_prefix else self.vlm.prefix_rows(prepared)
        )
        rows = []
        for answer in ("chosen", "rejected"):
            for i, (one, prefix) in enumerate(zip(preferences, prefixes, strict=True)):
                asked = Answered(self.vlm.question_ids(one["prompt"]), self.vlm.answer_ids(one[answer]))
                if len(prefix) + len(asked) > self.max_length:
                    raise UserError(
                        f"{images[i].name}: its explanation takes {len(asked)} tokens after an image of "
                        f"{len(prefix)}, and the model's context has {self.max_length}: remove that row"
                    )
                rows.append(Row())
                rows[-1].add(i, prefix, [asked])
        columns = stack_rows(rows, self.vlm.eos_token_id, self.lengths.multiple_for(max(map(len, rows))))
        if not self.vlm.has_fixed_prefix:
            columns["host_inputs"] = self.vlm.host_inputs(prepared, columns)
        return {"prepared": prepared, **columns}


def model_inputs(vlm: VLM, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of `PreferenceCollator` as arguments of the model's forward, and `completion_mask`: 1 at the answers."""
    if vlm.has_fixed_prefix:
        images = {name: _each_row(part, batch) for name, part in batch["prepared"].items()}
        inputs = {"input_ids": batch["ids"], "attention_mask": (batch["branch"] != PADDING).long(), **images}
    else:
        inputs = vlm.row_inputs(vlm.encode(batch["prepared"]), dict(batch))
    return {**inputs, "completion_mask": (batch["labels"] != IGNORE).long()}


def _each_row(part: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """What `VLM.prepare` gave for each image, a tensor or a list, repeated for each row."""
    if isinstance(part, torch.Tensor):
        return part[batch["row_images"].to(part.device)]
    return torch.tensor([part[image] for image in batch["row_order"]])


class IndexOrder(EpochSampler):
    """The epoch-dependent order for a dataset whose items do not depend on the epoch."""

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        return (index for _, index in super().__iter__())


class PreferenceProgress(Progress):
    """Adds the accuracy and margin of the preferences to a progress line."""

    def step_line(self, state: TrainerState, logs: dict[str, Any]) -> str:
        said = "  ".join(f"{name} {logs[key]:.3f}" for key, name in METRICS.items() if key in logs)
        return f"{super().step_line(state, logs)}  {said}"

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().on_log(args, state, control, logs, **kwargs)
        if state.is_world_process_zero and logs and "eval_rewards/accuracies" in logs:
            said = ", ".join(f"{name} {logs[f'eval_{key}']:.3f}" for key, name in METRICS.items())
            print(f"validation after epoch {state.epoch:.2f}: loss {logs['eval_loss']:.4f}, {said}", flush=True)


class PreferenceTrainer(VLMTrainer, DPOTrainer):
    """Tunes a VLM with a LoRA on preferences; after each epoch held-out preferences and verdicts are scored.

    Args:
        vlm: the family wrapper; its LoRA is trained.
        preferences, rows: the output of `make_preferences`, and the split that it was made from.
        held_out, held_out_rows: the same for the validation split, or None.
        validation: images whose verdicts are also scored, or None.
        compiled: the decoder's layers are compiled: rows have few shapes, and validation is not compiled.
    """

    def __init__(
        self,
        vlm: VLM,
        args: PreferenceArguments,
        preferences: Dataset,
        rows: Dataset,
        *,
        held_out: Dataset | None = None,
        held_out_rows: Dataset | None = None,
        validation: ValidationSet | None = None,
        compiled: bool = False,
    ) -> None:
        if not isinstance(vlm.model, PeftModel):
            raise UserError(f"{vlm.name} has no LoRA, which preference tuning needs: add one first")
        if isinstance(vlm.model.get_output_embeddings(), LoraLayer):
            raise UserError(
                f"{vlm.name} has a LoRA on the vocabulary head, which preference tuning does not train: merge it first "
                "(vlm-detect export RUN --to merged FOLDER, then --model FOLDER), or leave +head out of --lora_targets"
            )
        if vlm.prefix_lm:
            raise UserError(
                f"{vlm.name} uses bidirectional attention unless it is given labels, which TRL's "
                "trainer does not do: choose another model"
            )
        lengths = RowLengths.of(args.device, compiled=compiled)
        collators = {
            split: PreferenceCollator(vlm, undecoded(some), context_of(vlm), lengths)
            for split, some in (("train", rows), ("validation", held_out_rows))
            if some is not None
        }

        def collate(some: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            return collators[some[0]["split"]](some)

        super().__init__(
            vlm,
            args,
            IndexOrder(len(preferences), args.seed),
            PreferenceProgress(Counts()),
            validation=validation,
            shapes=RowShapes(compiled=compiled),
            data_collator=collate,
            train_dataset=_named(preferences, "train"),
            eval_dataset=None if held_out is None else _named(held_out, "validation"),
        )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, model_inputs(self.vlm, inputs), *args, **kwargs)
        if model.training:
            self.shapes.add(inputs)
            rows = len(inputs["labels"])
            answered = len(inputs["predicting"])
            self.counts.add({"n_images": rows // 2, "n_questions": rows, "n_tokens": answered})
            self.note_loss(loss)
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The held-out preferences, and the verdicts on the validation images."""
        with self.shapes.uncompiled():
            metrics: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.validation is not None:
            odds = self.validation_odds()
            scores = scores_of(odds, self.validation.generated)
            verdicts = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
            self.log({**verdicts, f"{metric_key_prefix}_images": len(odds)})
            metrics |= verdicts
        return metrics

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Skip TRL's model card, written into every checkpoint; the recipe writes one at the end."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the trained adapter, without its reference, and the processor."""
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        self.vlm.model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        Path(str(folder), "README.md").unlink(missing_ok=True)
        self.vlm.processor.save_pretrained(folder)


def _named(preferences: Dataset, split: str) -> Dataset:
    """Add the split of its rows, and the column by which TRL recognizes a dataset with images."""
    names = [split] * len(preferences)
    return preferences.add_column("split", names).add_column("image", list(range(len(preferences))))
