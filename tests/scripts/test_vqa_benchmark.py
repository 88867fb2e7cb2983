"""`eval/vqa_benchmark.py` as a user runs it, on a model of a few thousand random weights."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark
from tests.factories import tiny_vlm
from tests.infer.fake_endpoint import fake_endpoint
from tests.scripts.here import run_here
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.model import CnnForDetection
from vlm_detect.stats.calibration import Calibration

SCRIPT = Path(__file__).parents[2] / "eval" / "vqa_benchmark.py"
# Not `accelerate launch --cpu --num_processes 2`, which silently runs one process.
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
CPU = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def here(*args: object) -> subprocess.CompletedProcess[str]:
    return run_here("eval/vqa_benchmark.py", *args)


def command(*args: object, launch: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launch, str(SCRIPT), *map(str, args)]


def run(*args: object, launch: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args, launch=launch), capture_output=True, text=True, env=CPU, timeout=540, check=False
    )


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


def test_output_files_of_a_run(whole_run: tuple[Path, tuple[object, ...]]) -> None:
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


def test_an_interrupted_run_continues(whole_run: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    finished, args = whole_run
    whole, out = lines(finished), tmp_path / "out"
    out.mkdir()
    # As after an interruption: seven answers and a half line, no run.json.
    (out / "settings.json").write_text((finished / "settings.json").read_text())
    (out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole[:7]) + '{"id": "it')
    resumed = here(*args, "--out", out)
    assert resumed.returncode == 0, resumed.stderr
    assert "7 of 18 prompts are already answered" in resumed.stderr
    rounded = [{**row, "logprobs": None, "p_fake": None} for row in lines(out)]
    assert rounded == [{**row, "logprobs": None, "p_fake": None} for row in whole]

    other = here("--model", "nano", *args[2:], "--out", out)
    assert other.returncode == 1
    assert re.fullmatch(r"error: .*contains the answers of another run.*choose another --out.*\n", other.stderr)


@pytest.mark.slow  # tests/benchmark/test_answer_shards.py has two workers
def test_two_processes_give_one_result(whole_run: tuple[Path, tuple[object, ...]], tmp_path: Path) -> None:
    finished, args = whole_run
    together = run(*args, "--out", tmp_path / "two", launch=TWO)
    assert together.returncode == 0, together.stderr
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    one, two = lines(finished), lines(tmp_path / "two")
    assert [(r["id"], r["scoring"], r["polarity"]) for r in one] == [
        (r["id"], r["scoring"], r["polarity"]) for r in two
    ]
    for a, b in zip(one, two, strict=True):
        assert a["logprobs"] == (None if b["logprobs"] is None else pytest.approx(b["logprobs"], abs=1e-4))
    assert not list((tmp_path / "two").glob("*part*"))


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[object, ...]]:
    """A long run of two processes: its folder, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write_benchmark(folder, [*verdict_rows(folder, 100), choice_row(folder)])
    args = ("--model", model, "--benchmark", path, "--max_new_tokens", 4, "--batch_size", 1)
    done = run(*args, "--out", folder / "out", launch=TWO)
    assert done.returncode == 0, done.stderr
    return folder / "out", args


@pytest.mark.slow
@pytest.mark.parametrize("launch", [TWO, ()], ids=["two again", "then one"])
def test_killed_and_run_again(
    undisturbed: tuple[Path, tuple[object, ...]], tmp_path: Path, launch: tuple[str, ...]
) -> None:
    """SIGKILL to both processes in the middle; the second run leaves what an undisturbed one does."""
    finished, args = undisturbed
    whole, out = lines(finished), tmp_path / "killed"
    assert len(whole) == 100 * 3 + 4 + 1

    process = subprocess.Popen(command(*args, "--out", out, launch=TWO), env=CPU, stderr=subprocess.DEVNULL)
    # Both at work: the second may come up long after the first.
    while (answered(out) < 60 or len(list(out.glob("results*.jsonl"))) < 2) and process.poll() is None:
        time.sleep(0.01)
    # The launcher's children have sessions of their own, and outlive it.
    for one in [process, *psutil.Process(process.pid).children(recursive=True)]:
        one.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "run.json").exists()
    before = answered(out)
    assert 60 <= before < len(whole)
    assert len(list(out.glob("results*.jsonl"))) == 2

    again = run(*args, "--out", out, launch=launch)
    assert again.returncode == 0, again.stderr
    resumed = re.search(r"(\d+) of 305 prompts are already answered", again.stderr)
    assert resumed
    assert before - 2 <= int(resumed[1]) <= before  # at most one truncated line per process
    assert json.loads((out / "run.json").read_text())["processes"] == (2 if launch else 1)
    after = lines(out)
    keys = [(row["id"], row["scoring"], row["polarity"], row["rotation"]) for row in after]
    assert len(set(keys)) == len(keys)
    numbers = ("logprobs", "p_fake")
    for row, expected in zip(after, whole, strict=True):
        assert {**row, **dict.fromkeys(numbers)} == {**expected, **dict.fromkeys(numbers)}
        if expected["logprobs"]:
            assert row["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-4)
    figures = [json.loads((folder / "summary.json").read_text()) for folder in (out, finished)]
    assert figures[0]["accuracy"] == figures[1]["accuracy"]
    assert not list(out.glob("*part*"))


def answered(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in out.glob("results*.jsonl"))


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
    good = write_benchmark(tmp_path, rows[:2])
    for flags, said in (
        (("--benchmark", good, "--by", "colour"), "no item has this column; available: generator"),
        (("--benchmark", tmp_path), "no split named test"),
        (("--benchmark", good, "--out", good), "is a file"),
    ):
        refused = here("--model", "nano", *flags)
        assert (refused.returncode, said in refused.stderr, refused.stderr.count("\n")) == (1, True, 1)


def test_bad_items_are_left_out_and_counted(tmp_path: Path) -> None:
    answered = [{**row, "answer": "Real"} for row in verdict_rows(tmp_path, 2)]
    lines = [json.dumps(row) for row in [*answered, answered[0]]]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join([*lines, '{"id": ', "7"]))
    out = tmp_path / "out"
    done = here("--answers", path, "--skip_bad", "--out", out)
    assert (done.returncode, "2 items, 3 invalid ones skipped" in done.stdout) == (0, True)
    assert json.loads((out / "summary.json").read_text())["skipped"] == 3
    skipped = json.loads((out / "run.json").read_text())["skipped"]
    assert [line.split(":")[0] for line in skipped] == ["line 3 (item0)", "line 4", "line 5"]
    assert "3 bad items were left out" in (out / "report.html").read_text()


def test_a_model_behind_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_benchmark(tmp_path, [*verdict_rows(tmp_path, 4), choice_row(tmp_path)])
    monkeypatch.setenv("SOME_KEY", "secret")
    with fake_endpoint(key="secret") as server:
        args = ("--endpoint", server.url, "--model", "fake-vlm", "--benchmark", path, "--out", tmp_path / "out")
        refused = here(*args)
        assert (refused.returncode, "refuses the key" in refused.stderr) == (1, True)
        with_key = (*args, "--api_key_env", "SOME_KEY")
        first = here(*with_key, "--limit", 2)
        assert first.returncode == 0, first.stderr
        asked = len(server.requests)
        # More of the same: what is answered is not asked again, nor what the endpoint takes.
        done = here(*with_key)
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
    # Refitted, the same answers are summarised again.
    for said in ("nothing is left to do", "accuracy"):
        again = here("--model", tmp_path / "cnn", "--benchmark", path)
        assert (again.returncode, said in again.stdout) == (0, True), again.stderr
        Calibration(n=30, threshold=0.6).save(tmp_path / "cnn")
    assert json.loads((out / "summary.json").read_text())["calibrated"]["threshold"] == 0.6


def test_one_item_of_a_kind(model: Path, tmp_path: Path) -> None:
    """Nothing can be learned from the words of one item: that floor is left out, and no file holds NaN."""
    path = write_benchmark(tmp_path, [verdict_rows(tmp_path, 1)[0], choice_row(tmp_path)])
    for name, flags in (("one", ("--limit", 1)), ("two", ())):
        out = tmp_path / name
        done = here("--model", model, "--benchmark", path, "--out", out, *flags)
        assert done.returncode == 0, done.stderr
        assert "NaN" not in (out / "summary.json").read_text()
        assert "bag_of_words" not in json.loads((out / "summary.json").read_text())["by_kind"]["true_false"]
        assert "chance" in (out / "report.html").read_text()


def test_wrong_arguments() -> None:
    assert here("--no_such_flag", "1").returncode == 2
    assert here("--limit", "3").returncode == 2
