"""The table of a paper, from small sets and a model of a few thousand random weights."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tests.data.factories import photo
from tests.factories import tiny_vlm
from tests.scripts.here import run_here
from vlm_detect.benchmark.options import PaperTableOptions
from vlm_detect.benchmark.paper_formats import latex, markdown
from vlm_detect.benchmark.paper_table import smallest_side, table_row, verdict_items
from vlm_detect.benchmark.perturb import aligned
from vlm_detect.benchmark.summary import ItemScore
from vlm_detect.columns import IMAGE_FEATURES
from vlm_detect.questions.prompts import topic_of

PROGRAM = "eval/paper_table.py"


def cell(seed: int, size: tuple[int, int], kind: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    photo(seed, size).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def write_set(folder: Path, labels: Sequence[str], *, leaks: bool) -> Path:
    """Two generators; a set that leaks has JPEG photos, and generated PNGs of another size."""
    rows = []
    for i, label in enumerate(labels):
        is_photo = label == "real" or not leaks
        row = dict.fromkeys(IMAGE_FEATURES)
        row |= {
            "image": cell(i, (40, 24) if is_photo else (28, 28), "JPEG" if is_photo else "PNG"),
            "label": label,
            "generator": "" if label == "real" else ("sdxl", "flux_dev")[i // 2 % 2],
            "group": f"g{i}",
        }
        rows.append(row)
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(rows, features=IMAGE_FEATURES).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    vlm = tiny_vlm()
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    leaky = write_set(tmp_path / "leaky_set", ["real", "generated"] * 10, leaks=True)
    clean = write_set(tmp_path / "clean", ["real", "generated"] * 6, leaks=False)
    args = (leaky, clean, "--models", tmp_path / "model", "--out", tmp_path / "out")
    done = run_here(PROGRAM, *args)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    rows = table["rows"]
    assert [(row["set"], row["condition"], row["side"], row["n"]) for row in rows] == [
        ("leaky_set", "clean", None, 20),
        ("leaky_set", "aligned", 24, 20),  # no image is enlarged
        ("clean", "clean", None, 12),
        ("clean", "aligned", 24, 12),
    ]
    for row in rows:
        low, high = row["ci95"]["balanced_accuracy"]
        assert low <= row["balanced_accuracy"] <= high
        assert row["balanced_accuracy"] == pytest.approx((row["real_accuracy"] + row["fake_accuracy"]) / 2, abs=1e-3)
        assert row["worst_generator"]["name"] in ("sdxl", "flux_dev")
    by_name = {probe["name"]: probe for probe in table["sets"]["leaky_set"]["probes"]}
    assert by_name["format"]["is_leak"]
    assert by_name["size"]["is_leak"]
    assert not any(probe["is_leak"] for probe in table["sets"]["clean"]["probes"])
    text = (tmp_path / "out" / "table.md").read_text()
    assert text in done.stdout
    assert "| leaky_set, aligned to 24 px |" in text
    assert r"leaky\_set, aligned to 24 px & model & 20 &" in (tmp_path / "out" / "table.tex").read_text()

    again = run_here(PROGRAM, *args)
    assert again.returncode == 0
    assert "prompts," not in again.stderr  # nothing was asked again
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == table


def test_bad_sets_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    reals = write_set(tmp_path / "reals", ["real"] * 3, leaks=False)
    for sets, says in (
        ([tmp_path / "nowhere"], "no such folder; give a dataset made by import-images"),
        ([reals], "its test split has images of one class only"),
    ):
        done = run_here(PROGRAM, *sets, "--models", "nano", "--out", tmp_path / "out")
        assert done.returncode == 1
        assert says in done.stderr.splitlines()[-1]


def test_a_set_of_edits_is_asked_about_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    edits = write_set(tmp_path / "edits", ["real", "edited"] * 3, leaks=False)
    found = verdict_items(edits, PaperTableOptions([str(edits)], ["m"]))
    assert [topic_of(item) for item in found.items] == ["edit"] * 6
    assert sorted(item.metadata["label"] for item in found.items) == ["edited"] * 3 + ["real"] * 3
    mixed = write_set(tmp_path / "mixed", ["real", "edited", "generated"] * 2, leaks=False)
    found = verdict_items(mixed, PaperTableOptions([str(mixed)], ["m"]))
    assert sorted(item.metadata["label"] for item in found.items) == ["generated"] * 2 + ["real"] * 2
    assert smallest_side(found, 256) == 24
    assert smallest_side(found, 20) == 20


def test_an_aligned_image_has_one_size_and_one_encoding() -> None:
    condition = aligned(16)
    wide, tall = (condition.apply(photo(0, size), seed="x") for size in ((40, 20), (20, 60)))
    assert wide.size == tall.size == (16, 16)
    square = Image.new("RGB", (60, 20), "red")
    square.paste("blue", (20, 0, 40, 20))
    assert np.abs(np.asarray(condition.apply(square, seed="x"), int) - (0, 0, 255)).max() < 8  # the centre, unsquashed


def score(i: int, *, fake: bool, p_fake: float, generator: str = "") -> ItemScore:
    said = p_fake >= 0.5
    facts = (f"{i}", "true_false", f"g{i}", generator, "", fake, p_fake, said, float(said == fake), True, ())
    return ItemScore(*facts)


def test_the_figures_of_a_row() -> None:
    scores = [score(i, fake=False, p_fake=0.1 if i else 0.7) for i in range(4)]
    scores += [score(10 + i, fake=True, p_fake=0.9, generator="sdxl") for i in range(3)]
    scores += [score(20 + i, fake=True, p_fake=0.2 + 0.6 * (i > 0), generator="flux") for i in range(3)]
    row = table_row(scores, resamples=50)
    assert (row["n"], row["real_accuracy"], row["fake_accuracy"]) == (10, 0.75, pytest.approx(5 / 6))
    assert row["balanced_accuracy"] == pytest.approx((0.75 + 5 / 6) / 2)
    assert (row["worst_generator"]["name"], row["worst_generator"]["n"]) == ("flux", 3)
    assert row["worst_generator"]["accuracy"] == pytest.approx(2 / 3)
    assert 0.5 < row["auroc"] < 1


def test_markdown_and_latex() -> None:
    figures = dict.fromkeys(("balanced_accuracy", "real_accuracy", "fake_accuracy", "ap", "auroc"), 0.5)
    ci95 = dict.fromkeys(figures, None) | {"ap": [0.25, 0.75]}
    facts = {"set": "a_b", "model": "x|y", "condition": "clean", "side": None, "n": 4, "worst_generator": None}
    probes = [
        {"name": "format", "auc": 0.98, "ci95": [0.9, 1], "is_leak": True},
        {"name": "size", "auc": 0.5, "ci95": [0.4, 0.6], "is_leak": False},
    ]
    table = {"rows": [{**facts, **figures, "ci95": ci95}], "sets": {"a_b": {"probes": probes}}}
    assert r"| a_b | x\|y | 4 | 50.0 | 50.0 | 50.0 | 50.0 [25.0, 75.0] | 50.0 | - | format 0.98 |" in markdown(table)
    lines = latex(table).splitlines()
    assert r"a\_b & x|y & 4 & 50.0 & 50.0 & 50.0 & 50.0 [25.0, 75.0] & 50.0 & - & format 0.98 \\" in lines
    assert lines[-1] == r"\end{tabular}"
    table["sets"]["a_b"]["probes"] = probes[1:]
    assert "| none (largest: size 0.50) |" in markdown(table)
