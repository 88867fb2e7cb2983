"""What `vlm_detect_vqa.yaml` asks lm-evaluation-harness to call: documents, their images and text, and the judge."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from datasets import Dataset
from PIL import Image

from vlm_detect.benchmark.items import load_benchmark, open_image, side_by_side
from vlm_detect.benchmark.score import generated_result
from vlm_detect.questions.kind import KINDS, makers_in, prompts_of
from vlm_detect.records import Item


def documents(benchmark: str = "", skip_bad: bool = False, **_: Any) -> dict[str, Dataset]:
    """The closed items of a benchmark file, which `--metadata '{"benchmark": FILE}'` names."""
    if not benchmark:
        raise ValueError("""name the benchmark: --metadata '{"benchmark": "data/vqa/benchmark.json"}'""")
    items = [item for item in load_benchmark(benchmark, skip_bad=skip_bad).items if not KINDS[item.kind].is_open]
    names = makers_in(items)
    rows = [
        {"id": item.id, "ground_truth": item.ground_truth, "item": json.dumps(asdict(item)), "names": names}
        for item in items
    ]
    return {"test": Dataset.from_list(rows)}


def images(doc: dict[str, Any]) -> list[Image.Image]:
    """One image; two are placed side by side, as in our own scoring."""
    opened = [open_image(path) for path in json.loads(doc["item"])["images"]]
    return opened if len(opened) == 1 else [side_by_side(*opened)]


def text(doc: dict[str, Any]) -> str:
    """The item as written, with its options, after the image."""
    return f"<image>{_prompt(doc).question}"


def judge(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    result = generated_result(_prompt(doc), results[0])
    return {"acc": float(result.correct), "unparsed": float(result.parsed is None)}


def _prompt(doc: dict[str, Any]) -> Any:
    row = json.loads(doc["item"])
    item = Item(**{**row, "images": tuple(row["images"]), "options": tuple(row["options"])})
    return prompts_of(item, doc["names"])[0]
