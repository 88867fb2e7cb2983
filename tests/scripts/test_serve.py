"""`vlm-detect serve` as a user runs it: a process that starts, answers, and ends on a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.apps.conftest import data_url, make_photo
from tests.scripts.here import run_verb
from vlm_detect.apps.connections import open_socket

COMMAND = [Path(sys.executable).with_name("vlm-detect"), "serve", "--model", "nano", "--port", "0"]


def test_it_answers_and_drains_on_sigterm(tmp_path: Path) -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("nano: http://127.0.0.1:"), process.stderr
        url = line.split()[1]
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=300) as http:
            body = {"image_url": data_url(make_photo(0, (96, 64))), "length": "long"}
            assert http.post("/v1/caption", json=body).status_code == 200
            last = pool.submit(http.post, "/v1/verdict", json={"images": [body["image_url"]] * 8})
            while "vlm_detect_jobs 0.0" in http.get("/metrics").text and not last.done():
                pass
            process.send_signal(signal.SIGTERM)
            assert last.result().status_code == 200
        err = process.communicate(timeout=300)[1]
        assert (process.returncode, err) == (0, "vlm-detect serve: loading libraries ...\nloading nano ...\n")
    assert list(tmp_path.iterdir()) == []


def test_errors_are_one_line_before_any_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLM_DETECT_API_KEY", raising=False)
    with open_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        for arguments, status, message in [
            (["--port", port], 1, f"port {port} on 127.0.0.1 is in use by another program: give another with --port"),
            (["--queue", 0], 2, "--queue 0: give a number above 0"),
            (["--deadline_s", "nan"], 2, "--deadline_s nan: give a number above 0"),
            (["--port", 99999], 2, "--port 99999: give 0 to 65535"),
            (["--host", "0.0.0.0"], 2, "opens the server to the network: give --api_key"),
            (["--api_keys", "none.toml"], 1, "--api_keys none.toml: No such file or directory: give a TOML file"),
            (["--port", 0, "--model", "no/such/model"], 1, "no/such/model"),
        ]:
            done = run_verb("serve", "--model", "nano", *arguments)
            assert (done.returncode, done.stderr.count("\n")) == (status, 1), done.stderr
            assert message in done.stderr
    assert os.environ.get("VLM_DETECT_API_KEY") is None


@pytest.mark.slow
def test_two_replicas_over_a_reload_and_a_death(tmp_path: Path) -> None:
    """With the nano model; `tests/apps/test_replicas.py` has the same without a model."""
    bench = Path(__file__).parents[1] / "bench" / "replicas.py"
    arguments = ["--clients", "3", "--seconds", "3", "--out", tmp_path / "figures.json"]
    done = subprocess.run([sys.executable, bench, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    phases = json.loads((tmp_path / "figures.json").read_text())
    assert [phase["setting"]["phase"] for phase in phases] == ["before", "during", "after", "death"]
    assert [phase["errors"] for phase in phases] == [0] * 4
    assert [phase["refused"] for phase in phases[:3]] == [0] * 3
