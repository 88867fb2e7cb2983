"""On a GPU the rows of an epoch have few shapes: a compiled layer is compiled for each, and eight are its limit."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.factories import tiny_vlm
from tests.train.toys import toy_pairs
from vlm_detect.images.stored import StoredImage
from vlm_detect.machine import row_multiple
from vlm_detect.records import Question
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example, Units
from vlm_detect.train.options import QuestionOptions
from vlm_detect.train.row_shapes import RowLengths
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.validation import ValidationSet

GPU_MULTIPLE = row_multiple(torch.device("cuda"))
OFFICIAL: dict[str, Any] = {
    "vision_config": {"crop_size": 378, "patch_size": 14, "max_crops": 12, "overlap_margin": 4},
    "text_config": {"max_position_embeddings": 2048},
}


def shapes(
    multiple: int, *, longest: int = 60, n_images: int = 41, few_lengths: bool = False, **options: Any
) -> set[tuple[int, ...]]:
    """(rows, tokens) of an epoch of images in batches of four: an official prefix, and for each image four questions of
    10 to `longest` tokens."""
    vlm, rng = tiny_vlm(**OFFICIAL), random.Random(0)
    stands_for = len(vlm.question_ids("")) + len(vlm.answer_ids("Yes."))
    cache: Any = SimpleNamespace(read=lambda keys: {})
    collator = Collator(vlm, features=cache, lengths=RowLengths(multiple, few_lengths), **options)
    images = []
    for number in range(n_images):
        lengths = [max(1, rng.randint(10, longest) - stands_for) for _ in range(4)]
        asked = [Question("yes_no", " ".join("a" * length), "Yes.") for length in lengths]
        images.append([Example(StoredImage(str(number).encode()), asked, "real")])
    return {tuple(collator(images[start : start + 4])["ids"].shape) for start in range(0, n_images, 4)}


def test_an_epoch_has_at_most_eight_shapes() -> None:
    assert 1 < len(shapes(GPU_MULTIPLE, pack=True)) <= 8
    assert len(shapes(1, pack=True)) > 8, "the lengths of these rows differ too little to need padding"
    assert len(shapes(GPU_MULTIPLE, pack=False)) <= 8


def test_compiled_layers_meet_at_most_eight_shapes_whatever_the_questions() -> None:
    many: dict[str, Any] = {"longest": 400, "n_images": 81, "pack": True}
    assert len(shapes(GPU_MULTIPLE, **many)) > 8, "these rows are no harder than those above"
    assert 1 < len(shapes(GPU_MULTIPLE, **many, few_lengths=True)) <= 8
    assert 1 < len(shapes(GPU_MULTIPLE, **many, few_lengths=True, row_tokens=6400)) <= 8


def test_rows_are_padded_on_a_gpu_alone() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert RowLengths.of(cuda, compiled=False).multiple_for(65) == 64
    assert RowLengths.of(cpu, compiled=False).multiple_for(65) == 1


def test_few_lengths_add_little() -> None:
    """Prefixes of different lengths, as of Qwen-VL, as well."""
    lengths = RowLengths(few=True)
    padded = {length: -(-length // (of := lengths.multiple_for(length))) * of for length in range(256, 2049)}
    assert len(set(padded.values())) == 13
    assert all(length <= to <= 1.25 * length for length, to in padded.items())


def refuse(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    raise RuntimeError("a graph was compiled")


def test_validation_compiles_nothing(tmp_path: Path) -> None:
    """Its rows have other shapes, and a cache, whose layers are numbered: a graph for each of them."""
    vlm = tiny_vlm()
    rows = toy_pairs(2)
    trainer = DetectorTrainer(
        vlm,
        TrainArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True),
        Units(rows, QuestionOptions(questions_per_image=1)),
        ValidationSet.from_rows(rows),
        compiled=True,
    )
    vlm.model.model.text.blocks[0].compile(backend=refuse)
    assert np.isfinite(trainer.validation_odds()).all()
    trainer.shapes.compiled = False
    with pytest.raises(RuntimeError, match="a graph was compiled"):
        trainer.validation_odds()
    torch.compiler.reset()
