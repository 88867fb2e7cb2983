"""Scripts for clusters: what they run on a node exists, with flags that its verb takes; the rest needs a cluster."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from vlm_detect import config
from vlm_detect.cli import VERBS

DEPLOY = Path(__file__).parents[2] / "deploy"
SLURM = sorted((DEPLOY / "slurm").glob("*.sh"))
SKY = sorted((DEPLOY / "sky").glob("*.yaml"))
# Of SkyPilot's task format, those in use.
SKY_KEYS = {"name", "resources", "num_nodes", "envs", "file_mounts", "workdir", "setup", "run"}
# Programs on a node: each writes its arguments as a line of JSON; srun and bash run what they are given.
FAKES = {
    "vlm-detect": 'exec {python} -c "import json, sys; print(json.dumps(sys.argv[1:]))" vlm-detect "$@"',
    "accelerate": 'exec {python} -c "import json, sys; print(json.dumps(sys.argv[1:]))" accelerate "$@"',
    "scontrol": "echo node1; echo node2",
    "srun": 'exec "$@"',
}
NODE = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_NODEID": "1"}
NODE |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "4", "SKYPILOT_NODE_RANK": "1"}
NODE |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
GIVEN = {"PHOTOS": "photos", "IMAGES": "s3://bucket/*.tar", "RUN": "runs/lora"}


def run_on_a_node(script: Path, folder: Path, given: dict[str, str], *flags: str) -> list[str]:
    """The program that the script calls, with its arguments."""
    for name, text in FAKES.items():
        (folder / name).write_text("#!/bin/sh\n" + text.format(python=sys.executable) + "\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **NODE, **given}
    done = subprocess.run(["bash", str(script), *flags], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    called: list[str] = json.loads(done.stdout)
    return called


class Parsed(Exception):
    """The arguments of a verb are valid."""


def check_flags(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments as the verb does, and stop there."""
    verb = next(verb for verb in VERBS if list(arguments[: len(verb.split())]) == verb.split())

    def parse(*given: object, **options: object) -> None:
        config_parse(*given, **options)
        raise Parsed

    config_parse = config.parse_config
    module, _, function = VERBS[verb][0].partition(":")
    program = getattr(importlib.import_module(module), function)
    for name, loaded in list(sys.modules.items()):
        if name.startswith("vlm_detect") and getattr(loaded, "parse_config", None) is config_parse:
            monkeypatch.setattr(loaded, "parse_config", parse)
    with pytest.raises(Parsed):
        program(list(arguments[len(verb.split()) :]))


def launched(called: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the launcher's arguments, the verb's) of `accelerate launch ... -m vlm_detect VERB ...`."""
    assert called[:3] == ["accelerate", "launch", "--quiet"]
    start = list(called).index("-m")
    assert called[start + 1] == "vlm_detect"
    return list(called[3:start]), list(called[start + 2 :])


@pytest.mark.parametrize("script", [*SLURM, *SKY], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_calls_a_verb_with_flags_that_it_has(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = GIVEN
    if script.suffix == ".yaml":
        task = yaml.safe_load(script.read_text())
        assert set(task) <= SKY_KEYS
        given = task["envs"]
        script = tmp_path / "run.sh"
        script.write_text("set -euo pipefail\n" + task["run"])
        subprocess.run(["bash", "-n", "-c", task["setup"]], check=True)
        extras = re.findall(r"\[(\w+)\]", task["setup"])
        assert extras
        assert all(f"\n{extra} = [" in (DEPLOY.parent / "pyproject.toml").read_text() for extra in extras)
    program, *arguments = run_on_a_node(script, tmp_path, given)
    if program == "accelerate":
        launcher, arguments = launched([program, *arguments])
        assert launcher[launcher.index("--num_processes") + 1] in ("4", "8")
    check_flags(arguments, monkeypatch)


@pytest.mark.parametrize("name", ["slurm/train.sh", "sky/train.yaml"])
def test_a_node_of_several_knows_the_first_and_itself(name: str, tmp_path: Path) -> None:
    script = DEPLOY / name
    if script.suffix == ".yaml":
        script = tmp_path / "run.sh"
        script.write_text(yaml.safe_load((DEPLOY / name).read_text())["run"])
        given = yaml.safe_load((DEPLOY / name).read_text())["envs"]
    launcher, _ = launched(run_on_a_node(script, tmp_path, given if name.startswith("sky") else GIVEN))
    values = dict(pairwise(launcher))
    assert (values["--num_machines"], values["--machine_rank"], values["--num_processes"]) == ("2", "1", "8")
    assert values["--main_process_ip"] == ("node1" if name.startswith("slurm") else "10.0.0.1")


def test_flags_reach_the_verb_and_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = DEPLOY / "slurm" / "scan.sh"
    called = run_on_a_node(scan, tmp_path, GIVEN | {"PARTITION": "gpu"}, "--explain", "True")
    assert called[-4:] == ["--slurm_partition", "gpu", "--explain", "True"]
    check_flags(called[1:], monkeypatch)
    done = subprocess.run(["bash", str(scan)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "IMAGES" in done.stderr


def test_the_options_of_a_job_are_those_of_sbatch() -> None:
    script = DEPLOY / "slurm" / "train.sh"
    lines = script.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(lines.index(option) for option in options) < first_command  # sbatch reads none after it
    known = {
        "job-name",
        "nodes",
        "ntasks-per-node",
        "gpus-per-node",
        "cpus-per-task",
        "mem",
        "time",
        "requeue",
        "output",
    }
    assert {re.match(r"#SBATCH --([\w-]+)(=\S+)?$", option)[1] for option in options} == known
