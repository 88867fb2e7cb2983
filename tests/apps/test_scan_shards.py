"""Scans in shards: the same rows by any number of workers, after kills and interruptions, of every kind of input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.apps.stub_scan import DEADLY, Deadly, KilledOnce, StubDetector, StubShard, options_of, scan_with_stub
from tests.jobs.test_executors import cluster  # noqa: F401
from vlm_detect.apps import scan_commands
from vlm_detect.apps.options import Judge
from vlm_detect.apps.scan import scan
from vlm_detect.apps.scan_files import AS_JSON
from vlm_detect.apps.scan_options import ScanOptions
from vlm_detect.apps.scan_shards import count_labels, make_plan, scan_in_shards
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.jobs import shards
from vlm_detect.jobs.launch import Launch


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(60 * (seed % 4), 60 * (seed % 4) + 70, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def save_parquet(path: Path, images: list[bytes]) -> Path:
    pq.write_table(pa.table({"image": [{"bytes": data, "path": None} for data in images]}), path, row_group_size=3)
    return path


@pytest.fixture
def specs(tmp_path: Path) -> list[Path]:
    """Eighteen images in a folder, a tar, a parquet file and a list; one of each kind of broken ones."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(["a.png", "b.png", "deep/c.png", "d.png"]):
        (folder / name).write_bytes(png(seed))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    files = {f"{seed}.png": png(seed) for seed in range(4, 9)} | {"4.json": b"{}", "broken.png": b"no image"}
    (tmp_path / "list.txt").write_text("in/a.png\nin/nowhere.png\n")  # a.png for the second time
    rows = [png(seed) for seed in range(9, 13)]
    return [
        folder,
        save_tar(tmp_path / "one.tar", files),
        save_parquet(tmp_path / "rows.parquet", [*rows, b"", png(13)]),
        tmp_path / "list.txt",
    ]


def rows_of(out: Path) -> list[dict]:
    plan = shards.check_finished(out, "scan")
    rows = [row for shard in range(plan.shards) for row in shards.read_rows(out, shard)]
    return [row | {name: json.loads(row[name]) if row[name] else None for name in AS_JSON} for row in rows]


def rows_of_one_process(specs: list[Path], out: Path) -> list[dict]:
    scan(StubDetector(), [str(spec) for spec in specs], out=out, batch_size=2)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_any_number_of_workers_writes_the_rows_of_one_process(specs: list[Path], tmp_path: Path) -> None:
    expected = rows_of_one_process(specs, tmp_path / "rows.jsonl")
    assert len(expected) == 18
    unreadable = [Path(row["path"]).name for row in expected if row["label"] == "unreadable"]
    assert unreadable == ["broken.jpg", "broken.png", "rows.parquet#4", "nowhere.png"]
    assert {"real", "generated", "unreadable"} == {row["label"] for row in expected}
    for workers in (1, 2, 4):
        out = tmp_path / f"by{workers}"
        labels = scan_with_stub(specs, out, workers)
        assert rows_of(out) == expected
        assert labels["unreadable"] == 4
        record = json.loads((out / "run.json").read_text())
        assert (record["status"], record["images"]) == ("finished", 18)
    assert sorted(path.name for path in out.iterdir()) == ["items.parquet", "plan.json", "run.json", "shards"]
    assert pq.read_table(out / "shards").num_rows == 18  # as other tools read it


def test_the_shard_of_a_killed_worker_is_done_again(
    specs: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scan_with_stub(specs, tmp_path / "out", 2, KilledOnce)
    assert "the worker of shard 1 died: another one does it again" in capfd.readouterr().err
    assert rows_of(tmp_path / "out") == rows_of_one_process(specs, tmp_path / "rows.jsonl")


def test_an_image_that_kills_its_decoder_costs_its_own_row(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for seed in range(6):
        (folder / f"{seed}.png").write_bytes(DEADLY if seed == 4 else png(seed))
    scan_with_stub([folder], tmp_path / "out", 2, Deadly)
    rows = rows_of(tmp_path / "out")
    assert [row["label"] == "unreadable" for row in rows] == [False, False, False, False, True, False]
    assert rows == rows_of_one_process([folder], tmp_path / "rows.jsonl")


def test_an_interrupted_scan_judges_only_what_is_missing(specs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_plan(Judge("nano"), options_of(specs, out), out)
    StubShard(out, Judge("nano"), options_of(specs, out))(3)  # as of an interrupted run
    scan_with_stub(specs, out)
    calls = tmp_path / "out.calls"
    assert len(calls.read_text().splitlines()) == 5  # of five shards
    before = (out / "shards/00003/rows.parquet").stat().st_mtime_ns
    assert scan_with_stub(specs, out) == count_labels(out, shards.read_plan(out))
    assert len(calls.read_text().splitlines()) == 5
    assert (out / "shards/00003/rows.parquet").stat().st_mtime_ns == before


def test_a_scan_of_other_images_or_settings_is_refused(specs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    scan_with_stub(specs, out)
    with pytest.raises(UserError, match=r"threshold was None, is 0\.8.*--out"):
        scan_with_stub(specs, out, threshold=0.8)
    (specs[0] / "new.png").write_bytes(png(40))
    with pytest.raises(UserError, match="the list of images has changed"):
        scan_with_stub(specs, out)
    assert len(rows_of(out)) == 18


def test_a_source_that_is_missing_ends_the_scan_before_it_begins(specs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file"):
        scan_with_stub([*specs, tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_is_not_there_is_said_before_anything_is_listed(
    specs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch on this machine"):
        scan_in_shards(Judge("nano"), options_of(specs, tmp_path / "out"), Launch("slurm"))
    assert not (tmp_path / "out").exists()
    assert "listing" not in capsys.readouterr().err


def test_what_a_run_cannot_give_is_said_before_it_begins(specs: list[Path], tmp_path: Path) -> None:
    for values, said in (({"max_fpr": 0.01}, "no scores of photos"), ({"only_confirmed": True}, "no measures.json")):
        with pytest.raises(UserError, match=said):
            scan_with_stub(specs, tmp_path / "out", explain=True, **values)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--workers", "2"], "of a scan in shards: give --out FOLDER"),
        (["--out", "rows.csv", "--executor", "ray"], "of a scan in shards: give --out FOLDER"),
        (["--out", "folder", "--case", "case"], "--case and a folder of shards"),
        (["--out", "folder", "--shard_size", "0"], "--shard_size 0: give 1 or more"),
    ],
)
def test_flags_that_do_not_go_together(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, UserError)) as caught:
        scan_commands.scan(["--model", "nano", "photos", *given])
    assert said in capsys.readouterr().err + str(caught.value)


def test_a_folder_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "v1.2").mkdir()
    folders, files = (
        ("verdicts", "a.b/verdicts", "verdicts.v2/", str(tmp_path / "v1.2")),
        ("v.csv", "v/rows.jsonl", None),
    )
    assert all(ScanOptions(["x"], out=out).in_shards for out in folders)
    assert not any(ScanOptions(["x"], out=out).in_shards for out in files)


def test_slurm_gets_the_shards_and_the_same_command_ends_the_scan(
    specs: list[Path],
    cluster: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = cluster / "out"
    launch = Launch("slurm", workers=2, gpus=0)
    assert scan_in_shards(Judge("nano"), options_of(specs, out), launch, StubShard) == "4711"
    assert "array=0-1%2" in (cluster / "sbatch_script").read_text()
    assert "18 images in 5 shards, by 2 workers (slurm), model nano" in capsys.readouterr().err
    for shard in range(5):  # what the nodes do
        StubShard(out, Judge("nano"), options_of(specs, out))(shard)
    assert sum(scan_in_shards(Judge("nano"), options_of(specs, out), launch, StubShard).values()) == 18


def test_a_model_says_the_same_in_shards(
    detector: Detector, model_folder: Path, specs: list[Path], tmp_path: Path
) -> None:
    scan(detector, [str(spec) for spec in specs], out=tmp_path / "rows.jsonl", batch_size=2)
    expected = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    scan_in_shards(Judge(str(model_folder)), options_of(specs, tmp_path / "out"), Launch())
    found = rows_of(tmp_path / "out")
    scores = [[row.pop("p_fake") for row in rows] for rows in (expected, found)]
    assert found == expected
    of_one, of_shards = np.array(scores, float)  # NaN of what is unreadable
    np.testing.assert_allclose(of_shards, of_one, atol=2e-6)  # a batch's size changes the last digits


@pytest.mark.slow
def test_memory_is_flat_over_100_000_rows(tmp_path: Path) -> None:
    images = save_parquet(tmp_path / "rows.parquet", [png(seed) for seed in range(500)] * 200)
    script = tmp_path / "run.py"
    script.write_text(
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from tests.apps import stub_scan\n"
        "class Measured(stub_scan.StubShard):\n"
        "    def __call__(self, shard):\n"
        "        super().__call__(shard)\n"
        "        print(shard, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        f"stub_scan.scan_with_stub([{str(images)!r}], Path({str(tmp_path / 'out')!r}), 1, Measured,"
        " shard_size=1000, batch_size=64)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = [int(line.split()[1]) / 1024 for line in done.stdout.splitlines()]
    assert len(peaks) == 100
    assert peaks[-1] - peaks[9] < 64, peaks  # MB, after a tenth of the rows
