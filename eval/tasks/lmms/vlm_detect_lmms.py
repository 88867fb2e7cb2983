"""What `vlm_detect_lmms.yaml` asks lmms-eval to call: documents, their images and text, and the judge."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets import Dataset
from PIL import Image, ImageFile

from vlm_detect.benchmark.harness import AskedItems, asked_items
from vlm_detect.errors import UserError

BENCHMARK = "VLM_DETECT_BENCHMARK"  # lmms-eval has no flag whose value reaches a task


def documents(dataset: Dataset) -> Dataset:
    """The headline items of the benchmark, in place of what lmms-eval loaded.

    An error ends the program: lmms-eval would try four more times, and then exit with status 0.
    """
    try:
        with _truncated_rejected():
            asked = _asked()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    if asked.left_out:
        print(asked.left_out, file=sys.stderr)
    return Dataset.from_list(asked.documents())


def images(doc: dict[str, Any]) -> list[Image.Image]:
    """One image; two are placed side by side, as in our own scoring."""
    return [_asked().picture(doc["id"])]


def judge(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    result = _asked().judged(doc["id"], results[0])
    return {"accuracy": float(result.correct), "unparsed": float(result.parsed is None)}


def _asked() -> AskedItems:
    if not (source := os.environ.get(BENCHMARK)):
        raise UserError(f"{BENCHMARK} is not set: name a benchmark file or a dataset folder in it")
    return asked_items(source, split=os.environ.get(f"{BENCHMARK}_SPLIT", "test"))


@contextmanager
def _truncated_rejected() -> Iterator[None]:
    """lmms-eval has Pillow pad truncated files with grey; a benchmark must not contain one unnoticed."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
