"""Build a benchmark from a dataset, or check one for leaks: the implementation of `vlm-detect build-vqa`."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_detect.benchmark.build import build, opened, sizes_from
from vlm_detect.benchmark.dataset_items import dataset_pairs
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.model_baselines import model_baselines
from vlm_detect.benchmark.options import BuildOptions
from vlm_detect.benchmark.respondents import respondent_for
from vlm_detect.benchmark.run import needed_keys
from vlm_detect.benchmark.text_baselines import baselines_by_kind, headline_baselines
from vlm_detect.config import write_json, write_run_json
from vlm_detect.errors import UserError
from vlm_detect.progress import progress
from vlm_detect.records import Item

JPEG_QUALITY = 95  # all images share one encoding, whatever their history


def build_or_check(options: BuildOptions) -> None:
    if options.check:
        check(options)
    else:
        write(options, Path(str(options.dataset)))


def write(options: BuildOptions, dataset: Path) -> None:
    if not dataset.is_dir():
        raise UserError(f"{dataset}: no such dataset folder; make one with vlm-detect make-pairs")
    pairs, data = dataset_pairs(dataset, options.split)
    sizes = sizes_from(options)
    items = build(pairs, sizes, options.seed)
    if not items:
        raise UserError(f"{dataset}: its {options.split} split has no photo with a twin; try another --split")
    assert options.out is not None
    out = Path(options.out)
    images = out.parent / f"{out.stem}_images"
    images.mkdir(parents=True, exist_ok=True)

    def written(shown: str) -> str:
        """The image in the common encoding, after its operation; the name is a hash of the content."""
        buffer = io.BytesIO()
        opened(shown, data, options.seed).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        path = images / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:20]}.jpg"
        path.write_bytes(buffer.getvalue())
        return str(path.relative_to(out.parent))

    # Shuffled, so that a block's images are not adjacent.
    order = random.Random(options.seed).sample(range(len(items)), len(items))
    shown = progress(order, "write images", unit="item")
    rows = [row_of(f"{place:06d}", items[i], written) for place, i in enumerate(shown)]
    write_json(out, rows)
    counts = {kind: sum(item.kind == kind for item in items) for kind in sorted({item.kind for item in items})}
    write_run_json(
        images, options, dataset=str(dataset), items=counts
    )  # the folder of `out` may be a dataset with its own
    print(f"{out}: " + ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in counts.items()))
    for kind in ("true_false", "multiple_choice"):
        wanted = sizes[kind]
        if counts.get(kind, 0) < wanted:
            print(
                f"  {wanted} {kind} items were requested; {len(pairs)} pairs give {counts.get(kind, 0)} different ones"
            )


def row_of(id_: str, item: Item, written: Callable[[str], str]) -> dict[str, Any]:
    names = [written(shown) for shown in item.images]
    row: dict[str, Any] = {"id": id_, "kind": item.kind}
    row |= {"image": names[0]} if len(names) == 1 else {"images": names}
    row["question"] = item.question
    if item.options:
        row["options"] = list(item.options)
    return row | {"ground_truth": item.ground_truth, "metadata": item.metadata}


def check(options: BuildOptions) -> None:
    assert options.check is not None
    benchmark = load_benchmark(options.check, skip_bad=options.skip_bad, need_images=options.model is not None)
    baselines, by_kind = headline_baselines(benchmark.items), baselines_by_kind(benchmark.items)
    if options.model:
        respondent = respondent_for(options.model, generate=False)
        with progress(desc="blind baselines", total=2 * len(needed_keys(benchmark, respondent)), unit="prompts") as bar:
            found = model_baselines(benchmark, respondent.start(), seed=options.seed, count=bar.update)
        for row, more in found.items():
            (baselines if row == "all" else by_kind[row]).update(more)
    if options.json:
        print(json.dumps({"floors": baselines, "by_kind": by_kind, "n": len(benchmark.items)}))
        return
    rows = {"all": baselines, **(by_kind if len(by_kind) > 1 else {})}
    print(f"{benchmark.name}: {len(benchmark.items)} items; accuracy without looking at an image")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(map(len, rows))
    print(" " * width + "".join(f"  {name}" for name in names))
    for row, values in rows.items():
        cells = (f"{values[name]:.3f}" if name in values else "-" for name in names)
        print(f"{row:<{width}}" + "".join(f"  {cell:>{len(name)}}" for name, cell in zip(names, cells, strict=True)))
