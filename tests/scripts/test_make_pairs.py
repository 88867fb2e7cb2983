"""`data_gen/` as a user runs it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from tests.data.factories import save_tiny_pipeline, write_photos
from tests.generate.test_build import FakeHub

ROOT = Path(__file__).parents[2]
RunHere = Callable[..., subprocess.CompletedProcess[str]]


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, str(ROOT / "data_gen" / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """The program in this process, from its first line: importing torch again takes longer than the tests."""

    def call(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [str(ROOT / "data_gen" / script), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(argv[0], run_name="__main__")
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(argv, int(ended.value.code or 0), captured.out, captured.err)

    return call


def without_progress(stderr: str) -> list[str]:
    """The lines but those of steps that take over a minute, as on a busy machine."""
    return [line for line in stderr.splitlines() if not re.search(r", (\S+/s|\?\S+), \S+ left$|pair/s$", line)]


def captioned_photos(folder: Path, count: int) -> None:
    write_photos(folder, count)
    lines = ["file_name,caption", *(f"photo{i:02d}.png,a thing of kind {i}" for i in range(count))]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("models") / "sd3")


def test_photos_to_pairs_and_resume(
    tmp_path: Path, generator: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioned_photos(tmp_path / "photos", 8)
    (tmp_path / "photos" / "unreadable.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"generator: {generator}\nsteps: 2\nmax_sequence_length: 8\nshard_size: 4\n")
    arguments = ["--images", tmp_path / "photos", "--captioner", "column", "--config", settings]
    first = run("make_pairs.py", *arguments, "--out", tmp_path / "pairs", "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert "16 pairs (train 10 of 5 groups, validation 2 of 1 groups, test 4 of 2 groups)" in first.stdout
    assert "1 unreadable" in first.stdout or "1 truncated" in first.stdout
    assert first.stdout.startswith("captions of 9 photos, by column ...\ntwins (caption, vae), by ")
    assert without_progress(first.stderr) == ["make_pairs.py: loading libraries ..."]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs", "photos", "settings.yaml"]

    again = run_here("make_pairs.py", *arguments, "--out", tmp_path / "pairs")
    assert (again.returncode, again.stderr) == (0, "")
    assert "nothing left to do" in again.stdout
    dry = run_here("make_pairs.py", *arguments, "--out", tmp_path / "pairs", "--dry_run", "--push_to_hub", "me/pairs")
    assert (dry.returncode, dry.stdout) == (0, again.stdout)

    # the three steps by themselves make the same files
    caption = run_here("caption.py", *arguments[:4], "--shard_size", "4", "--out", tmp_path / "captions")
    assert caption.returncode == 0, caption.stderr
    options = ["--generator", generator, "--steps", "2", "--max_sequence_length", "8"]
    render = run_here("render.py", "--captions", tmp_path / "captions", "--out", tmp_path / "renders", *options)
    assert render.returncode == 0, render.stderr
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    upload = ["--push_to_hub", "me/pairs"]
    pack = run_here("pack.py", "--renders", tmp_path / "renders", "--out", tmp_path / "by_steps", *upload)
    assert pack.returncode == 0, pack.stderr
    assert "uploaded to https://huggingface.co/datasets/me/pairs" in pack.stdout
    assert {"README.md", "audit.json", "data", "rejects.parquet", "run.json"} == set(FakeHub.calls[1][1])
    for path in sorted((tmp_path / "pairs").rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "by_steps" / path.relative_to(tmp_path / "pairs")).read_bytes()
    opened = datasets.load_dataset(str(tmp_path / "pairs"), cache_dir=str(tmp_path / "cache"))
    assert list(opened) == ["train", "validation", "test"]


def test_an_out_that_cannot_be_written_is_reported(tmp_path: Path, generator: Path, run_here: RunHere) -> None:
    captioned_photos(tmp_path / "photos", 1)
    (tmp_path / "file").write_text("")
    arguments = ["--images", tmp_path / "photos", "--captioner", "column", "--generator", generator]
    done = run_here("make_pairs.py", *arguments, "--out", tmp_path / "file" / "pairs")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot be written (Not a directory); give another --out" in done.stderr


@pytest.mark.parametrize(
    ("flag", "values", "says"),
    [
        ("--limit", ["0"], "give 1 or more"),
        ("--workers", ["0"], "give 1 or more"),
        ("--shard_size", ["-2"], "give 1 or more"),
        ("--caption_batch", ["0"], "give 1 or more"),
        ("--steps", ["0"], "give 1 or more"),
        ("--render_size", ["1"], "give 16 or more"),
        ("--dtype", ["int4"], "--dtype: int4: choose from auto, float32"),
        ("--quality", ["200"], "give 1 to 100"),
        ("--duplicate_bits", ["64"], "give 0 to 32"),
        ("--validation", ["0.5", "--test", "0.5"], "with a sum below 1"),
        ("--hold_out", ["nobody"], "give generator=NAME, or source=GLOB"),
    ],
)
def test_a_value_out_of_bounds_is_a_wrong_argument(
    tmp_path: Path, run_here: RunHere, flag: str, values: list[str], says: str
) -> None:
    done = run_here("make_pairs.py", "--images", tmp_path, flag, *values, "--out", tmp_path / "pairs")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert flag in done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--images", "{empty}", "--captioner", "column"], 1, "no images in this folder"),
        (["--images", "{photos}", "--captioner", "column", "--generator", "no-such-model"], 1, "no-such-model"),
        (["--images", "{photos}", "--captioner", "column", "--generator", "owner/no-such"], 1, "owner/no-such"),
        (["--images", "{photos}", "--captioner", "nobody/nothing", "--generator", "{generator}"], 1, "nobody/nothing"),
        (["--images", "{photos}", "--push_to_hub", "no name"], 2, "not a Hub name like owner/name"),
        (["--images", "{photos}", "--twins", "cartoon"], 2, "unknown cartoon; choose from caption, vae, edit"),
        (["--limit", "3"], 2, "--images"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    tmp_path: Path, generator: Path, run_here: RunHere, arguments: list[str], status: int, says: str
) -> None:
    (tmp_path / "empty").mkdir()
    captioned_photos(tmp_path / "photos", 1)
    named = {"empty": tmp_path / "empty", "photos": tmp_path / "photos", "generator": generator}
    texts = [text.format(**named) for text in arguments]
    for dry_run in ([], ["--dry_run"]):  # what cannot be done is no plan either
        done = run_here("make_pairs.py", *texts, "--out", tmp_path / "pairs", *dry_run)
        assert done.returncode == status
        assert says in done.stderr
        if status == 1:
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1
        assert not (tmp_path / "pairs").exists()
        assert not list(tmp_path.glob("pairs.work/*"))
