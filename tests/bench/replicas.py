"""A server with replicas under load: before, during and after a reload, and over the death of a replica.

    python tests/bench/replicas.py [--replicas 2] [--clients 8] [--seconds 20] [--out eval/results/bench/replicas.json]

One `vlm-detect serve --replicas N` on loopback. Clients ask for verdicts without a pause, each on an image that the
server has not seen. "during" lasts from SIGHUP until the server counts the reload as done, "death" from kill -9 of a
replica until all are ready again. The ratio is the throughput to that before the reload. `refused` are answers of 503
with Retry-After; every other answer than a verdict, and every connection that breaks, counts as an error, and the
program then ends with status 1. While replicas start, they take processor time from those that answer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from server import images

from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.machine import machine_name


@dataclass(frozen=True)
class Config:
    model: str = field(default="nano", metadata={"help": "What is served."})
    replicas: int = field(default=2, metadata={"help": "Replicas of the server."})
    clients: int = field(default=8, metadata={"help": "Clients at once."})
    seconds: float = field(default=20, metadata={"help": "Of the load before the reload, and after it."})
    side: int = field(default=256, metadata={"help": "Of the images, in pixels."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


@dataclass
class Load:
    """Clients that ask until they are stopped, and what they got: (seconds, status), 0 for a broken connection."""

    url: str
    fresh: Iterator[str]
    answers: list[tuple[float, int]] = field(default_factory=list)
    stopping: bool = False

    def client(self) -> None:
        with httpx.Client(base_url=self.url, timeout=600) as http:
            while not self.stopping:
                body = {"image_url": next(self.fresh)}
                started, status = time.perf_counter(), 0
                try:
                    answer = http.post("/v1/verdict", json=body)
                    good = answer.status_code != 503 or "retry-after" in answer.headers
                    status = answer.status_code if good else 0
                except httpx.TransportError:
                    pass
                self.answers.append((time.perf_counter() - started, status))
                if status == 503:
                    time.sleep(0.2)


class Fresh:
    """An iterator that threads share."""

    def __init__(self, values: Iterator[str]) -> None:
        self._values, self._lock = values, threading.Lock()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._lock:
            return next(self._values)


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    records: list[dict[str, Any]] = []
    fresh = Fresh(images(config.side))
    with served(config) as (url, process):

        def phase(name: str, until: Callable[[], bool], event: Callable[[], None] | None = None) -> None:
            record = under_load(url, fresh, config, until, event)
            before = records[0]["requests_per_s"] if records else record["requests_per_s"]
            setting = {"phase": name, "model": config.model, "clients": config.clients, "replicas": config.replicas}
            records.append({"bench": "replicas", "setting": setting, **record})
            records[-1]["ratio"] = round(record["requests_per_s"] / before, 3) if before else None
            print(json.dumps({"phase": name, **record}), flush=True)

        under_load(url, fresh, config, after(2))  # warms up
        phase("before", after(config.seconds))
        reloaded = 'vlm_detect_reloads_total{outcome="done"}'
        phase("during", lambda: figure(url, reloaded) == 1, lambda: os.kill(process.pid, signal.SIGHUP))
        phase("after", after(config.seconds))
        phase("death", lambda: all_ready_again(url), lambda: os.kill(replica_pids(process.pid)[0], signal.SIGKILL))
    common = {
        "ceiling": None,
        "against": "before the reload",
        "command": " ".join(["python tests/bench/replicas.py", *argv]),
        "commit": git_commit(),
        "device": machine_name("cpu"),
    }
    records = [record | common for record in records]
    if config.out:
        write_json(config.out, records)
    if errors := sum(record["errors"] for record in records):
        raise UserError(f"{errors} requests got neither a verdict nor a 503 with Retry-After")


@contextmanager
def served(config: Config) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [Path(sys.executable).with_name("vlm-detect"), "serve", "--model", config.model, "--port", "0"]
    command += ["--replicas", str(config.replicas)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[1], process
        finally:
            process.terminate()


def under_load(
    url: str, fresh: Iterator[str], config: Config, until: Callable[[], bool], event: Callable[[], None] | None = None
) -> dict[str, Any]:
    """What the clients got until `until()` is true, the requests that were then in flight included; `event()` happens
    once each client has an answer."""
    load = Load(url, fresh)
    clients = [threading.Thread(target=load.client) for _ in range(config.clients)]
    started = time.perf_counter()
    for client in clients:
        client.start()
    if event is not None:
        while len(load.answers) < config.clients:
            time.sleep(0.05)
        event()
    while not until():
        time.sleep(0.2)
    load.stopping = True
    for client in clients:
        client.join()
    seconds = time.perf_counter() - started
    good = [latency for latency, status in load.answers if status == 200]
    return {
        "requests": len(load.answers),
        "requests_per_s": round(len(good) / seconds, 2),
        "p50_s": round(float(np.percentile(good, 50)), 4) if good else None,
        "p95_s": round(float(np.percentile(good, 95)), 4) if good else None,
        "refused": sum(status == 503 for _, status in load.answers),
        "errors": sum(status not in (200, 503) for _, status in load.answers),
        "seconds": round(seconds, 2),
    }


def after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def figure(url: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (.*)$", httpx.get(f"{url}/metrics", timeout=60).text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def all_ready_again(url: str) -> bool:
    died = figure(url, "vlm_detect_replica_deaths_total") == 1
    state = httpx.get(f"{url}/readyz", timeout=60).json()
    return died and state["ready"] == state["replicas"]


def replica_pids(parent: int) -> list[int]:
    children = psutil.Process(parent).children()
    return [child.pid for child in children if "vlm_detect.apps.replica" in child.cmdline()]


if __name__ == "__main__":
    run_main(main)
