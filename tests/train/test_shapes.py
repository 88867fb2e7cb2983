"""On a GPU the rows of an epoch have few shapes: a compiled layer is compiled for each, and eight are its limit."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from tests.factories import tiny_vlm
from vlm_detect.images.stored import StoredImage
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.trainer import GPU_MULTIPLE

OFFICIAL: dict[str, Any] = {
    "vision_config": {"crop_size": 378, "patch_size": 14, "max_crops": 12, "overlap_margin": 4},
    "text_config": {"max_position_embeddings": 2048},
}


def shapes(multiple: int, *, pack: bool) -> set[tuple[int, ...]]:
    """(rows, tokens) of an epoch of 41 images in batches of four: an official prefix, questions of 10 to 60 tokens."""
    vlm, rng = tiny_vlm(**OFFICIAL), random.Random(0)
    stands_for = len(vlm.question_ids("")) + len(vlm.answer_ids("Yes."))
    cache: Any = SimpleNamespace(read=lambda keys: {})
    collator = Collator(vlm, pack=pack, features=cache, multiple=multiple)
    images = []
    for number in range(41):
        lengths = [max(1, rng.randint(10, 60) - stands_for) for _ in range(4)]
        asked = [Question("yes_no", " ".join("a" * length), "Yes.") for length in lengths]
        images.append([Example(StoredImage(str(number).encode()), asked, "real")])
    return {tuple(collator(images[start : start + 4])["ids"].shape) for start in range(0, 41, 4)}


def test_an_epoch_has_at_most_eight_shapes() -> None:
    assert 1 < len(shapes(GPU_MULTIPLE, pack=True)) <= 8
    assert len(shapes(1, pack=True)) > 8, "the lengths of these rows differ too little to need padding"
    assert len(shapes(GPU_MULTIPLE, pack=False)) <= 8
