"""One class of pipelines, tried with random weights: which kinds of twin it makes, each equal by its receipt.

found = try_pipeline("FluxPipeline", tmp_path)      # {pipeline, caption, vae, edit, instruct, reason}
python -m tests.generate.try_pipeline --write       # every class; writes the record and the table of docs/data.md

The pipeline is saved, `make-pairs` renders twins with it, and `vlm-detect render --row` renders one of each kind again.
An edit counts where the pipeline itself repaints the box.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.generate.test_edits import textured
from tests.generate.tiny_pipelines import PIPELINES, small_references, tiny_pipeline
from tests.scripts.here import run_here
from vlm_detect.errors import UserError, first_line
from vlm_detect.generate.receipts import render_row

RECORD = Path(__file__).parents[2] / "eval" / "results" / "generators.json"
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
START, END = "<!-- pipelines: python -m tests.generate.try_pipeline --write -->", "<!-- end of pipelines -->"
KINDS = ("caption", "vae", "edit", "instruct")
PHOTOS = 4
SIDES = {  # what they render at, whatever is requested, or the least that they edit
    "HiDreamImagePipeline": 1024,
    "QwenImageEditPipeline": 64,
    "Flux2Pipeline": 64,
    "Flux2KleinPipeline": 64,
}
SIDE = 32


def try_pipeline(name: str, folder: Path) -> dict[str, Any]:
    """What it makes, kind by kind, and why not the rest."""
    save(name, folder / "pipeline")
    write_photos(folder / "photos")
    with small_references():
        reasons = {kind: _try_kind(kind, folder, SIDES.get(name, SIDE)) for kind in KINDS}
    said = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items() if reason)
    return {"pipeline": name, **{kind: not reason for kind, reason in reasons.items()}, "reason": said}


def save(name: str, folder: Path) -> None:
    pipeline = tiny_pipeline(name)
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    if "processor" in index:  # a narrowed class of transformers' own, saved under this package's name
        index["processor"] = ["transformers", "Qwen2VLProcessor"]
        (folder / "model_index.json").write_text(json.dumps(index))


def write_photos(folder: Path) -> None:
    folder.mkdir()
    lines = ["file_name,caption"]
    for i in range(PHOTOS):
        textured(i, (64, 48)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a thing of kind {i}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


def _try_kind(kind: str, folder: Path, side: int) -> str:
    """The reason why there are no such twins, or nothing."""
    done = run_here(
        "data_gen/make_pairs.py", "--images", folder / "photos", "--generator", folder / "pipeline", "--twins", kind,
        "--captioner", "column", "--steps", 2, "--guidance", 2, "--max_sequence_length", 24, "--render_size", side,
        "--allow_small", True, "--aspect", "square", "--render_batch", 2, "--edit_operations", "inpaint",
        "--edits_on", "photos", "--encode", "png", "--out", folder / kind,
    )  # fmt: skip
    if done.returncode:
        return _short(done.stderr.strip().splitlines()[-1], folder)
    (row, *_) = [row for path in (folder / kind).glob("data/*.parquet") for row in pq.read_table(path).to_pylist()]
    try:
        message = render_row(folder / kind, row["pair_id"], folder / f"{kind}.png")
    except UserError as error:
        return _short(str(error), folder)
    return "" if "the same bytes" in message else _short(message, folder)


def _short(message: str, folder: Path) -> str:
    return first_line(message).removeprefix("error: ").replace(str(folder), "FOLDER")[:200]


def table(rows: list[dict[str, Any]]) -> str:
    """The record in Markdown, as docs/data.md has it."""
    lines = ["| pipeline | " + " | ".join(KINDS) + " | reason |", "|---|" + "---|" * (len(KINDS) + 1)]
    for row in rows:
        cells = ["yes" if row[kind] else "no" for kind in KINDS]
        lines.append(" | ".join([f"| {row['pipeline']}", *cells, row["reason"].replace("|", "/")]).rstrip() + " |")
    return "\n".join(lines)


def write(rows: list[dict[str, Any]]) -> None:
    """Store the record; pipelines that were not tried keep their rows."""
    known = {row["pipeline"]: row for row in json.loads(RECORD.read_text())} if RECORD.exists() else {}
    known |= {row["pipeline"]: row for row in rows}
    rows = [known[name] for name in PIPELINES if name in known]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    RECORD.write_text(f"[\n  {lines}\n]\n", encoding="utf-8")
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{START}\n\n{table(rows)}\n\n{END}{after}", encoding="utf-8")


def main(names: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as home:
            rows.append(try_pipeline(name, Path(home)))
        print(json.dumps(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    chosen = [name for name in sys.argv[1:] if not name.startswith("--")]
    found = main(chosen or list(PIPELINES))
    if "--write" in sys.argv:
        write(found)
