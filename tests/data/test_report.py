"""The page of a dataset: self-contained, with everything that is known of it."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_audit import jpeg, pair_row, photo, write_pairs
from vlm_detect.cli import run
from vlm_detect.columns import IMAGE_FEATURES, PROMPTED_FEATURES, REJECT_FEATURES
from vlm_detect.data.report import write_report
from vlm_detect.errors import UserError
from vlm_detect.jobs.shards import write_rows

SOURCE = {"path_or_id": "a.jpg", "format": "JPEG", "licence": None}


def test_the_page_of_a_pair_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for i in range(6):
        source = {**SOURCE, "sha256": f"{i}", "width": 640 + i, "height": 480, "jpeg_quality": 90 + i}
        edit = {"operation": "blur", "box": [1, 2, 30, 40], "strength": 0.1} if i == 5 else None
        rows.append(
            pair_row(i, kind="edit" if edit else "caption") | {"source": source, "edit": edit, "generator": "g"}
        )
    folder = write_pairs(tmp_path / "pairs", rows)
    rejects = [
        {"id": f"{i}.jpg", "stage": "decode", "reason": "not_an_image", "detail": "<b>bytes</b>"} for i in (7, 8)
    ]
    write_rows(folder / "rejects.parquet", rejects, REJECT_FEATURES)
    run(["report", str(folder), "--n", "4"])
    assert "4 rows shown" in capsys.readouterr().out
    page = (folder / "report.html").read_text()
    assert page.count("<article") == 4
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # nothing is fetched
    assert all(f'alt="{alt}' in page for alt in ("real image", "Size of the sources", "Compression of the sources"))
    assert "not an image" in page
    assert "&lt;b&gt;bytes" in page
    assert "frequency (content)" in page
    assert f"{len(rows)} pairs of {len(rows)} source photos in {len(rows)} groups" in page
    write_report(folder, tmp_path / "again.html", n=4)
    assert (tmp_path / "again.html").read_text() == page


def test_the_page_of_an_image_dataset(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [
        {"image": {"bytes": jpeg(photo(i))[0], "path": None}, "label": label, "group": f"{i}", "object_class": "cat"}
        for i, label in enumerate(["real", "generated"])
    ]
    table = pa.Table.from_pylist(rows, schema=IMAGE_FEATURES.arrow_schema)
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    assert write_report(tmp_path, tmp_path / "page.html") == 2
    page = (tmp_path / "page.html").read_text()
    assert "Too few images for an audit" in page
    assert "Nothing was left out" in page
    assert "2 images in 2 groups" in page


def test_edits_have_a_separate_figure(tmp_path: Path) -> None:
    rows = [pair_row(i, kind=kind) | {"generator": "g"} for i in range(8) for kind in ("caption", "edit")]
    for i, row in enumerate(rows[1::2]):
        row["edit"] = {"operation": "blur", "box": [1, 2, 30, 40], "strength": 0.1}
        row["twin"] = {"bytes": jpeg(photo(900 + i, (64, 48)))[0], "path": None}
    write_report(write_pairs(tmp_path / "pairs", rows), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'alt="Real or generated: AUC of the probes' in page
    assert 'alt="Edited or not: AUC of the probes' in page


def test_prompted_images_show_their_prompt_and_are_no_source(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    source = {**SOURCE, "sha256": "ab", "width": 640, "height": 480, "jpeg_quality": 90}
    rendered = {"path_or_id": "prompt: a red cat (seed 1)", "width": 32, "height": 32}
    rows = [
        {"id": f"{i}", "image": {"bytes": jpeg(photo(i))[0], "path": None}, "label": label, "group": f"{i}"} | more
        for i, (label, more) in enumerate(
            {"real": {"source": source}, "generated": {"source": rendered, "prompt": "a red cat"}}.items()
        )
    ]
    table = pa.Table.from_pylist(rows, schema=PROMPTED_FEATURES.arrow_schema)
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    write_report(tmp_path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "a red cat" in page
    assert "real median 640; from 640 to 640" in page  # the rendered one's size is not among those of the sources


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for text, says in ((b"none", "cannot be read as parquet"), (None, "not a dataset folder of vlm-detect")):
        file = tmp_path / "data" / "train-00000.parquet"
        pq.write_table(pa.table({"image": [b""], "label": [0]}), file) if text is None else file.write_bytes(text)
        with pytest.raises(UserError, match=says):
            write_report(tmp_path, tmp_path / "page.html")
        file.unlink()
    with pytest.raises(UserError, match="not a dataset folder of vlm-detect"):
        write_report(tmp_path, tmp_path / "page.html")


def test_a_page_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [pair_row(i) | {"generator": "g"} for i in range(2)])
    with pytest.raises(UserError, match=r"README.md/page.html: the page cannot be written .*; give another --out"):
        write_report(folder, folder / "README.md" / "page.html", n=1)
