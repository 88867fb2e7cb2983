"""`eval/compare.py` as a user runs it."""

import json
from pathlib import Path

from tests.benchmark.fakes import verdict_rows, write_benchmark
from tests.pages.test_page import assert_self_contained
from tests.scripts.here import run_here


def test_two_score_files_over_one_benchmark(tmp_path: Path) -> None:
    benchmark = write_benchmark(tmp_path, verdict_rows(tmp_path, 12))
    for name, odd in (("good", 0.9), ("poor", 0.4)):
        rows = [f"{i}.png,{odd if i % 2 else 0.3 + i / 100}" for i in range(12)]
        (tmp_path / f"{name}.csv").write_text("image,p_fake\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    files = (tmp_path / "poor.csv", tmp_path / "good.csv")
    done = run_here("eval/compare.py", *files, "--benchmark", benchmark, "--out", out, "--by", "generator")
    assert done.returncode == 0, done.stderr
    assert "1.000" in done.stdout
    found = json.loads((out / "compare.json").read_text())
    assert found["against_first"]["good"]["mcnemar"]["only_second"] == 6
    html = (out / "report.html").read_text()
    assert_self_contained(html)
    for part in ("good", "poor", "McNemar", "big_gan", "chance 0.500"):
        assert part in html, part


def test_bad_input(tmp_path: Path) -> None:
    assert run_here("eval/compare.py").returncode == 2
    missing = run_here("eval/compare.py", tmp_path / "none.csv", "--out", tmp_path / "out")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert run_here("eval/compare.py", tmp_path, "--by", "x").returncode == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text("image,p_fake,label\na.png,0.9,fake\n")
    for out in (scores, scores / "below"):
        done = run_here("eval/compare.py", scores, "--out", out)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert str(scores) in done.stderr


def test_runs_of_the_same_name_are_distinguished_by_their_paths(tmp_path: Path) -> None:
    scores = "image,p_fake,label\n0.png,0.1,real\n1.png,0.9,generated\n"
    files = [tmp_path / folder / "scores.csv" for folder in ("one", "two")]
    for file in files:
        file.parent.mkdir()
        file.write_text(scores)
    done = run_here("eval/compare.py", *files, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "out" / "compare.json").read_text())["runs"]) == {
        "one/scores.csv",
        "two/scores.csv",
    }
    twice = run_here("eval/compare.py", files[0], files[0], "--out", tmp_path / "out")
    assert twice.returncode == 1
    assert "give each run once" in twice.stderr
