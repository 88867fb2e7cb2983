"""`eval/vqa_benchmark.py` as a user runs it, on a model of a few thousand random weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench_suite.fake_endpoint import fake_endpoint
from tests.bench_suite.fakes import choice_row, verdict_rows, write_benchmark
from tests.factories import tiny_vlm
from tests.scripts.here import run_here
from vlm_detect.baselines.configuration import CnnConfig
from vlm_detect.baselines.model import CnnForDetection
from vlm_detect.train.calibration import Calibration

SCRIPT = Path(__file__).parents[2] / "eval" / "vqa_benchmark.py"
CPU = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def here(*args: object) -> subprocess.CompletedProcess[str]:
    return run_here("eval/vqa_benchmark.py", *args)


def run(*args: object, launch: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *launch, str(SCRIPT), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=CPU, timeout=120, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    vlm = tiny_vlm()
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    return write_benchmark(folder, verdict_rows(folder, 6))


@pytest.fixture(scope="module")
def whole_run(
    model: Path, benchmark: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[object, ...]]:
    """A finished run's folder and the arguments that made it, `--out` last."""
    out = tmp_path_factory.mktemp("run") / "out"
    args = ("--model", model, "--benchmark", benchmark, "--max_new_tokens", 4)
    done = run(*args, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, args


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_what_a_run_leaves_behind(whole_run: tuple[Path, tuple[object, ...]]) -> None:
    out, args = whole_run
    assert len(lines(out)) == 6 * 3
    summary = json.loads((out / "summary.json").read_text())
    assert summary["n"] == summary["groups"] == summary["generate"]["n"] == 6
    assert summary["by_generator"]["big_gan"]["n"] == 3
    assert set(summary["ci95"]) >= {"accuracy", "auroc"}
    assert summary["floors"]["chance"] == 0.5
    assert json.loads((out / "run.json").read_text())["items"] == 6
    html = (out / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html), "the page loads something from outside"
    assert len(re.findall(r"<img ", html)) == len(re.findall(r"<img [^>]*alt=\"[^\"]+\"", html))

    again = here(*args, "--out", out)
    assert (again.returncode, "nothing is left to do" in again.stdout) == (0, True)


def test_an_interrupted_run_goes_on(whole_run: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    finished, args = whole_run
    whole, out = lines(finished), tmp_path / "out"
    out.mkdir()
    # As after an interruption: seven answers and a half line, no run.json.
    (out / "settings.json").write_text((finished / "settings.json").read_text())
    (out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole[:7]) + '{"id": "it')
    resumed = here(*args, "--out", out)
    assert resumed.returncode == 0, resumed.stderr
    assert "7 of 18 prompts were answered before" in resumed.stderr
    rounded = [{**row, "logprobs": None, "p_fake": None} for row in lines(out)]
    assert rounded == [{**row, "logprobs": None, "p_fake": None} for row in whole]

    other = here("--model", "nano", *args[2:], "--out", out)
    assert other.returncode == 1
    assert re.fullmatch(r"error: .*holds the answers of another run.*choose another --out.*\n", other.stderr)


def test_two_processes_give_one_result(whole_run: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    finished, args = whole_run
    # Not `accelerate launch --cpu --num_processes 2`, which silently runs one process.
    launch = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29533")
    together = run(*args, "--out", tmp_path / "two", launch=launch)
    assert together.returncode == 0, together.stderr
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    one, two = lines(finished), lines(tmp_path / "two")
    assert [(r["id"], r["scoring"], r["polarity"]) for r in one] == [
        (r["id"], r["scoring"], r["polarity"]) for r in two
    ]
    for a, b in zip(one, two, strict=True):
        assert a["logprobs"] == (None if b["logprobs"] is None else pytest.approx(b["logprobs"], abs=1e-4))
    assert not list((tmp_path / "two").glob("*part*"))


def test_recorded_answers_need_no_model(tmp_path: Path) -> None:
    rows = verdict_rows(tmp_path, 4)
    answers = ["Real", "fake.", "Fake", "It is unrealistic"]
    path = write_benchmark(tmp_path, [{**row, "answer": a} for row, a in zip(rows, answers, strict=True)])
    for image in tmp_path.glob("*.png"):
        image.unlink()
    done = here("--answers", path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["accuracy"] == summary["generate"]["accuracy"] == 0.5
    assert summary["generate"]["exact_match"] == 0.25  # "fake." is read, but is not to the letter
    assert summary["generate"]["unparsed"] == 1


def test_bad_items_stop_the_run_before_the_model_loads(benchmark: Path, tmp_path: Path) -> None:
    rows = [*verdict_rows(tmp_path, 2), {"id": "bad", "image": "none.png", "question": "Q", "ground_truth": "Real"}]
    path = write_benchmark(tmp_path, rows)
    refused = here("--model", "no/such-model", "--benchmark", path, "--out", tmp_path / "out")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "none.png is missing" in refused.stderr
    assert "--skip_bad" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_behind_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_benchmark(tmp_path, [*verdict_rows(tmp_path, 4), choice_row(tmp_path)])
    monkeypatch.setenv("SOME_KEY", "secret")
    with fake_endpoint(key="secret") as server:
        args = ("--endpoint", server.url, "--model", "fake-vlm", "--benchmark", path, "--out", tmp_path / "out")
        refused = here(*args)
        assert (refused.returncode, "refuses the key" in refused.stderr) == (1, True)
        args = (*args, "--api_key_env", "SOME_KEY")
        first = here(*args, "--limit", 2)
        assert first.returncode == 0, first.stderr
        asked = len(server.requests)
        # More of the same: what is answered is not asked again, nor what the endpoint takes.
        done = here(*args)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == asked + 2 * 2 + 4
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["n"], summary["accuracy"], summary["generate"]["accuracy"]) == (5, 1, 1)
    assert "first token" in (tmp_path / "out" / "report.html").read_text()
    for name in ("run.json", "settings.json"):
        assert "secret" not in (tmp_path / "out" / name).read_text()
    assert here("--endpoint", "http://localhost:1/v1", "--benchmark", path).returncode == 2


def test_a_cnn_in_the_same_table(tmp_path: Path) -> None:
    config = CnnConfig(heads={"verdict": ["real", "generated"]})
    CnnForDetection(config).save_pretrained(tmp_path / "cnn")
    Calibration(n=20, threshold=0.4).save(tmp_path / "cnn")
    path = write_benchmark(tmp_path, [*verdict_rows(tmp_path, 4), choice_row(tmp_path)])
    done = here("--model", tmp_path / "cnn", "--benchmark", path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "cnn" / "eval"
    assert {row["scoring"] for row in lines(out)} == {"logprob"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["by_kind"]["multiple_choice"]["accuracy"] in (0, 0.5)
    assert summary["calibrated"]["threshold"] == 0.4
    html = (out / "report.html").read_text()
    assert "the reasons of one class tie" in html
    assert "Calibrated" in html


def test_wrong_arguments() -> None:
    assert here("--no_such_flag", "1").returncode == 2
    assert here("--limit", "3").returncode == 2
