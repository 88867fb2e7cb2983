"""Configuration from YAML and the command line, the run record, and how programs end."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch.distributed

from vlm_detect.config import parse_config, read_run_json, write_json, write_run_json
from vlm_detect.errors import UsageError, UserError, run_main
from vlm_detect.version import __version__


@dataclass(frozen=True)
class Render:
    steps: int = 28
    twins: list[str] = field(default_factory=lambda: ["caption"])
    compile: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Pack:
    size: int = 512


def yaml_file(folder: Path, text: str) -> str:
    (folder / "config.yaml").write_text(text)
    return str(folder / "config.yaml")


def test_the_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "steps: 12\ntwins: [caption, vae]\ncompile: true\nsize: 64\n")
    render, pack = parse_config([Render, Pack], ["--config", path, "--steps", "4"])
    assert render == Render(steps=4, twins=["caption", "vae"], compile=True)
    assert pack == Pack(size=64)
    assert parse_config([Render], [f"--config={yaml_file(tmp_path, '')}"]) == (Render(),)


@dataclass(frozen=True)
class Export:
    run: str = field(metadata={"positional": True})
    out: str = field(metadata={"positional": True, "help": "A new folder."})
    images: list[str] = field(default_factory=list, metadata={"positional": True})
    to: Literal["adapter", "merged"] = field(default="adapter", metadata={"aliases": ["--form"]})
    json: bool = False


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("run out", Export("run", "out")),
        ("run --to merged out", Export("run", "out", to="merged")),
        ("--form merged run out a b", Export("run", "out", ["a", "b"], "merged")),
        ("run --json out a", Export("run", "out", ["a"], json=True)),
        ("run out --json False a", Export("run", "out", ["a"])),
        ("--json run out -- --a", Export("run", "out", ["--a"], json=True)),
    ],
)
def test_positional_arguments_may_be_anywhere(argv, expected) -> None:
    assert parse_config([Export], argv.split()) == (expected,)


@dataclass(frozen=True)
class Stage:
    steps: int
    rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Stages:
    renderer: Stage | None = None
    judge: Stage = Stage(3)
    seed: int = 0


def test_a_nested_dataclass_is_a_section(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "renderer: {steps: 5, rates: [0.1, 1]}\nseed: 2")
    assert parse_config([Stages], ["--config", path]) == (Stages(Stage(5, [0.1, 1.0]), seed=2),)
    assert parse_config([Stages], ["--config", path, "--renderer.steps", "7"])[0].renderer == Stage(7, [0.1, 1.0])
    assert parse_config([Stages], ["--judge.steps=4"]) == (Stages(judge=Stage(4)),)
    assert parse_config([Stages], []) == (Stages(),)


def test_a_list_may_be_empty_and_is_replaced_not_extended(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "twins: [caption, vae]")
    assert parse_config([Render], ["--config", path, "--twins", "edit"])[0].twins == ["edit"]
    assert parse_config([Render], ["--config", path, "--twins"])[0].twins == []
    assert parse_config([Render], ["--config", yaml_file(tmp_path, "twins: []")])[0].twins == []


def test_hyphens_equal_underscores_and_no_turns_a_flag_off() -> None:
    @dataclass(frozen=True)
    class Options:
        skip_bad: bool = False
        generate: bool = True
        max_pixels: int | None = None

    parsed = parse_config([Options], ["--skip-bad", "--no-generate", "--max-pixels=3"])
    assert parsed == (Options(skip_bad=True, generate=False, max_pixels=3),)


def test_the_version(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config([Render], ["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"vlm-detect {__version__}\n"


def test_the_help_gives_each_default_and_keeps_the_lines_of_the_docstring(capsys) -> None:
    @dataclass(frozen=True)
    class Options:
        share: float = field(default=0.0, metadata={"help": "Up to 1 (100 %)."})
        twins: list[str] = field(default_factory=lambda: ["caption", "vae"], metadata={"help": "Kinds."})
        out: str | None = field(default=None, metadata={"help": "A folder."})
        generate: bool = field(default=True, metadata={"help": "Answer freely."})
        compile: bool = field(default=False, metadata={"help": "Compile."})

    with pytest.raises(SystemExit):
        parse_config([Options], ["--help"], doc="First line, 95 %.\n\n    python it.py")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "python it.py" in lines
    text = " ".join(lines)
    for words in [
        "First line, 95 %.",
        "Up to 1 (100 %). (default: 0.0)",
        "Kinds. (default: caption vae)",
        "Answer freely. (default: True)",
    ]:
        assert words in text
    assert "No --generate." in text
    assert text.count("(default:") == 3  # nothing is said of None and False


@pytest.mark.parametrize(
    ("argv", "yaml", "words"),
    [
        (["--stepz", "3"], None, "--stepz"),
        (["--step", "3"], None, "--step"),  # an abbreviation is an unknown flag
        (["--steps", "many"], None, "many"),
        (["--size", "3", "--stpes", "4"], None, "--size: no such flag; --stpes: no such flag; did you mean --steps?"),
        (["photos"], None, "photos"),
        (["--compile", "perhaps"], None, "perhaps"),
        ([], "stepz: 3", "unknown keys stepz (stepz: no such key; did you mean steps?)"),
        ([], "steps: many", "many"),
        ([], "- a list", "not a mapping"),
        ([], "steps: [", "not YAML"),
        (["--config", "missing.yaml"], None, "missing.yaml"),
        (["--config", "configs/moondream_nan.yaml"], None, "did you mean --config moondream_nano?"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(argv, yaml, words, tmp_path: Path, capsys) -> None:
    if yaml is not None:
        argv = ["--config", yaml_file(tmp_path, yaml)]
    with pytest.raises(SystemExit) as stop:
        parse_config([Render], argv)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1


def test_a_run_record_has_the_configuration_and_the_versions(tmp_path: Path) -> None:
    assert read_run_json(tmp_path) is None
    write_run_json(tmp_path, Render(steps=3), seconds=1.5)
    record = read_run_json(tmp_path)
    assert record is not None
    assert record["config"]["steps"] == 3
    assert record["seconds"] == 1.5
    assert {"torch", "transformers", "python"} <= record["versions"].keys()


def test_json_is_replaced_atomically(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ok": True})
    circular: list = []
    circular.append(circular)
    with pytest.raises(ValueError, match="Circular"):
        write_json(tmp_path / "a.json", {"ok": False, "more": circular})
    assert json.loads((tmp_path / "a.json").read_text()) == {"ok": True}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"], "a temporary file was left"


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (None, 0, ""),
        (UserError("value 3,\n limit 2: remedy"), 1, "error: value 3, limit 2: remedy\n"),
        (UsageError("--limit 0: give 1 or more"), 2, "error: --limit 0: give 1 or more\n"),
        (KeyboardInterrupt(), 130, "interrupted: run the same command again to resume\n"),
        (
            OSError(errno.ENOSPC, "No space left", "out/x"),
            1,
            "error: out/x: No space left; free some space there, or give another path\n",
        ),
    ],
)
def test_programs_end_with_a_status_and_one_line(raised, status, line, capsys) -> None:
    def main(argv: list[str]) -> None:
        if raised:
            raise raised

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("flags", "given", "raised"),
    [
        ("--steps 3", "--steps 3", SystemExit),
        ("--debug --steps 3", "--steps 3", UserError),
        ("--steps 3 --debug", "--steps 3", UserError),
        ("--debug underflow_overflow --steps 3", "--debug underflow_overflow --steps 3", SystemExit),
        ("--debug tpu_metrics_debug --debug", "--debug tpu_metrics_debug", UserError),
    ],
)
def test_debug_shows_tracebacks_unless_it_is_the_flag_of_the_trainer(flags, given, raised, monkeypatch) -> None:
    def main(argv: list[str]) -> None:
        assert argv == given.split()
        raise UserError("no")

    monkeypatch.setattr(sys, "argv", ["program", *flags.split()])
    with pytest.raises(raised):
        run_main(main)


def test_a_program_of_several_processes_destroys_the_process_group(tmp_path) -> None:
    """Else gloo's threads live until Python has ended, and one of them still at work then aborts it."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)

    def main(argv: list[str]) -> None:
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 0
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_is_no_traceback(lines: int) -> None:
    program = f"import sys; from vlm_detect.errors import run_main; run_main(lambda argv: print('line\\n' * {lines}))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_program_without_stdout_ends_well(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda argv: print("nobody sees it"))
    assert stop.value.code == 0
