"""Make a benchmark file of a public VQA set: LOKI, FakeBench or FakeClue, as they are published.

    python eval/import_vqa.py --from loki loki/true_or_false.json --images loki/media --out data/vqa/loki.json
    python eval/import_vqa.py --from fakebench FakeClass.json --images FakeBench_images --out fakebench.json
    python eval/import_vqa.py --from fakeclue FakeClue/data_json/test.json --images FakeClue/test --out fakeclue.json

Only the file of questions is converted; the images stay where they are. Rows that are not about images are left out
and counted; bad ones (an image that is missing, a label that its own text denies) are listed and stop the import, or
with --skip_bad are left out. What comes out is for eval/vqa_benchmark.py and for eval/build_vqa.py --check.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from vlm_detect.benchmark.importers import Layout, import_rows
from vlm_detect.benchmark.items import bad_items_message
from vlm_detect.config import parse_config, write_json
from vlm_detect.errors import UserError, run_main


@dataclass(frozen=True)
class ImportConfig:
    questions: str = field(metadata={"positional": True, "help": "The published JSON file."})
    layout: Layout = field(metadata={"help": "Whose layout.", "aliases": ["--from"]})
    out: str = field(metadata={"help": "The JSON file to write."})
    images: str | None = field(default=None, metadata={"help": "Folder of the images; default that of the questions."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave bad rows out and count them."})


def main(argv: list[str]) -> int:
    (config,) = parse_config([ImportConfig], argv, doc=__doc__)
    source, out = Path(config.questions), Path(config.out)
    images = Path(config.images) if config.images else source.parent
    if not images.is_dir():
        raise UserError(f"--images {images}: no such folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    items, left_out, problems = import_rows(config.layout, read(source), images, relative_to=out.parent)
    if problems and not config.skip_bad:
        raise UserError(bad_items_message(source, problems, len(items) + len(problems)))
    if not items:
        raise UserError(f"{source}: no row of it is about images" + (f"; such as {problems[0]}" if problems else ""))
    write_json(out, items)
    kinds = sorted({item["kind"] for item in items})
    counts = [f"{sum(item['kind'] == kind for item in items)} {kind.replace('_', ' ')}" for kind in kinds]
    counts += [f"{n} left out ({reason})" for reason, n in left_out.items()]
    counts += [f"{len(problems)} bad"] if problems else []
    print(f"{out}: " + ", ".join(counts))
    return 0


def read(path: Path) -> list:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: not a list of questions, or an empty one")
    return rows


if __name__ == "__main__":
    run_main(main)
