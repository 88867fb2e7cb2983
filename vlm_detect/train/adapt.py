"""A new generator from a handful of labelled images: the head learns them, the language model stays as it is.

    vlm-detect adapt runs/moondream_lora new/ --out runs/adapted    # new/real and new/fake, or a CSV of path and label

The head's sums of the old images are kept and the new ones are added, each of which counts for several; for how many is
chosen by cross-validation on the new images and on half of the validation images that the run's head was fitted with.
The weights of the witnesses and the calibration follow, new and old counting alike. What is printed, before and after,
is of images that had no part in it: a third of the new ones, and the other half of the old.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, train_test_split

from vlm_detect.data.known_images import KnownImages, known_images
from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.decode import decode_image
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.head import FILE, Head
from vlm_detect.infer.verdict import log_odds
from vlm_detect.infer.witnesses import EXPERT, LANGUAGE_MODEL, Witnesses
from vlm_detect.models.registry import load_vlm
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration
from vlm_detect.train.fit_head import LEAST_EACH, Fitted, Read, weigh

LEAST = 50  # images
WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # for how many old images a new one may count
_FOLDS = 5
_HELD_BACK = 1 / 3  # of the new images
_BATCH = 16
_NOT_COPIED = (FILE, "fusion.json", "calibration.json")


@dataclass(frozen=True)
class Adapted:
    """`before` and `after`: {"new" | "old": {n, accuracy, auroc}} of images that had no part in the adaptation."""

    fitted: Fitted
    weight: float
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]

    def lines(self) -> list[str]:
        lines = [
            f"  a new image counts for {self.weight:g} old ones",
            f"  {'':<8}{'images':<14}{'accuracy':>9}{'AUROC':>8}",
        ]
        for when, found in (("before", self.before), ("after", self.after)):
            for which, figures in found.items():
                shown = f"{which}, {figures['n']:.0f}"
                lines.append(f"  {when:<8}{shown:<14}{figures['accuracy']:>9.3f}{figures['auroc']:>8.3f}")
        return lines


def adapt_run(run: str, images: str, out: str, *, old: str | None = None) -> Path:
    """What `vlm-detect adapt` does: `out` is the run with a head, weights and a calibration that know the new images.

    `old` is the dataset whose validation split stands for what the run knew; by default that of its head.
    """
    folder, target = Path(run), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {out}: is there already and not empty: give a new folder")
    head = Head.load(folder)
    if head is None:
        raise UserError(f"{run}: has no {FILE} to adapt: fit one with vlm-detect fit-head {run} --data DATASET")
    known = known_images(images)
    check_enough(known)
    before = old or str(head.about.get("data", ""))
    try:
        old_images = known_images(before, split="validation")
    except UserError as error:
        raise UserError(
            f"the images that the head was fitted with are not available ({error}): give a dataset like them with --old"
        ) from error
    engine = Engine(load_vlm(run), batch_images=_BATCH, cache_bytes=0)
    witnesses = Witnesses.load(folder, engine)
    new_read = read_known(witnesses, head, known, "new images")
    old_read = read_known(witnesses, head, old_images, "old images")
    about = {"adapted_to": str(Path(images).resolve()), "n_new": len(new_read.generated)}
    found = adapt(witnesses, Calibration.load(folder), head, new_read, old_read)
    fitted = replace(found.fitted, head=replace(found.fitted.head, about={**head.about, **about}))
    copy_run(folder, target)
    fitted.save(target)
    print(f"{out}: {run} with {len(new_read.generated)} new images")
    print("\n".join([*found.lines(), *fitted.lines()]))
    return target


def check_enough(known: KnownImages) -> None:
    """`UserError` where the new images are too few, or of one class."""
    if len(known) < LEAST or min(known.real, known.generated) < LEAST_EACH:
        raise UserError(
            f"{known.named}: {known.real} real and {known.generated} generated images; adapting takes at least {LEAST} "
            f"in all and {LEAST_EACH} of each"
        )


def adapt(witnesses: Witnesses, calibration: Calibration, head: Head, new: Read, old: Read) -> Adapted:
    """Head, weights and calibration for new and old images together; `calibration` is that of `witnesses`."""
    learned, shown = split(new, _HELD_BACK)
    chosen_on, shown_old = split(old, 0.5)
    weight = choose_weight(head, learned, chosen_on)
    now = added(head, learned, weight)

    # The weights of the witnesses: of the new images what a head said that had not learned them.
    crossed = learned.said(now) | {"head": cross_fitted(head, learned, weight)}
    outputs = chosen_on.said(now)
    n = max(len(learned.generated), len(chosen_on.generated))
    new_rows, old_rows = (np.resize(np.arange(len(one.generated)), n) for one in (learned, chosen_on))
    said = {name: np.concatenate([outputs[name][old_rows], crossed[name][new_rows]]) for name in outputs}
    truth = np.concatenate([chosen_on.generated[old_rows], learned.generated[new_rows]])
    groups = [*(f"old {i}" for i in old_rows), *(f"new {i}" for i in new_rows)]
    fusion = witnesses.fusion
    expert = fusion.expert
    sources = {EXPERT: (expert.path, expert.sha256)} if expert else {}
    fitted = weigh(now, said, truth, sources, fusion.novelty_level, groups)

    def figures(one_head: Head, weighed: Any, cut: Calibration, read: Read) -> dict[str, float]:
        fused_odds = weighed.log_odds(read.said(one_head))
        right = (cut.margin(fused_odds) > 0) == read.generated
        auroc = float(roc_auc_score(read.generated, fused_odds))
        return {"n": len(right), "accuracy": float(right.mean()), "auroc": auroc}

    parts = {"new": shown, "old": shown_old}
    before = {name: figures(head, fusion, calibration, read) for name, read in parts.items()}
    after = {name: figures(now, fitted.fusion, fitted.calibration, read) for name, read in parts.items()}

    # What stays learns the held-back images too; what is ordinary is judged by images that no head was fitted on.
    final = added(head, new, weight)
    ordinary = np.concatenate([final.distance(old.features), now.distance(shown.features)])
    return Adapted(replace(fitted, head=replace(final, ordinary=np.sort(ordinary))), weight, before, after)


def added(head: Head, new: Read, weight: float) -> Head:
    """The head with new images that count `weight` times."""
    return head.combined(Head.fit(new.features, new.generated), weight) if weight else head


def choose_weight(head: Head, new: Read, old: Read) -> float:
    """For how many old images a new one counts: by the AUROC of new images that were not learned, and of old ones."""
    scores = []
    for weight in WEIGHTS:
        of_new = roc_auc_score(new.generated, cross_fitted(head, new, weight))
        of_old = roc_auc_score(old.generated, added(head, new, weight).log_odds(old.features))
        scores.append(of_new + of_old)
    return WEIGHTS[int(np.argmax(scores))]


def cross_fitted(head: Head, new: Read, weight: float) -> np.ndarray:
    """The head's log-odds (N,) of new images, each by a head that learned the folds that it is not in."""
    found = np.zeros(len(new.generated))
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    for rest, fold in folds.split(new.features, new.generated):
        found[fold] = added(head, new.at(rest), weight).log_odds(new.features[fold])
    return found


def split(read: Read, held_back: float) -> tuple[Read, Read]:
    """Two parts with both classes in the same proportion."""
    places = np.arange(len(read.generated))
    kept, held = train_test_split(places, test_size=held_back, stratify=read.generated, random_state=0)
    return read.at(np.sort(kept)), read.at(np.sort(held))


def read_known(witnesses: Witnesses, head: Head, images: KnownImages, label: str) -> Read:
    """Features and log-odds of every image that can be read; the others are counted and printed."""
    features: list[np.ndarray] = []
    odds: dict[str, list[float]] = {}
    generated: list[bool] = []
    unread = 0
    shown = iter(progress(images, label, unit="img", total=len(images)))
    while some := list(islice(shown, _BATCH)):
        decoded = []
        for image in some:
            try:
                if isinstance(image.data, ImageRejected):
                    raise image.data
                picture = decode_image(image.data).image
            except ImageRejected:
                unread += 1
                continue
            if witnesses.engine.vlm.refusal(picture.size):
                unread += 1
                continue
            decoded.append(picture)
            generated.append(image.is_generated)
        if not decoded:
            continue
        odds.setdefault(LANGUAGE_MODEL, []).extend(log_odds(witnesses.engine, decoded))
        features.append(witnesses.features(decoded, head))
        if witnesses.expert is not None:
            odds.setdefault(EXPERT, []).extend(witnesses.expert.log_odds(decoded))
    if unread:
        print(f"{images.named}: {unread} of {len(images)} images cannot be read and are left out")
    truth = np.array(generated, dtype=bool)
    if min(truth.sum(), (~truth).sum()) < LEAST_EACH:
        raise UserError(
            f"{images.named}: {(~truth).sum()} real and {truth.sum()} generated images that can be read; at least "
            f"{LEAST_EACH} of each are needed"
        )
    return Read(np.concatenate(features), {name: np.array(values) for name, values in odds.items()}, truth)


def copy_run(run: Path, out: Path) -> None:
    """The files of a run, without checkpoints and results, and without what is refitted."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(run.iterdir()):
        if path.is_file() and path.name not in _NOT_COPIED:
            shutil.copyfile(path, out / path.name)
