"""Fit a run's head, and how much each of its witnesses counts, on a labelled dataset: seconds, no training.

    vlm-detect fit-head runs/moondream_lora --data data/cifake                          # on the run's own tower
    vlm-detect fit-head runs/moondream_lora --data data/cifake --expert runs/cnn        # a CNN speaks too
    vlm-detect fit-head nano --data data/cifake --out runs/nano_head --backbone facebook/dinov3-vits16-pretrain-lvd1689m

The head is fitted on the training split. The weights, the calibration and what is ordinary, by which novelty is judged,
come from the validation split, which no witness was trained on. The recipes do the same at their end (`--fit_head`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from vlm_detect.ahead import ahead
from vlm_detect.config import file_sha256, write_run_json
from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage
from vlm_detect.infer.backbone import Backbone
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.fusion import Fusion
from vlm_detect.infer.head import FILE, Head, probe_image
from vlm_detect.infer.pooled import pooled_features
from vlm_detect.infer.verdict import log_odds
from vlm_detect.infer.witnesses import EXPERT, HEAD, LANGUAGE_MODEL, Expert
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import load_vlm, resolve_id
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration, fit, unsure_band
from vlm_detect.stats.conformal import least_n
from vlm_detect.train.data import open_splits
from vlm_detect.train.usable import usable
from vlm_detect.train.validation import ValidationSet

LEAST_EACH = 10  # real and generated images of either split
IMAGES = 4000  # of the training split, by default
FUSED = "fused"
_BATCH = 16
_FOLDS = 5


@dataclass(frozen=True)
class Read:
    """What was found about N images: features (N, F), log-odds (N,) of each witness but the head, and the truth."""

    features: np.ndarray
    odds: dict[str, np.ndarray]
    generated: np.ndarray

    def said(self, head: Head) -> dict[str, np.ndarray]:
        """Log-odds (N,) of every witness, in the order in which they are shown."""
        every = {**self.odds, HEAD: head.log_odds(self.features)}
        return {name: every[name] for name in (LANGUAGE_MODEL, HEAD, EXPERT) if name in every}

    def at(self, places: np.ndarray) -> Read:
        """Some of the images."""
        odds = {name: values[places] for name, values in self.odds.items()}
        return Read(self.features[places], odds, self.generated[places])


@dataclass(frozen=True)
class Fitted:
    """`figures`: of each witness and of all fused, {accuracy, auroc} on the images that the weights come from.

    The fused ones are cross-validated: each image by weights that were fitted without it.
    """

    head: Head
    fusion: Fusion
    calibration: Calibration
    figures: dict[str, dict[str, float]]

    def save(self, run: Path) -> None:
        """`head.safetensors`, `fusion.json` and the calibration of the fused log-odds."""
        source = (FILE, file_sha256(self.head.save(run)))
        weighed = (
            replace(one, path=source[0], sha256=source[1]) if one.name == HEAD else one for one in self.fusion.witnesses
        )
        replace(self.fusion, witnesses=tuple(weighed)).save(run)
        self.calibration.save(run)

    def lines(self) -> list[str]:
        """A table of the witnesses, and whether novelty can be judged."""
        weights = {witness.name: f"{witness.weight:.3f}" for witness in self.fusion.witnesses}
        lines = [f"  {'':<16}{'weight':>8}{'accuracy':>10}{'AUROC':>8}"]
        for name, found in self.figures.items():
            shown = name.replace("_", " ")
            lines.append(f"  {shown:<16}{weights.get(name, ''):>8}{found['accuracy']:>10.3f}{found['auroc']:>8.3f}")
        level, n = self.fusion.novelty_level, len(self.head.ordinary)
        if self.head.can_judge_novelty(level):
            lines.append(f"  unlike all {n} ordinary images: p-value of at most {level:g}")
        else:
            needed = f"a level of {level:g} needs {least_n(level)} ordinary images, these are {n}"
            lines.append(f"  no image is called unlike all that the run knows: {needed}")
        if self.calibration.doubt:
            lines.append(f"  the calibration is not reliable: {self.calibration.doubt}")
        return lines


def fit_head(
    vlm: VLM,
    train: ValidationSet,
    validation: ValidationSet,
    *,
    backbone: Backbone | None = None,
    expert: Expert | None = None,
    validation_odds: np.ndarray | None = None,
    novelty_level: float = 0.01,
    about: Mapping[str, Any] | None = None,
) -> Fitted:
    """Head, weights and calibration of a model; `validation_odds` are its log-odds where they are known already.

    Raises:
        UserError: for too few images of a class, or where no witness is right more often than wrong.
    """
    for name, images in (("training", train), ("validation", validation)):
        check_enough(images.generated, name)
    engine = Engine(vlm, batch_images=_BATCH, cache_bytes=0)  # every image is seen once
    known = {} if validation_odds is None else {LANGUAGE_MODEL: validation_odds}
    learned = read(engine, train, backbone, "features of training images", judged=False)
    held_out = read(engine, validation, backbone, "witnesses on validation images", expert=expert, known=known)
    facts = {"backbone": backbone.name if backbone else None, "model": vlm.name, **(about or {})}
    head = Head.fit(learned.features, learned.generated, facts)
    probe = backbone.pooled([probe_image()]) if backbone else pooled_features(vlm, [probe_image()])
    head = head.with_ordinary(held_out.features).with_probe(probe)
    sources = {EXPERT: expert.source} if expert else {}
    return weigh(head, held_out.said(head), held_out.generated, sources, novelty_level, validation.groups)


def weigh(
    head: Head,
    said: Mapping[str, np.ndarray],
    generated: np.ndarray,
    sources: Mapping[str, tuple[str, str]],
    novelty_level: float,
    groups: Sequence[str] | None = None,
) -> Fitted:
    """The weights of all witnesses and the calibration of what they say together, from their log-odds (N,) each.

    `sources` and `groups` are as in `Fusion.fit` and `stats.calibration.fit`.
    """
    fusion = replace(Fusion.fit(said, generated, sources), novelty_level=novelty_level)
    fused = fusion.log_odds(said)
    calibration = fit(fused, generated, groups=groups)
    if (disputed := fusion.is_disputed(said)).any():
        _, width = unsure_band(calibration.margin(fused[disputed]), generated[disputed], above=True)
        fusion = replace(fusion, disputed=width)
    shown = {**said, FUSED: cross_fitted(said, generated)}
    return Fitted(head, fusion, calibration, {name: figures_of(odds, generated) for name, odds in shown.items()})


def read(
    engine: Engine,
    images: ValidationSet,
    backbone: Backbone | None,
    label: str,
    *,
    judged: bool = True,
    expert: Expert | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> Read:
    """Features of images and, where they are `judged`, what the other witnesses say of them."""
    features: list[np.ndarray] = []
    odds: dict[str, list[float]] = {}
    batches = [images.images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    reads = backbone is None or (judged and LANGUAGE_MODEL not in (known or {}))  # whether the engine does

    def opened(batch: Sequence[StoredImage]) -> list[Image.Image]:
        decoded = [image.open() for image in batch]
        if reads:
            engine.prepare_ahead(decoded)
        return decoded

    for some in progress(ahead(opened, batches, threads=1), label, unit="batch", total=len(batches)):
        if judged and LANGUAGE_MODEL not in (known or {}):
            odds.setdefault(LANGUAGE_MODEL, []).extend(log_odds(engine, some))
        if judged and expert is not None:
            odds.setdefault(EXPERT, []).extend(expert.log_odds(some))
        if backbone is not None:
            features.append(backbone.pooled(some))
        else:
            features.append(engine.pooled(some))
    found = {name: np.array(values) for name, values in odds.items()}
    return Read(np.concatenate(features), {**(known or {}), **found}, images.generated)


def check_enough(generated: np.ndarray, split: str) -> None:
    """`UserError` where a class has too few images for a head or for weights."""
    n_generated = int(generated.sum())
    n_real = len(generated) - n_generated
    if min(n_real, n_generated) < LEAST_EACH:
        raise UserError(
            f"the {split} images are {n_real} real and {n_generated} generated: a head and its weights need at least "
            f"{LEAST_EACH} of each"
        )


def cross_fitted(said: Mapping[str, np.ndarray], generated: np.ndarray) -> np.ndarray:
    """Fused log-odds (N,), each image's by weights of the folds that it is not in."""
    fused = np.zeros(len(generated))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    for rest, fold in folds.split(np.zeros((len(generated), 1)), generated):
        fusion = Fusion.fit({name: odds[rest] for name, odds in said.items()}, generated[rest])
        fused[fold] = fusion.log_odds({name: odds[fold] for name, odds in said.items()})
    return fused


def figures_of(odds: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """Accuracy at even odds, and AUROC."""
    accuracy = float(((odds > 0) == generated).mean())
    return {"accuracy": accuracy, "auroc": float(roc_auc_score(generated, odds))}


def fit_run(
    run: str,
    data: str,
    *,
    out: str | None = None,
    backbone: str | None = None,
    expert: str | None = None,
    limit: int = IMAGES,
    validation_limit: int | None = None,
    novelty_level: float = 0.01,
) -> Path:
    """What `vlm-detect fit-head` does; gives the folder that holds the head, which is the run's own unless `out` says.

    A model that is no folder gets one of its own, which `--model` takes: the head, and the name of the model.
    """
    folder = Path(out) if out else Path(run) if Path(run).is_dir() else Path("runs") / f"{run.replace('/', '--')}_head"
    rows, validation_rows = open_splits(data)
    check_labelled(rows.column_names, data)
    vlm = load_vlm(run)
    engine = Engine(vlm, batch_images=_BATCH, cache_bytes=0)
    speaker = Expert.load(expert, engine) if expert else None
    tower = Backbone.load(backbone, vlm.device) if backbone else None
    train = ValidationSet.from_rows(usable(rows, data, vlm), limit)
    validation = ValidationSet.from_rows(usable(validation_rows, data, vlm), validation_limit)
    about = {"data": str(Path(data).resolve()) if Path(data).exists() else data}
    fitted = fit_head(vlm, train, validation, backbone=tower, expert=speaker, novelty_level=novelty_level, about=about)
    if folder != Path(run):
        folder.mkdir(parents=True, exist_ok=True)
        base = resolve_id(run).name if not Path(run).is_dir() else str(Path(run).resolve())
        write_run_json(folder, {"data": data, "limit": limit}, status="finished", model=base)
    fitted.save(folder)
    print(f"{folder}: head on {len(train)} training images, weights on {len(validation)} validation images")
    print("\n".join(fitted.lines()))
    return folder


def check_labelled(columns: list[str], data: str) -> None:
    """`UserError` for conversations, which bring answers and no labels."""
    if not {"twin", "label"} & set(columns):
        raise UserError(f"{data}: conversations have no labels: a head is fitted on a pair or image dataset")


def fit_at_end(
    vlm: VLM, run: Path, rows: Dataset, data: str, validation: ValidationSet | None, odds: np.ndarray
) -> dict[str, Any] | None:
    """The head at the end of a recipe, and its figures; None, and one line that says why, where there can be none."""
    training = vlm.model.training
    vlm.model.eval()
    try:
        if validation is None:
            raise UserError("there are no validation images to weigh witnesses on")
        check_labelled(rows.column_names, data)
        learned = ValidationSet.from_rows(rows, IMAGES)
        about = {"data": str(Path(data).resolve()) if Path(data).exists() else data}
        fitted = fit_head(vlm, learned, validation, validation_odds=odds, about=about)
    except UserError as error:
        print(f"no head is fitted, the language model's verdict stands alone: {error}")
        return None
    finally:
        vlm.model.train(training)
    fitted.save(run)
    print(f"head on {len(learned)} training images, weights on {len(validation)} validation images")
    print("\n".join(fitted.lines()))
    return {"weights": {one.name: one.weight for one in fitted.fusion.witnesses}, "figures": fitted.figures}
