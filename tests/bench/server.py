"""The server under many clients: 32 at once against one at a time, with batching and without.

    python tests/bench/server.py [--model nano] [--clients 32] [--requests 64] [--out eval/results/bench/server.json]

One server process a setting, all of them up before any is timed; verdicts and short answers over HTTP, each on an image
that the server has not seen, so that the tower's work is in it. The rounds of the settings alternate. The ratios are
throughputs: of many clients to one, and of a batch to no batch under the same clients. Latencies are what one client
sees. The server's own CPU time a request says the same on a machine that is busy with other work.
"""

from __future__ import annotations

import base64
import io
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.machine import machine_name

MAX_BATCH = {"on": 16, "off": 1}


@dataclass(frozen=True)
class Config:
    model: str = field(default="nano", metadata={"help": "What is served."})
    clients: int = field(default=32, metadata={"help": "Clients at once."})
    requests: int = field(default=64, metadata={"help": "Requests of a round."})
    rounds: int = field(default=3, metadata={"help": "Rounds of every setting; medians are compared."})
    side: int = field(default=256, metadata={"help": "Of the images, in pixels."})
    new_tokens: int = field(default=8, metadata={"help": "Tokens of an answer."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


@dataclass(frozen=True)
class Round:
    seconds: float
    cpu_s: float  # of the server
    latencies_s: list[float]
    errors: int


@dataclass(frozen=True)
class Server:
    url: str
    process: psutil.Process

    @property
    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    records: list[dict[str, Any]] = []
    with ExitStack() as stack:
        servers = {name: stack.enter_context(served(config.model, batch)) for name, batch in MAX_BATCH.items()}
        fresh = images(config.side)
        for route in ("verdict", "query"):
            for server in servers.values():
                play(server, route, config, clients=2, count=4, fresh=fresh)  # warms up
            settings = [(batching, clients) for batching in servers for clients in (1, config.clients)]
            rounds: dict[tuple[str, int], list[Round]] = {setting: [] for setting in settings}
            for _ in range(config.rounds):
                for batching, clients in settings:
                    done = play(servers[batching], route, config, clients, config.requests, fresh)
                    rounds[batching, clients].append(done)
            records += figures(route, rounds, config, argv)
    for record in records:
        print(
            json.dumps(
                {
                    name: record[name]
                    for name in ("setting", "ratio", "against", "cpu_s_a_request", "p50_s", "p95_s", "errors")
                }
            )
        )
    if config.out:
        write_json(config.out, records)


@contextmanager
def served(model: str, max_batch: int) -> Iterator[Server]:
    command = [Path(sys.executable).with_name("vlm-detect"), "serve", "--model", model, "--port", "0"]
    command += ["--max_batch", str(max_batch), "--queue", "256"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().split()[1], psutil.Process(process.pid))
        finally:
            process.terminate()


def images(side: int) -> Iterator[str]:
    """Data URLs of images that differ, without end."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    while True:
        pixels = np.asarray(Image.fromarray(coarse).resize((side, side))).copy()
        pixels[:8, :8] = rng.integers(0, 255, (8, 8, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        yield f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def play(server: Server, route: str, config: Config, clients: int, count: int, fresh: Iterator[str]) -> Round:
    """`count` requests by `clients` clients; each sends its next request when it has its answer."""
    bodies: list[dict[str, Any]] = [{"image_url": next(fresh)} for _ in range(count)]
    if route == "query":
        more = {"question": "What is in the picture?", "settings": {"max_tokens": config.new_tokens}}
        bodies = [body | more for body in bodies]
    local = threading.local()

    def send(body: dict[str, Any]) -> tuple[float, bool]:
        if not hasattr(local, "http"):
            local.http = httpx.Client(base_url=server.url, timeout=600)
        started = time.perf_counter()
        answer = local.http.post(f"/v1/{route}", json=body)
        return time.perf_counter() - started, answer.status_code == 200

    started, cpu_s = time.perf_counter(), server.cpu_s
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(send, bodies))
    seconds = time.perf_counter() - started
    return Round(
        seconds, server.cpu_s - cpu_s, [latency for latency, _ in answers], sum(not good for _, good in answers)
    )


def figures(
    route: str, rounds: dict[tuple[str, int], list[Round]], config: Config, argv: list[str]
) -> list[dict[str, Any]]:
    per_second = {
        setting: config.requests / statistics.median(done.seconds for done in played)
        for setting, played in rounds.items()
    }
    records = []
    for (batching, clients), played in rounds.items():
        against = ("off", clients) if clients > 1 and batching == "on" else (batching, 1)
        latencies = [latency for done in played for latency in done.latencies_s]
        records.append(
            {
                "bench": "server",
                "setting": {
                    "route": route,
                    "batching": batching,
                    "clients": clients,
                    "requests": config.requests,
                    "model": config.model,
                    "side": config.side,
                },
                "ratio": round(per_second[batching, clients] / per_second[against], 3),
                "ceiling": None,
                "against": f"batching {against[0]}, {against[1]} clients",
                "requests_per_s": round(per_second[batching, clients], 2),
                "cpu_s_a_request": round(statistics.median(d.cpu_s for d in played) / config.requests, 5),
                "p50_s": round(float(np.percentile(latencies, 50)), 4),
                "p95_s": round(float(np.percentile(latencies, 95)), 4),
                "errors": sum(done.errors for done in played),
                "command": " ".join(["python tests/bench/server.py", *argv]),
                "commit": git_commit(),
                "device": machine_name("cpu"),
            }
        )
    return records


if __name__ == "__main__":
    run_main(main)
