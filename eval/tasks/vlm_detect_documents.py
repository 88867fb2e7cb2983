"""What `vlm_detect_vqa.yaml` asks lm-evaluation-harness to call: documents, their images and text, and the judge."""

from __future__ import annotations

import sys
from typing import Any

from datasets import Dataset
from PIL import Image

from vlm_detect.benchmark.harness import AskedItems, asked_items


def documents(benchmark: str = "", split: str = "test", skip_bad: bool = False, **_: Any) -> dict[str, Dataset]:
    """The headline items of a benchmark, which `--metadata '{"benchmark": FILE}'` names."""
    if not benchmark:
        raise ValueError("""name the benchmark: --metadata '{"benchmark": "data/vqa/benchmark.json"}'""")
    source = {"benchmark": benchmark, "split": split, "skip_bad": skip_bad}
    asked = _asked(source)
    if asked.left_out:
        print(asked.left_out, file=sys.stderr)
    return {"test": Dataset.from_list([{**document, **source} for document in asked.documents()])}


def images(doc: dict[str, Any]) -> list[Image.Image]:
    """One image; two are placed side by side, as in our own scoring."""
    return [_asked(doc).picture(doc["id"])]


def text(doc: dict[str, Any]) -> str:
    """The item as written, with its options, after the image."""
    return f"<image>{doc['question']}"


def judge(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    result = _asked(doc).judged(doc["id"], results[0])
    return {"acc": float(result.correct), "unparsed": float(result.parsed is None)}


def _asked(source: dict[str, Any]) -> AskedItems:
    return asked_items(source["benchmark"], split=source["split"], skip_bad=source["skip_bad"])
