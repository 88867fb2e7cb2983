"""The tasks of a network: the classes of its heads, and the class of each image.

heads = heads_of(shots, "real_fake", object_head=True)   # {"verdict": [...], "object": [...]}
targets = targets_of(shots, heads, "real_fake")          # {"verdict": (N,), "object": (N,)}, -1: not asked
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from vlm_detect.cnn.pixels import Shots
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.verdicts import OBJECT, VERDICT

# Classes by label, the unaltered one first; an image of any other label is not asked about.
TASKS: dict[str, list[str]] = {
    "real_fake": ["real", "generated"],
    "generator": ["real"],  # and every generator of the training split
    "real_edited": ["real", "edited"],
    "fake_edited": ["generated", "edited"],
    "three_way": ["real", "generated", "edited"],
}


def heads_of(shots: Shots, task: str, *, object_head: bool = False) -> dict[str, list[str]]:
    """The heads for the training images.

    Raises:
        UserError: for an unknown task, or where the images are of one class only.
    """
    if task not in TASKS:
        raise UserError(f"--task {task}: unknown; choose from {', '.join(TASKS)}")
    classes = list(TASKS[task])
    labels = Counter(shots.column("label"))
    if task == "generator":
        names = shots.column("generator")[shots.column("label") == "generated"]
        classes += sorted(set(names) - {""})
    needed = {"real", "generated"} if task == "generator" else set(classes)
    if missing := sorted(name for name in needed if not labels[name]):
        found = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
        raise UserError(
            f"--task {task} needs {' and '.join(sorted(needed))} images, the training split has {found} "
            f"and no {' and no '.join(missing)}: use other --data, or another --task"
        )
    if len(classes) < 2:
        raise UserError("--task generator: no generated image names its generator; use --task real_fake")
    heads = {VERDICT: classes}
    if object_head:
        objects = sorted(set(shots.column("object_class")) - {""})
        if len(objects) < 2:
            raise UserError(
                f"--object_head needs images of several object classes, the training split names {len(objects)}: "
                "omit it, or use a dataset with an object_class column"
            )
        heads[OBJECT] = objects
    return heads


def targets_of(shots: Shots, heads: dict[str, list[str]], task: str) -> dict[str, np.ndarray]:
    """The class of each image under each head (N,), int64; -1 where the head does not ask about it.

    Raises:
        UserError: where none of the images belongs to a head's classes.
    """
    labels = shots.column("label")
    named = np.where(labels == "generated", shots.column("generator"), labels) if task == "generator" else labels
    found = {VERDICT: _indices(named, heads[VERDICT])}
    if OBJECT in heads:
        found[OBJECT] = _indices(shots.column("object_class"), heads[OBJECT])
    for head, target in found.items():
        if not (target >= 0).any():
            have = sorted(set(named if head == VERDICT else shots.column("object_class")))
            raise UserError(
                f"none of the images belongs to the classes of the {head} head ({', '.join(heads[head][:8])}); they "
                f"are {', '.join(repr(name) for name in have[:8])}"
            )
    return found


def decisions(logits: np.ndarray) -> np.ndarray:
    """The class that logits (N, L) name, (N,); one logit stands for two classes."""
    return (logits[:, 0] > 0).astype(np.int64) if logits.shape[1] == 1 else logits.argmax(axis=1)


def _indices(names: np.ndarray, classes: list[str]) -> np.ndarray:
    places = {name: place for place, name in enumerate(classes)}
    return np.array([places.get(str(name), -1) for name in names], dtype=np.int64)
