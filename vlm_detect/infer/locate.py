"""Detection, pointing and gaze in batches: moondream's detect(), point() and gaze skills.

Every object takes the same steps (its x, its y, its width and height, and whether another follows), so that all phrases
of all images go through them together. `vlm_detect.models.moondream.skills` has the loops one prompt at a time, which
these must agree with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch

from vlm_detect.errors import UserError
from vlm_detect.infer.branches import Branches
from vlm_detect.infer.prefixes import Prefix
from vlm_detect.models.base import VLM
from vlm_detect.models.regions import Box, Point

if TYPE_CHECKING:
    from vlm_detect.models.moondream.family import MoondreamVLM

Skill = Literal["detect", "point"]
MAX_OBJECTS = 50
STEPS = {"detect": 3, "point": 2}  # tokens that an object takes
GAZE_EYES = 10  # of a face, and as many of its mirror image


def needs_moondream(vlm: VLM, what: str) -> MoondreamVLM:
    """The model, if it has a region head; otherwise UserError."""
    if not vlm.can_locate:
        raise UserError(f"{vlm.name} has no {what}: use a moondream2 as --model")
    return cast("MoondreamVLM", vlm)


def object_prompts(vlm: VLM, phrases: Sequence[Sequence[str]], skill: Skill) -> list[list[list[int]]]:
    """The prompts for each of the `phrases` of each image; UserError for an empty phrase."""
    moondream = needs_moondream(vlm, f"{skill} skill")
    for phrase in (phrase for some in phrases for phrase in some):
        if not phrase.strip():
            raise UserError("the phrase is empty: name what to look for, for example 'face'")
    return [[moondream.processor.object_ids(skill, phrase) for phrase in some] for some in phrases]


@torch.inference_mode()
def locate(
    vlm: VLM,
    prefixes: Sequence[Prefix],
    prompts: Sequence[Sequence[Sequence[int]]],
    skill: Skill,
    limits: Sequence[Sequence[int]],
    *,
    force: bool = False,
) -> Iterator[list[list[list[Box | Point]]]]:
    """The objects of each prompt of each image, one more per iteration; the last iteration is complete.

    `limits` is the maximum number of objects per prompt. All prefixes have the same length. `force` makes the model
    give at least one object.
    """
    moondream = needs_moondream(vlm, f"{skill} skill")
    config, region = moondream.processor.config, moondream.region
    found: list[list[list[Box | Point]]] = [[[] for _ in some] for some in prompts]
    if not any(map(len, prompts)):
        return
    branches = Branches(vlm, prefixes, prompts)
    coordinate = torch.full_like(branches.there, config.coord_token_id, dtype=torch.long)
    size = torch.full_like(coordinate, config.size_token_id)
    going_on = branches.there
    if not force:
        going_on = going_on & (branches.logits.argmax(-1) != config.eos_token_id)
    limit = torch.zeros_like(coordinate)
    for row, some in zip(limit, limits, strict=True):
        row[: len(some)] = torch.tensor(some)
    for count in range(int(limit.max())):
        going_on = going_on & (count < limit)
        if not bool(going_on.any()):
            return
        numbers = []
        for _ in range(2):
            numbers.append(region.read_coordinate(branches.hidden))  # (B, W)
            branches.read(coordinate, coordinates=numbers[-1])
        if skill == "detect":
            sizes = region.read_size(branches.hidden)  # (B, W, 2)
            branches.read(size, sizes=sizes)
            numbers += sizes.unbind(-1)
        objects = torch.stack(numbers, dim=-1).tolist()
        for i, j in going_on.nonzero().tolist():
            found[i][j].append(Box.around(*objects[i][j]) if skill == "detect" else Point(*objects[i][j]))
        yield found
        going_on = going_on & (branches.logits.argmax(-1) != config.eos_token_id)


def random_eyes(face: Box, seed: int | None = None) -> tuple[list[Point], list[Point]]:
    """Random places in a face, and random places in the same face of the mirrored image."""
    rng = np.random.default_rng(seed)

    def draw() -> list[tuple[float, float]]:
        x, y = rng.uniform(face.x_min, face.x_max, GAZE_EYES), rng.uniform(face.y_min, face.y_max, GAZE_EYES)
        return list(zip(x.tolist(), y.tolist(), strict=True))

    return [Point(x, y) for x, y in draw()], [Point(1 - x, y) for x, y in draw()]


def steady_gaze(found: Sequence[Point | None]) -> Point | None:
    """One point from the targets of twenty eye positions in a face; None where fewer than ten gave one.

    Points far from their nearest neighbour, more than twice the median of such distances, do not count. (The official
    code averages the two smallest distances of each point, one of which is the distance to itself.)
    """
    points = np.array([point for point in found if point is not None])
    if len(points) < GAZE_EYES:
        return None
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.min(axis=1)
    x, y = points[nearest <= 2 * np.median(nearest)].mean(axis=0)
    return Point(float(x), float(y))
