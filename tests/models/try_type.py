"""One image-text type of transformers, tried on a tiny model: what works of it, and why the rest does not.

found = try_type("qwen3_vl", tmp_path)     # {model_type, loads, ..., merges, packs, caches, reason}
python -m tests.models.try_type            # every type, each in a process of its own; writes the record
"""

from __future__ import annotations

import json
import math
import multiprocessing
import queue
import sys
import tempfile
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.models.tiny_types import TYPES, Untried, save_tiny_type
from tests.train.toys import stored
from vlm_detect.errors import UserError, first_line
from vlm_detect.extras import asked_for
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import score_plain
from vlm_detect.models.base import VLM
from vlm_detect.models.export import export
from vlm_detect.models.registry import load_vlm
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions

RECORD = Path(__file__).parents[2] / "eval" / "results" / "models.json"
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- types: python -m tests.models.try_type --write -->", "<!-- end of types -->"
STEPS = ("loads", "scores", "trains", "generates", "merges")
SHARED = ("packs", "caches")  # whether an image's prefix is shared: a model works without
COLUMNS = (*STEPS, *SHARED)
LIMIT_S = 300


def photo(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def try_type(model_type: str, folder: Path) -> dict[str, Any]:
    """What works, step by step; a step that fails ends it, with its reason in one line."""
    found: dict[str, Any] = {"model_type": model_type, **dict.fromkeys(COLUMNS, False), "reason": ""}
    try:
        save_tiny_type(model_type, folder / "base")
        vlm = load_vlm(str(folder / "base"), device="cpu")
        found["loads"] = True
        _scores(vlm)
        found["scores"] = True
        found |= {"packs": vlm.supports_packing, "caches": vlm.supports_prefix_cache}
        _trains(vlm)
        found["trains"] = True
        (texts,) = Engine(vlm).generate([photo()], [["What is it?"]], max_new_tokens=3)
        assert len(texts) == 1
        found["generates"] = True
        _merges(vlm, folder)
        found["merges"] = True
    except Untried as error:
        found["reason"] = str(error)
    except UserError as error:
        found["reason"] = first_line(error).removeprefix(f"{folder / 'base'}: ").replace(str(folder), "MODEL")
    except Exception as error:
        needed = asked_for(error)
        found["reason"] = needed or f"{type(error).__name__}: {first_line(error)}".replace(str(folder), "MODEL")[:200]
        if "--debug" in sys.argv:
            print(model_type, *traceback.format_exc().splitlines()[-14:], sep="\n", file=sys.stderr)
    return found


def _scores(vlm: VLM) -> None:
    """An answer has a finite log-probability, which depends on the image and on the question."""
    asked = [[Ask("Is it AI?", ("Yes.",)), Ask("Is it a ship at sea?", ("Yes.",))]]
    one, other = (Engine(vlm).score([photo(seed)], asked)[0] for seed in (0, 1))
    values = [score.logprob for ((score,), *_) in (one, other, one[1:])]
    assert all(map(math.isfinite, values)), f"log-probabilities {values}"
    assert values[0] != values[1], "another image gives the same score"
    assert values[0] != values[2], "another question gives the same score"
    plain = score_plain(vlm, photo(), "Is it AI?", "Yes.").logprob
    assert abs(plain - values[0]) < 1e-3, f"{values[0]} against {plain} on the plain path"


def _trains(vlm: VLM) -> None:
    """The loss is what scoring gives, it falls, and every weight of the LoRA takes part."""
    questions = [Question("yes_no", "Is it AI?", "Yes."), Question("explain", "Why is it so?", "The hand is odd.")]
    examples = [Example(stored(photo(seed)), questions, "real") for seed in (2, 3)]
    batch = Collator(vlm, pack=True)([examples])
    with torch.no_grad():
        before = float(answer_loss(vlm, vlm.model, batch))
    asked = [score_plain(vlm, e.image.open(), q.question, q.answer) for e in examples for q in e.questions]
    expected = -sum(s.logprob for s in asked) / sum(s.n_tokens for s in asked)
    # Towers that round (codes, packed patches) give an image in a batch not quite what they give it alone.
    assert abs(before - expected) < 1e-3 * expected, f"the loss is {before:.4f}, the scores give {expected:.4f}"
    add_lora(vlm, LoraOptions())
    vlm.model.train()
    trained = {n: p for n, p in vlm.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=3e-3)
    losses = []
    for _ in range(6):
        loss = answer_loss(vlm, vlm.model, batch)
        optimizer.zero_grad()
        loss.backward()
        untouched = [n for n, p in trained.items() if p.grad is None]
        assert not untouched, f"{len(untouched)} of {len(trained)} get no gradient: {untouched[0]}"
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0], f"the loss goes from {losses[0]:.3f} to {losses[-1]:.3f}"
    vlm.model.eval()


def _merges(vlm: VLM, folder: Path) -> None:
    """The saved LoRA, loaded again and merged, gives the tuned scores."""
    vlm.model.save_pretrained(folder / "run", save_embedding_layers=False)
    tuned = score_plain(vlm, photo(), "Is it AI?", "Yes.").logprob
    again = score_plain(load_vlm(str(folder / "run"), device="cpu"), photo(), "Is it AI?", "Yes.").logprob
    assert abs(again - tuned) < 1e-3, f"tuned {tuned:.4f}, loaded again {again:.4f}"
    export(str(folder / "run"), "merged", folder / "merged")
    merged = score_plain(load_vlm(str(folder / "merged"), device="cpu"), photo(), "Is it AI?", "Yes.").logprob
    assert abs(merged - tuned) < 2e-3, f"tuned {tuned:.4f}, merged {merged:.4f}"


def _try_aside(model_type: str, results: Any) -> None:
    with tempfile.TemporaryDirectory() as home, redirect_stdout(sys.stderr):
        results.put(try_type(model_type, Path(home)))


def main(types: list[str]) -> list[dict[str, Any]]:
    """Every type in a process of its own, so that none can take the others with it."""
    rows = []
    forks = multiprocessing.get_context("fork")
    for model_type in types:
        results = forks.Queue()
        process = forks.Process(target=_try_aside, args=(model_type, results))
        process.start()
        try:
            row = results.get(timeout=LIMIT_S)
        except queue.Empty:  # it took too long, or died
            row = {"model_type": model_type, **dict.fromkeys(COLUMNS, False), "reason": f"not done within {LIMIT_S} s"}
            process.kill()
        process.join()
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The record in Markdown, as docs/models.md has it."""
    lines = ["| type | " + " | ".join(COLUMNS) + " | reason |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for row in rows:
        cells = ["yes" if row[step] else "no" for step in COLUMNS]
        lines.append(" | ".join([f"| {row['model_type']}", *cells, row["reason"].replace("|", "/")]).rstrip() + " |")
    return "\n".join(lines)


def write(rows: list[dict[str, Any]]) -> None:
    """Store the record; types that were not tried keep their rows."""
    known = {row["model_type"]: row for row in json.loads(RECORD.read_text())} if RECORD.exists() else {}
    known |= {row["model_type"]: row for row in rows}
    rows = [known[name] for name in TYPES if name in known]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    RECORD.write_text(f"[\n  {lines}\n]\n", encoding="utf-8")
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{START}\n\n{table(rows)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = [name for name in sys.argv[1:] if not name.startswith("--")]
    found = main(chosen or list(TYPES))
    if "--write" in sys.argv:
        write(found)
