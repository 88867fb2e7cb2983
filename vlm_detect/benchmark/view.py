"""`vlm-detect view`: a dataset, or the errors of a run, as one page of images.

    view("data/cifake", Path("page.html"), split="train")      # a sample, by label and generator
    view("runs/cnn_fakenet2/validation", Path("page.html"))    # the errors, most confident first

A results folder contains results.jsonl, of a CNN or of a VLM; its images come from the benchmark or dataset named in
its run.json.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from vlm_detect.benchmark.item_scores import ItemScore, item_scores
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.report_parts import confidence
from vlm_detect.benchmark.results import RESULTS, read_results
from vlm_detect.config import read_run_json
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.images.stored import StoredImage, undecoded
from vlm_detect.pages.page import photo, render, write_page

_SIDE = 192  # pixels of a thumbnail


def view(source: str, out: Path, *, split: str | None = None, n: int = 200, seed: int = 0) -> int:
    """Write the page on `source`; returns the number of images, or pairs, that it shows (at most `n`)."""
    if (Path(source) / RESULTS).is_file():
        return view_errors(Path(source), out, n=n)
    if read_run_json(source) is not None and (Path(source) / "validation" / RESULTS).is_file():
        return view_errors(Path(source) / "validation", out, n=n)
    return view_dataset(source, out, split=split, n=n, seed=seed)


def view_dataset(data: str, out: Path, *, split: str | None, n: int, seed: int) -> int:
    """A sample of a split (by default the first), balanced over labels and generators."""
    opened = open_dataset(data)
    split = split or next(iter(opened))
    if split not in opened:
        raise UserError(f"{data}: has no split {split} (has {', '.join(opened)})")
    rows = undecoded(opened[split])
    kinds = _kinds(rows)
    chosen: dict[str, list[int]] = defaultdict(list)
    for place in _drawn(kinds, n, seed):
        chosen[kinds[place]].append(place)
    html = render(
        "view.html.j2",
        title=f"{Path(data).name}: {split}",
        lead=f"{sum(map(len, chosen.values()))} of {len(rows)} rows, sampled at random.",
        counts=sorted(Counter(kinds).items()),
        groups=[(kind, [_dataset_card(rows[place]) for place in places]) for kind, places in sorted(chosen.items())],
    )
    write_page(out, html)
    return sum(map(len, chosen.values()))


def view_errors(folder: Path, out: Path, *, n: int) -> int:
    """The errors of a run, most confident first; from `results.jsonl` and the benchmark named in `run.json`."""
    config = (read_run_json(folder) or {}).get("config", {})
    if not config.get("benchmark"):
        raise UserError(f"{folder}: its run.json names no benchmark or dataset to take the images from")
    if not Path(config["benchmark"]).exists():
        raise UserError(f"{folder}: was scored on {config['benchmark']}, which does not exist here")
    benchmark = load_benchmark(config["benchmark"], split=config.get("split") or "test", skip_bad=True)
    items = {item.id: item for item in benchmark.items}
    results = read_results(folder / RESULTS)
    scores = item_scores(results, "logprob") or item_scores(results, "generate")
    wrong = sorted((score for score in scores if not score.correct), key=confidence, reverse=True)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for score in wrong[:n]:
        pictures = (
            [photo(benchmark.image(ref), f"Image of item {score.id}", max_side=_SIDE) for ref in items[score.id].images]
            if score.id in items
            else []
        )
        groups[_said(score)].append({"pictures": pictures, "lines": _error_lines(score), "wrong": True})
    html = render(
        "view.html.j2",
        title=f"Errors of {config.get('model') or folder}",
        lead=f"{len(wrong)} of {len(scores)} items of {benchmark.name} are wrong"
        + (f"; the {n} most confident are shown." if len(wrong) > n else "."),
        counts=sorted((f"wrong: {name}", count) for name, count in Counter(map(_said, wrong)).items()),
        groups=sorted(groups.items()),
    )
    write_page(out, html)
    return min(n, len(wrong))


def _kinds(rows: Dataset) -> list[str]:
    """The class of each row: its label, or the kind of its twin, and the generator."""
    labels = rows["kind"] if "twin" in rows.column_names else rows["label"]
    generators = rows["generator"] if "generator" in rows.column_names else [""] * len(rows)
    return [f"{label} ({name})" if name else label for label, name in zip(labels, generators, strict=True)]


def _drawn(kinds: Sequence[str], n: int, seed: int) -> list[int]:
    """At most `n` rows, balanced over kinds."""
    places: dict[str, list[int]] = defaultdict(list)
    for place in random.Random(seed).sample(range(len(kinds)), len(kinds)):
        places[kinds[place]].append(place)
    chosen: list[int] = []
    while len(chosen) < min(n, len(kinds)):
        for waiting in places.values():
            if waiting and len(chosen) < n:
                chosen.append(waiting.pop())
    return chosen


def _dataset_card(row: dict[str, Any]) -> dict[str, Any]:
    columns = [name for name in ("image", "twin") if name in row]
    pictures = []
    lines = [str(row[name]) for name in ("object_class", "caption", "group") if row.get(name)]
    for name in columns:
        try:
            image = decode_image(StoredImage.from_cell(row[name]).content).image
        except ImageRejected as rejected:
            lines.append(f"{name}: {rejected}")
            continue
        pictures.append(photo(image, f"{name} of group {row['group']}", max_side=_SIDE))
    return {"pictures": pictures, "lines": lines, "wrong": False}


def _said(score: ItemScore) -> str:
    result = score.results[0]
    return f"{result.generator or 'image'}, asked: {result.question}"


def _error_lines(score: ItemScore) -> list[str]:
    result = score.results[0]
    lines = [f"answer {result.answer}, truth {result.ground_truth}"]
    if score.p_fake is not None:
        lines.append(f"P(generated) = {score.p_fake:.3f}")
    return lines + [text for text in (score.object_class, score.id) if text]
