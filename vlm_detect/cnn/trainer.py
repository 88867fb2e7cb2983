"""The Trainer for the CNNs: transformers' own, fed by indices and scored on a validation split after each epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor, nn

from vlm_detect.cnn.batches import Batches, GroupSampler
from vlm_detect.cnn.options import CnnTrainOptions
from vlm_detect.cnn.pixels import Shots
from vlm_detect.cnn.tasks import decisions, targets_of
from vlm_detect.models.cnn.model import CnnForDetection, head_loss, logits_of
from vlm_detect.models.cnn.verdicts import COMPARED_CLASSES, VERDICT, odds_of
from vlm_detect.train.progress import Counts, Progress
from vlm_detect.train.recipe_trainer import RecipeTrainer
from vlm_detect.train.validation import scores_of


class _CnnProgress(Progress):
    """Images in place of questions, accuracies in place of verdicts."""

    def speeds(self) -> str:
        return f"{self.counts.images / max(self.training_s, 1e-9):.0f} images/s"

    def scores_line(self, logs: dict[str, Any]) -> str:
        scores = (f"{name[5:]} {value:.4f}" for name, value in logs.items() if name.endswith("accuracy"))
        return f"AUROC {logs['eval_auroc']:.4f}, {', '.join(scores)} on {logs['eval_images']} images"


def _as_it_is(batch: Any) -> Any:
    """A collator by a name, without which a worker process that is not forked cannot be given it."""
    return batch


class CnnTrainer(RecipeTrainer):
    """Trains every head of a network and keeps the checkpoint that does best on `validation`."""

    def __init__(
        self,
        model: CnnForDetection,
        args: CnnTrainOptions,
        batches: Batches,
        validation: Shots,
        *,
        head_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.batches = batches
        self.validation = validation
        self.truth = targets_of(validation, model.config.heads, model.config.task)
        self.head_weights = dict(head_weights or {})
        self.spent = 0.0, time.process_time()
        super().__init__(
            args,
            GroupSampler(batches.groups, args.seed),
            _CnnProgress(Counts()),
            model=model,
            data_collator=_as_it_is,  # `Batches` hands out whole batches
            train_dataset=batches,
            eval_dataset=batches,  # the Trainer wants to see something here; `evaluate` does not use it
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over images, of whatever heads

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's estimate counts the tokens of a language model

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        pixels, targets = self.batches.batch(inputs["index"], int(inputs["epoch"]))
        logits = model(pixels.to(self.args.device))
        losses = {
            head: head_loss(values, targets[head].to(values.device), self.args.label_smoothing_factor)
            for head, values in logits.items()
        }
        loss: Tensor = sum(self.head_weights.get(head, 1.0) * value for head, value in losses.items())  # type: ignore[assignment]
        self.counts.images += len(pixels)
        self.note_loss(loss)
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation images, each process its share, and log the metrics."""
        started = time.perf_counter()
        found = validation_scores(self.model.config, self.logits(self.validation), self.validation, self.truth)
        # Since the validation before: their sum over the log is the run's cost, however often it was interrupted.
        wall, cpu = self.progress.training_s, time.process_time()
        self.log({"train_seconds": wall - self.spent[0], "train_cpu_seconds": cpu - self.spent[1]})
        self.spent = wall, cpu
        return self.publish_scores(found, len(self.validation), started, metric_key_prefix)

    def logits(self, shots: Shots) -> dict[str, np.ndarray]:
        """Every head's logits (N, L) of all images of `shots`, each process its share."""
        mine = np.arange(self.args.process_index, len(shots), self.args.world_size)
        found = logits_of(self.model, shots.images, mine, self.args.eval_batch_size, self.args.device)
        parts = gather_object([(mine, found)])
        order = np.argsort(np.concatenate([places for places, _ in parts]))
        return {head: np.concatenate([part[head] for _, part in parts])[order] for head in found}


def validation_scores(
    config: Any, logits: Mapping[str, np.ndarray], shots: Shots, truth: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Accuracy of each head; of the verdict also AUROC, balanced accuracy and log loss; the score that chooses.

    The score is the mean accuracy of the heads, less a thousandth of the log loss, which decides between equals.
    """
    found = {}
    for head, values in logits.items():
        known = truth[head] >= 0
        found[f"{head}_accuracy"] = float((decisions(values) == truth[head])[known].mean())
    accuracy = float(np.mean(list(found.values())))
    positive, other = COMPARED_CLASSES[config.task]
    labels = shots.column("label")
    asked = np.isin(labels, [positive, other])
    odds = odds_of(logits[VERDICT], config.heads[VERDICT], config.task)
    scores = scores_of(odds[asked], labels[asked] == positive)
    return {**scores, **found, "accuracy": found[f"{VERDICT}_accuracy"], "score": accuracy - 1e-3 * scores["log_loss"]}
