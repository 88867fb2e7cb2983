"""How well a model separates real from generated images, on the validation split during training. Never on test.

An image's score is the detector's own (`vlm_detect.infer.verdict`): the log-odds that it is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

from vlm_detect.ahead import ahead
from vlm_detect.data.known_images import verdict_cells
from vlm_detect.errors import UserError
from vlm_detect.images.stored import Cells, undecoded
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.verdict import log_odds
from vlm_detect.models.base import VLM
from vlm_detect.progress import progress


@dataclass(frozen=True)
class ValidationSet:
    """The scored images of a dataset, and whether each is generated. Edited images are excluded."""

    images: Cells
    generated: np.ndarray  # (N,) of bool

    @classmethod
    def from_rows(cls, rows: Dataset, limit: int | None = None) -> ValidationSet:
        """The real and generated images of a pair or image dataset, each photo once, at most limit/2 per class.

        Raises:
            UserError: if one of the classes is missing, because no score is defined then.
        """
        rows = undecoded(rows)
        cells = verdict_cells(rows)
        counts = {name: len(cells[generated]) for name, generated in (("real", False), ("generated", True))}
        if not all(counts.values()):
            raise UserError(
                f"the validation split has {counts['real']} real and {counts['generated']} generated images; at least "
                "one of each is needed to select the best checkpoint"
            )
        each = None if limit is None else max(1, limit // 2)
        chosen = [(cell, generated) for generated in (False, True) for cell in cells[generated][:each]]
        truth = np.array([generated for _, generated in chosen])
        return cls(Cells(rows, [cell for cell, _ in chosen]), truth)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def groups(self) -> list[str] | None:
        """Each image's source photo; None where the dataset does not name them."""
        rows = self.images.rows
        if "group" not in rows.column_names:
            return None
        groups = rows["group"]
        return [str(groups[row]) for row, _ in self.images.places]


def scores_of(odds: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """AUROC, balanced accuracy at p = 0.5, log loss, and the score that selects the best checkpoint.

    The score is the mean of AUROC and balanced accuracy. On a small or easy set many checkpoints tie: a thousandth of
    the log loss decides between them.

    Raises:
        UserError: if a score is non-finite, because the weights have diverged.
    """
    if lost := int((~np.isfinite(odds)).sum()):
        raise UserError(
            f"{lost} of {len(odds)} validation images have a non-finite score: the weights have diverged; try a "
            "lower --learning_rate, or --bf16 in place of --fp16"
        )
    auroc = float(roc_auc_score(generated, odds))
    balanced = float(balanced_accuracy_score(generated, odds > 0))
    log_loss = float(np.mean(np.logaddexp(0, np.where(generated, -odds, odds))))
    score = (auroc + balanced) / 2 - 1e-3 * log_loss
    return {"auroc": auroc, "balanced_accuracy": balanced, "score": score, "log_loss": log_loss}


def validation_odds(vlm: VLM, validation: ValidationSet, args: TrainingArguments) -> np.ndarray:
    """Log-odds of "generated" of every validation image, in the set's order: (N,). Each process scores its share."""
    n_images, at_once = len(validation), args.eval_batch_size
    mine: Sequence[int] = range(args.process_index, n_images, args.world_size)
    model: nn.Module = vlm.model
    if isinstance(model, FSDPModule):
        model.unshard()  # the root's own weights, which are read before the model's forward
        # Every forward gathers weights from all processes, so all must make the same number: processes with one image
        # less score one twice, and prefixes that may differ in length are not one batch here and two there.
        rounds = -(-n_images // args.world_size)
        mine = [(args.process_index + i * args.world_size) % n_images for i in range(rounds)]
        at_once = at_once if vlm.has_fixed_prefix else 1
    training = model.training
    model.eval()
    # Every image is seen once. Processes that gather weights from each other make the same batches.
    engine = Engine(vlm, batch_images=at_once, cache_bytes=0, fixed_batches=isinstance(model, FSDPModule))
    found: list[tuple[int, float]] = []
    batches = [mine[start : start + at_once] for start in range(0, len(mine), at_once)]

    def opened(batch: Sequence[int]) -> list[Image.Image]:
        images = [validation.images[i].open() for i in batch]
        engine.prepare_ahead(images)
        return images

    with progress(desc="validation", total=len(mine), unit="img", quiet=args.process_index > 0) as bar:
        for indices, images in zip(batches, ahead(opened, batches, threads=1), strict=True):
            found += zip(indices, log_odds(engine, images), strict=True)
            bar.update(len(indices))
    model.train(training)
    odds = dict(gather_object(found))
    return np.array([odds[index] for index in range(n_images)])
