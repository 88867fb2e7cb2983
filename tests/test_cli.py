"""Every verb and program: what it imports to answer `--help`, and the exit status of what its arguments alone show."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.here import run_here, run_verb
from vlm_detect.cli import VERBS, overview
from vlm_detect.config import REPOSITORY
from vlm_detect.loading_line import SLOW
from vlm_detect.version import __version__

PROGRAMS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ("recipes", "eval", "data_gen")
    for path in (REPOSITORY / folder).glob("*.py")
)
# Runs programs in one process, each up to the end of its --help, and prints what each said and what is imported.
HELPS = """
import contextlib, io, json, runpy, sys
from vlm_detect.cli import VERBS, run
found = {}
for program in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        if program in VERBS:
            run([*program.split(), "--help"])
        else:
            sys.argv = [program, "--help"]
            runpy.run_path(program, run_name="__main__")
    found[program] = [out.getvalue(), sorted(name for name in sys.modules if "." not in name)]
print(json.dumps(found))
"""


# Runs commands in one process, where to import a slow library ends a command; prints what each said until then.
STARTS = """
import contextlib, io, json, shlex, sys
from vlm_detect.cli import main
found = {}
for command in json.loads(sys.argv[1]):
    sys.argv = shlex.split(command)
    err, ended = io.StringIO(), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            ended = error.code
    found[command] = [ended, err.getvalue()]
print(json.dumps(found))
"""
# Arguments that each verb accepts. The programs of a clone call the same functions.
STARTED = {
    "chat": "a.jpg",
    "scan": "a.jpg",
    "serve": "--model nano",
    "explain": "a.jpg --model run --out page.html",
    "make-pairs": "--images photos",
    "caption": "--images photos --out captions",
    "render": "--captions captions --out renders",
    "pack": "--renders renders --out set",
    "import-pairs": "a b --out set",
    "import-images": "src --from cifake --out set",
    "add-reasons": "set --out new",
    "audit": "set",
    "report": "set",
    "view": "set",
    "train moondream": "",
    "train tinyllava": "",
    "train vlm": "--model m",
    "train preference": "--model run --data set",
    "train cnn": "--arch resnet50 --data set",
    "cache-features moondream": "",
    "cache-features tinyllava": "",
    "cache-features vlm": "--model m",
    "fit-head": "run --data set",
    "adapt": "run images --out new",
    "calibrate": "run --data set",
    "export": "run out --to merged",
    "benchmark": "--benchmark set",
    "robustness": "--benchmark set",
    "paper-table": "set --models nano",
    "compare": "a b --out compared",
    "build-vqa": "set --out file.json",
    "evidence": "--model run --data set",
    "demo": "",
    "doctor": "",
    "runs": ".",
}
# They import nothing slow, and need no first line.
AT_ONCE = {
    "configs": "",
    "verify": "case",
    "collect-errors": "rows.jsonl --out errors",
    "import-vqa": "q.json --from loki --out file.json",
}


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[str, list[str]]]:
    command = [sys.executable, "-c", HELPS, json.dumps([*VERBS, *PROGRAMS])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("program", [*VERBS, *PROGRAMS])
def test_help_imports_nothing_heavy(program, helps):
    text, modules = helps[program]
    assert text.startswith("usage: ")
    assert "--config" in text
    assert not SLOW & set(modules)


def test_every_verb_says_what_it_does_before_it_imports_what_loads_slowly(tmp_path):
    assert {*STARTED, *AT_ONCE} == set(VERBS)
    for name in SLOW:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("import sys; sys.exit(f'import {__name__}')")
    flags_of_the_trainer = Path(importlib.util.find_spec("transformers").origin).with_name("training_args.py")
    (tmp_path / "transformers" / flags_of_the_trainer.name).symlink_to(flags_of_the_trainer)
    commands = {f"vlm-detect {verb} {arguments}": verb for verb, arguments in (STARTED | AT_ONCE).items()}
    commands |= {f"vlm-detect {verb} --help": "" for verb in VERBS}
    command = [sys.executable, "-c", STARTS, json.dumps(list(commands))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    for command, (ended, err) in json.loads(done.stdout).items():
        verb = commands[command]
        assert str(ended).startswith("import ") == (verb in STARTED), (command, ended, err)
        assert (err == f"vlm-detect {verb}: loading libraries ...\n") == (verb in STARTED)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.startswith(("train", "cache-features"))])
def test_training_help_lists_the_trainers_flags(verb, helps):
    for flag in ("--max_grad_norm", "--gradient_checkpointing", "--push_to_hub", "--num_train_epochs"):
        assert f"  {flag} " in helps[verb][0]


def test_every_verb_is_in_the_overview_and_has_its_program():
    for verb, (target, summary) in VERBS.items():
        assert f"  {verb} " in overview()
        assert summary in overview()
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("arguments", [(), ("--help",), ("train",)])
def test_the_overview(arguments):
    done = run_verb(*arguments)
    assert done.returncode == 0
    assert "train moondream" in done.stdout


def test_the_version():
    for arguments in (("--version",), ("scan", "--version")):
        assert run_verb(*arguments).stdout == f"vlm-detect {__version__}\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_calls_of_functions_of_the_package(program):
    """They define no options and read no files of the clone, so the installed package is complete."""
    tree = ast.parse((REPOSITORY / program).read_text(encoding="utf-8"))
    assert {type(node).__name__ for node in tree.body} <= {"Expr", "ImportFrom", "If"}


WRONG = [
    ("scna", "did you mean scan?"),
    ("train moondraem", "did you mean train moondream?"),
    ("add-reasons set", "--out is missing"),
    ("add-reasons set --out set", "is the input dataset"),
    ("add-reasons set --out new --teacher t --teacher_endpoint host", "--teacher_endpoint host: not a URL"),
    ("audit set --max_images 0", "--max_images 0: give 1 or more"),
    ("fit-head run", "--data is missing"),
    ("fit-head run --data set --limit 5", "--limit 5"),
    ("fit-head run --data set --novelty_level 1", "--novelty_level 1.0"),
    ("adapt run images", "--out is missing"),
    ("calibrate run", "--data is missing"),
    ("calibrate run --data set --split test", "--split test"),
    ("calibrate run --data set --max_fpr 1", "--max_fpr 1.0"),
    ("caption --out work", "--images is missing"),
    ("chat", "IMAGE is missing"),
    ("chat a.jpg why not", "no argument is left"),
    ("configs moondream_lorra", "did you mean --config moondream_lora?"),
    ("demo --steps 3", "--steps: no such flag"),
    ("doctor --config moondream_lorra", "did you mean --config moondream_lora?"),
    ("explain a.jpg --model run", "--out is missing"),
    ("export run out", "--to is missing"),
    ("export run out --to tflite", "--to: tflite: choose from adapter, merged, official, variant, mlx, onnx"),
    ("report set --n 0", "--n 0: give 1 or more"),
    ("runs a b", "b: no argument is left for it"),
    ("scan a.jpg --batch_size 0", "--batch_size 0: give 1 or more"),
    ("scan a.jpg --fail_on fake", "--fail_on fake: give any of generated,unsure,unreadable"),
    ("collect-errors", "--out is missing"),
    ("collect-errors --out errors", "nothing is marked: give files of marks"),
    ("scan a.jpg --out rows.xlsx", "rows are written as .csv, .jsonl, .json, .html"),
    ("scan a.jpg --threshold 1", "--threshold 1.0: give a probability above 0 and below 1"),
    ("scan a.jpg --sign_key key.pem", "--sign_key is about a case: give --case DIR too"),
    ("scan a.jpg --no_thumbnails", "--no_thumbnails is about a page"),
    ("scan a.jpg --only_confirmed", "--only_confirmed is about the reasons: give --explain too"),
    ("verify", "DIR is missing"),
    ("scan a.jpg --json --csv", "give one of them"),
    ("serve --model a --compare a", "--compare names a model that is already served"),
    ("serve --port 99999", "--port 99999: give 0 to 65535"),
    ("serve --host 0.0.0.0", "--host 0.0.0.0"),
    ("serve --queue 0", "--queue 0: give a number above 0"),
    ("serve --model a --replicas 0", "--replicas 0: give 1 or more"),
    ("serve --replicas 2", "--replicas needs --model"),
    ("serve --api_key a --api_keys keys.toml", "--api_keys and --api_key (or VLM_DETECT_API_KEY): give one of them"),
    ("view set --n 0", "--n 0: give 1 or more"),
    ("train vlm", "--model is missing"),
    ("train moondream --mix other --weights 1", "--weights 1: give a number above 0 for each of the 2 datasets"),
    ("train moondream --config moondream_nano --cache_features", "remove +vision from --lora_targets"),
    ("train moondream --epochs 3", "--epochs: no such flag; did you mean --num_train_epochs?"),
    ("train moondream --warmup_ratio 0.1", "use --warmup_steps (transformers 5)"),
    ("train tinyllava --lora_r 0", "--lora_r 0: give 1 or more"),
    ("train preference --model nano", "--data is missing"),
    ("train preference --data set --faults typos", "choose from wrong_place"),
    ("train preference --data set --tune full", "needs a LoRA"),
    ("cache-features moondream --config moondream_nano", "remove +vision from --lora_targets"),
    ("cache-features tinyllava --config tinyllava_lora", "give --train_connector False"),
    ("cache-features tinyllava --workers 0", "--workers 0: give 1 or more"),
    ("cache-features vlm --executor slurm", "--model is missing"),
    ("cache-features vlm --model m --seeds 1 2", "--seeds: give one --seed"),
    ("train cnn --arch resnet99", "--arch resnet99"),
    ("make-pairs", "--images is missing"),
    ("make-pairs --images p --twins cloned", "cloned"),
    ("make-pairs --images p --workers 0", "--workers 0: give 1 or more"),
    ("make-pairs --images p --generator g --generator_endpoint http://u:p@h/v1", "--generator_endpoint: the URL has"),
    ("make-pairs --images p --validation 0.7 --test 0.3", "with a sum below 1"),
    ("pack", "--renders is missing"),
    ("render --out r", "--captions FOLDER is missing"),
    ("import-images src --from cifake --out set --labels cat", "--labels cat"),
    ("import-images src --out set", "--layout is missing"),
    ("import-pairs --out set", "SRC is missing"),
    ("import-pairs a b c --out set", "a b c: give the folders"),
    ("benchmark", "give either --benchmark"),
    ("benchmark --benchmark b --limit 0", "--limit 0: give 1 or more"),
    ("benchmark --benchmark b --batch_size 0", "--batch_size 0: give 1 or more"),
    ("benchmark --benchmark b --endpoint http://x", "--endpoint needs --model"),
    ("benchmark --answers a.json --explanations 5", "--explanations asks a model"),
    ("benchmark --benchmark set --explanations -1", "--explanations -1: give 0 or more"),
    ("benchmark --benchmark set --judge nano", "--judge judges explanations"),
    ("benchmark --benchmark set --explanations 5 --judge_endpoint http://a/v1", "--judge_endpoint needs --judge"),
    ("benchmark --benchmark b --model m --endpoint localhost", "--endpoint localhost: not a URL"),
    ("benchmark --answers a.json --workers 2", "--answers asks no model: omit --executor, --workers"),
    (
        "benchmark --benchmark b --endpoint http://x --model m --executor ray",
        "give --parallel N in place of --executor",
    ),
    ("robustness --benchmark b --limit 0", "--limit 0: give 1 or more"),
    ("robustness --benchmark b --conditions some", "--conditions some: unknown; choose from all, tiers, curves"),
    ("paper-table --models m", "SET is missing"),
    ("paper-table a/x b/x --models m", "two sets are called x; rename a folder"),
    ("paper-table set --models m --aligned_side 4", "--aligned_side 4: give 8 or more"),
    ("compare", "RUNS is missing"),
    ("compare run --explanations figures.json", "--explanations takes two runs, not 1"),
    ("compare a --by class", "--by needs --benchmark"),
    ("build-vqa", "give a DATASET with --out FILE, or --check FILE"),
    ("build-vqa set --out f --n_open -1", "--n_open -1: give 0 or more"),
    ("import-vqa q.json --from other --out f", "choose from"),
    ("evidence --data set --limit 0", "--limit 0: give 1 or more"),
]


@pytest.mark.parametrize(("command", "message"), WRONG)
def test_errors_in_the_arguments_alone_are_one_line_and_status_2(command, message):
    done = run_verb(*command.split())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr


def test_every_verb_has_a_wrong_command_in_this_test():
    assert not [verb for verb in VERBS if not any(command.startswith(verb) for command, _ in WRONG)]


def test_a_program_of_a_clone_is_the_same_as_the_verb():
    by_verb, by_program = run_verb("compare", "--help"), run_here("eval/compare.py", "--help")
    assert by_verb.stdout.partition("\n")[2] == by_program.stdout.partition("\n")[2]


def test_the_configs_of_the_package():
    assert "moondream_lora_24gb " in run_verb("configs").stdout
    assert run_verb("configs", "moondream_nano").stdout.startswith("# The embedded nano moondream")
    assert Path(run_verb("configs", "accelerate_ddp", "--path").stdout.strip()).is_file()
