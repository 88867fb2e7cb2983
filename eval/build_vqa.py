"""Build a VQA benchmark from a dataset, or show what anyone's benchmark gives away without its images.

    python eval/build_vqa.py data/pairs --out data/vqa/benchmark.json
    python eval/build_vqa.py data/pairs --out data/vqa/benchmark.json --n_true_false 200 --n_multiple_choice 200
    python eval/build_vqa.py --check data/vqa/benchmark.json --json
    python eval/build_vqa.py --check data/vqa/benchmark.json --model nano      # and what that model gets from no image

Writes the items as JSON and their images into a folder beside it, under names that say nothing, all in one encoding.
Built items stand in blocks of equal text, each answer right for one image of the block, so that no reader of the text
alone does better than chance. `--check` measures that: the longest option, the shortest, the commonest letter, a
classifier on the words and, with --model, the model shown a blank image or another item's.

Only one split is used, the test by default: its photos have no descendants in the others.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_detect.benchmark.build import build, opened, sizes_from
from vlm_detect.benchmark.dataset_items import dataset_pairs
from vlm_detect.benchmark.floors import chief_floors, floors_by_kind
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.model_floors import model_floors
from vlm_detect.benchmark.respondents import respondent_for
from vlm_detect.benchmark.run import needed_keys
from vlm_detect.config import check_at_least, parse_config, write_json, write_run_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.progress import progress
from vlm_detect.records import Item

JPEG_QUALITY = 95  # the one encoding of all images, whatever was done to them before


@dataclass(frozen=True)
class BuildConfig:
    dataset: str | None = field(
        default=None, metadata={"positional": True, "help": "Folder of a pair or image dataset."}
    )
    out: str | None = field(default=None, metadata={"help": "The JSON file to write; images go beside it."})
    split: str = field(default="test", metadata={"help": "The split of the dataset that is asked about."})
    n_true_false: int = field(default=1000, metadata={"help": "Yes/no and true/false items, at most."})
    n_multiple_choice: int = field(default=1000, metadata={"help": "Four-way items, at most."})
    n_attribution: int = field(default=200, metadata={"help": "Items on what made an image, at most."})
    n_which_of_two: int = field(default=200, metadata={"help": "Items on two images side by side, at most."})
    n_open: int = field(default=200, metadata={"help": "Items that ask for a verdict and its reason, at most."})
    n_items: list[str] = field(
        default_factory=list, metadata={"help": "Of another kind, as an installed package brings one: KIND=N, at most."}
    )
    seed: int = field(default=0, metadata={"help": "Of every draw."})
    check: str | None = field(default=None, metadata={"help": "Print the floors of this benchmark instead."})
    json: bool = field(default=False, metadata={"help": "With --check: print them as JSON."})
    model: str | None = field(default=None, metadata={"help": "With --check: also floors of this model."})
    skip_bad: bool = field(default=False, metadata={"help": "With --check: leave bad items out."})

    def __post_init__(self) -> None:
        check_at_least(self, 0, "n_true_false", "n_multiple_choice", "n_attribution", "n_which_of_two", "n_open")
        if bool(self.dataset) == bool(self.check) or (self.dataset and not self.out):
            raise UserError("give a DATASET with --out FILE, or --check FILE")


def main(argv: list[str]) -> int:
    (config,) = parse_config([BuildConfig], argv, doc=__doc__)
    return check(config) if config.check else write(config, Path(config.dataset))


def write(config: BuildConfig, dataset: Path) -> int:
    if not dataset.is_dir():
        raise UserError(f"{dataset}: no such dataset folder; make one with data_gen/make_pairs.py")
    pairs, data = dataset_pairs(dataset, config.split)
    sizes = sizes_from(config)
    items = build(pairs, sizes, config.seed)
    if not items:
        raise UserError(
            f"{dataset}: its {config.split} split has no photo with a twin to ask about; try another --split"
        )
    assert config.out is not None
    out = Path(config.out)
    images = out.parent / f"{out.stem}_images"
    images.mkdir(parents=True, exist_ok=True)

    def written(shown: str) -> str:
        """The image in the common encoding, with what is to be done to it done; the name is a hash of the content."""
        buffer = io.BytesIO()
        opened(shown, data, config.seed).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        path = images / f"{hashlib.sha256(buffer.getvalue()).hexdigest()[:20]}.jpg"
        path.write_bytes(buffer.getvalue())
        return str(path.relative_to(out.parent))

    # Shuffled, so that a block's images do not stand together.
    order = random.Random(config.seed).sample(range(len(items)), len(items))
    rows = [row_of(f"{place:06d}", items[i], written) for place, i in enumerate(order)]
    write_json(out, rows)
    counts = {kind: sum(item.kind == kind for item in items) for kind in sorted({item.kind for item in items})}
    write_run_json(images, config, dataset=str(dataset), items=counts)  # beside `out` may lie a dataset with its own
    print(f"{out}: " + ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in counts.items()))
    for kind in ("true_false", "multiple_choice"):
        wanted = sizes[kind]
        if counts.get(kind, 0) < wanted:
            print(
                f"  {wanted} {kind} items were asked for; {len(pairs)} pairs give {counts.get(kind, 0)} different ones"
            )
    return 0


def row_of(id_: str, item: Item, written: Callable[[str], str]) -> dict[str, Any]:
    names = [written(shown) for shown in item.images]
    row: dict[str, Any] = {"id": id_, "kind": item.kind}
    row |= {"image": names[0]} if len(names) == 1 else {"images": names}
    row["question"] = item.question
    if item.options:
        row["options"] = list(item.options)
    return row | {"ground_truth": item.ground_truth, "metadata": item.metadata}


def check(config: BuildConfig) -> int:
    assert config.check is not None
    benchmark = load_benchmark(config.check, skip_bad=config.skip_bad, need_images=config.model is not None)
    floors, by_kind = chief_floors(benchmark.items), floors_by_kind(benchmark.items)
    if config.model:
        respondent = respondent_for(config.model, generate=False)
        with progress(desc="floors", total=2 * len(needed_keys(benchmark, respondent)), unit="prompts") as bar:
            with_model = model_floors(benchmark, respondent.start(), seed=config.seed, count=bar.update)
        for row, more in with_model.items():
            (floors if row == "all" else by_kind[row]).update(more)
    if config.json:
        print(json.dumps({"floors": floors, "by_kind": by_kind, "n": len(benchmark.items)}))
        return 0
    rows = {"all": floors, **(by_kind if len(by_kind) > 1 else {})}
    print(f"{benchmark.name}: {len(benchmark.items)} items; accuracies without looking at an image")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(map(len, rows))
    print(" " * width + "".join(f"  {name}" for name in names))
    for row, found in rows.items():
        cells = (f"{found[name]:.3f}" if name in found else "-" for name in names)
        print(f"{row:<{width}}" + "".join(f"  {cell:>{len(name)}}" for name, cell in zip(names, cells, strict=True)))
    return 0


if __name__ == "__main__":
    run_main(main)
