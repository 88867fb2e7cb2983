"""`results.jsonl`: what was altered is asked again, and what was not is kept, however a run ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.fakes import verdict_rows, write_benchmark
from tests.scripts.here import run_verb
from tests.test_locks import holder, let_go
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.results import RESULTS, ResultWriter, merge, read_results
from vlm_detect.benchmark.run import check_same_run, settings_of
from vlm_detect.benchmark.score import generated_result
from vlm_detect.errors import UserError
from vlm_detect.questions.kind import prompts_of
from vlm_detect.records import Result


@pytest.fixture
def answers(tmp_path: Path) -> list[Result]:
    (tmp_path / "bench").mkdir()
    items = load_benchmark(write_benchmark(tmp_path / "bench", verdict_rows(tmp_path / "bench", 6))).items
    return [generated_result(prompts_of(item)[0], "Yes, it is “AI”.") for item in items]


def written(out: Path, answers: list[Result], process: int = 0) -> Path:
    with ResultWriter(out, process) as writer:
        for answer in answers:
            writer.write([answer])
    return writer.path


def alter(file: Path, number: int, **changes: Any) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes, ensure_ascii=False)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "changes",
    [{"correct": None}, {"answer": "No."}, {"p_fake": 0.5}, {"id": "item5"}, {"group": "x"}, {"more": 1}],
)
def test_an_altered_line_does_not_count_and_is_reported_once(
    tmp_path: Path, answers: list[Result], changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "out", answers)
    assert read_results(file) == answers
    alter(file, 2, **changes)
    assert read_results(file) == read_results(file) == answers[:2] + answers[3:]
    assert capsys.readouterr().err == f"{file}: 1 lines were altered after they were written and are ignored\n"
    merge(tmp_path / "out")
    assert read_results(file) == answers[:2] + answers[3:]
    assert capsys.readouterr().err == ""
    written(tmp_path / "out", [answers[2]])  # asked again
    assert merge(tmp_path / "out", [answer.id for answer in answers]) == answers


def test_a_flipped_byte_does_not_count(tmp_path: Path, answers: list[Result]) -> None:
    file = written(tmp_path / "out", answers)
    whole = file.read_bytes()
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 1
        file.write_bytes(data)
        assert {repr(found) for found in read_results(file)} <= {repr(answer) for answer in answers}, at


def test_reformatting_a_line_is_no_alteration(tmp_path: Path, answers: list[Result]) -> None:
    file = written(tmp_path / "out", answers)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(dict(reversed(row.items()))) + "\n" for row in rows), encoding="utf-8")
    assert read_results(file) == answers


def test_lines_without_checksums_are_from_an_earlier_version(tmp_path: Path, answers: list[Result]) -> None:
    file = written(tmp_path / "out", answers[:3])
    file.with_suffix(".sha256").unlink()
    written(tmp_path / "out", answers[3:])
    assert read_results(file) == answers
    merge(tmp_path / "out")
    alter(file, 0, answer="No.")
    assert read_results(file) == answers[1:]


def test_the_parts_of_several_processes_have_checksums_too(tmp_path: Path, answers: list[Result]) -> None:
    written(tmp_path / "out", answers[:2])
    alter(written(tmp_path / "out", answers[2:4], 1), 1, answer="No.")
    written(tmp_path / "out", answers[4:], 2)
    assert merge(tmp_path / "out", [answer.id for answer in answers]) == answers[:3] + answers[4:]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.jsonl", "results.sha256"]


@pytest.mark.parametrize("renames", range(3))
def test_a_merge_that_is_killed_loses_nothing(
    tmp_path: Path, answers: list[Result], renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    written(out, answers[:3])
    written(out, answers[3:], 1)
    replace, left = Path.replace, [renames]

    def killed(self: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(out)
    assert merge(out, [answer.id for answer in answers]) == answers
    assert read_results(out / RESULTS) == answers


# Whose answers a folder holds


def test_settings_without_an_answer_block_no_run(tmp_path: Path, answers: list[Result]) -> None:
    check_same_run(tmp_path / "out", {"model": "a"}, write=True)
    (tmp_path / "out" / RESULTS).write_text('{"id": "half a line')
    check_same_run(tmp_path / "out", {"model": "b"}, write=True)
    assert settings_of(tmp_path / "out")["model"] == "b"
    for place, process in (
        (tmp_path / "out", 0),
        (tmp_path / "out", 1),
        (tmp_path / "out" / "conditions" / "clean", 0),
    ):
        file = written(place, answers[:1], process)
        with pytest.raises(UserError, match="contains the answers of another run"):
            check_same_run(tmp_path / "out", {"model": "a"}, write=True)
        file.unlink()


def test_two_benchmarks_into_one_folder(tmp_path: Path) -> None:
    rows = [{**row, "answer": "Yes."} for row in verdict_rows(tmp_path, 2)]
    ask = ["benchmark", "--answers", write_benchmark(tmp_path, rows), "--out", tmp_path / "out"]
    first = holder(tmp_path / "out")
    second = run_verb(*ask)
    assert (second.returncode, second.stdout) == (1, "")
    assert f"out is held by another run (process {first.pid} on" in second.stderr
    let_go(first)
    assert run_verb(*ask).returncode == 0
