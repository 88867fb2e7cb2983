"""What /healthz takes while a server is attacked: by bodies, by images, and by clients that never finish their headers.

    python tests/bench/attacks.py [--model nano] [--seconds 10] [--out eval/results/bench/attacks.json]

One server process; each attack runs by itself, by `clients` threads of another process, while one client asks /healthz
again and again. The first row is the server at rest. `after_s` is how long a verdict takes when the attack is over.
Attackers share the machine with the server here, which strangers do not: they run at a lower priority. `load` is the
machine's mean number of running processes over the last minute, attackers and other jobs included, and `nice` the
priorities of the server and of the attackers.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from PIL import Image

from vlm_detect.config import git_commit, parse_config, write_json
from vlm_detect.errors import run_main
from vlm_detect.machine import machine_name

ATTACKERS_NICE = 5  # above the server's


@dataclass(frozen=True)
class Config:
    model: str = field(default="nano", metadata={"help": "What is served."})
    seconds: float = field(default=10.0, metadata={"help": "How long each attack goes on."})
    clients: int = field(default=4, metadata={"help": "Attackers at a time."})
    only: str | None = field(default=None, metadata={"help": "One attack by its name."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    records = []
    with served(config.model) as (url, process):
        for name, attack in {"none": None, **ATTACKS}.items():
            if config.only in (None, name):
                records.append(measured(name, attack, url, process, config, argv))
                shown = ("attack", "n", "p50_ms", "p99_ms", "max_ms", "after_s", "rss_mb", "load", "answers")
                print(json.dumps({key: records[-1][key] for key in shown}), flush=True)
    if config.out:
        write_json(config.out, records)


def measured(
    name: str,
    attack: Callable[[str, float], dict[str, int]] | None,
    url: str,
    server: psutil.Process,
    config: Config,
    argv: list[str],
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    until = time.time() + config.seconds + 3
    attackers = [
        context.Process(target=attacking, args=(name, url, until, config.clients, answers))
        for _ in range(attack is not None)
    ]
    for attacker in attackers:
        attacker.start()
    time.sleep(3)  # they build their bodies
    latencies, most = [], 0
    with httpx.Client(base_url=url, timeout=120) as http:
        while time.time() < until:
            started = time.perf_counter()
            http.get("/healthz").raise_for_status()
            latencies.append(1000 * (time.perf_counter() - started))
            most = max(most, server.memory_info().rss)
            time.sleep(0.02)
        found = answers.get() if attackers else {}
        for attacker in attackers:
            attacker.join()
        started = time.perf_counter()
        http.post("/v1/verdict", json={"image_url": data_url(png(64, 64))}).raise_for_status()
        after_s = time.perf_counter() - started
    return {
        "bench": "attacks",
        "attack": name,
        "clients": config.clients,
        "n": len(latencies),
        "p50_ms": round(float(np.percentile(latencies, 50)), 1),
        "p99_ms": round(float(np.percentile(latencies, 99)), 1),
        "max_ms": round(max(latencies), 1),
        "after_s": round(after_s, 2),
        "rss_mb": most >> 20,
        "load": round(os.getloadavg()[0], 1),
        "nice": [os.nice(0), os.nice(0) + ATTACKERS_NICE],
        "answers": found,
        "command": " ".join(["python tests/bench/attacks.py", *argv]),
        "commit": git_commit(),
        "device": machine_name("cpu"),
    }


@contextmanager
def served(model: str) -> Iterator[tuple[str, psutil.Process]]:
    command = [Path(sys.executable).with_name("vlm-detect"), "serve", "--model", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[1]
            httpx.post(f"{url}/v1/verdict", json={"image_url": data_url(png(64, 64))}, timeout=120).raise_for_status()
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def attacking(name: str, url: str, until: float, clients: int, answers: Any) -> None:
    """Attack by several threads until the time comes; how often each answer came."""
    os.nice(ATTACKERS_NICE)
    counts: dict[str, int] = {}
    make = ATTACKS[name]
    wave = make(url)

    def one() -> None:
        while time.time() < until:
            try:
                got = wave()
            except (OSError, httpx.HTTPError) as error:
                got = type(error).__name__
            counts[got] = counts.get(got, 0) + 1

    threads = [Thread(target=one, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.time()) + 1)
    answers.put(dict(counts))


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "gray").save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


# Each takes the server's URL and returns what one attacker does again and again: send, and say what came.


def posting(body: bytes, kind: str = "application/json", route: str = "/v1/verdict") -> Callable[[str], Any]:
    def make(url: str) -> Callable[[], str]:
        http = httpx.Client(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))
        return lambda: str(http.post(route, content=body, headers={"content-type": kind}).status_code)

    return make


def image(data: Callable[[], bytes], route: str = "/v1/verdict") -> Callable[[str], Any]:
    return lambda url: posting(json.dumps({"image_url": data_url(data())}).encode(), route=route)(url)


def scans(count: int, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    tables = data.rindex(b"\xff\xc4")
    return data[:-2] + data[tables:-2] * count + data[-2:]


def noise(side: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def gif(frames: int) -> bytes:
    buffer = io.BytesIO()
    images = [Image.new("P", (64, 64), i % 250) for i in range(frames)]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], optimize=False)
    return buffer.getvalue()


def chunks(count: int) -> bytes:
    plain = png(64, 64)
    empty = struct.pack(">I4sI", 0, b"aaAa", zlib.crc32(b"aaAa"))
    return plain[:33] + empty * count + plain[33:]


def crumbs(url: str) -> Callable[[], str]:
    """A chunked body whose chunks are of one byte."""
    head = b"POST /v1/verdict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return lambda: sent(url, head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_000_000)


def many_headers(url: str) -> Callable[[], str]:
    return lambda: sent(url, b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 200_000)


def half_headers(url: str) -> Callable[[], str]:
    """Hundreds of connections that send a header now and then and never the last."""

    def wave() -> str:
        held = []
        for _ in range(200):
            with suppress(OSError):
                held.append(socket.create_connection(_address(url), timeout=10))
        for i in itertools.count():
            alive = 0
            for one in held:
                with suppress(OSError):
                    one.sendall(b"GET / HTTP/1.1\r\n" if i == 0 else b"X-%d: y\r\n" % i)
                    alive += 1
            time.sleep(1)
            if not alive or i > 30:
                for one in held:
                    one.close()
                return "dropped"
        return ""

    return wave


def sent(url: str, data: bytes) -> str:
    with socket.create_connection(_address(url), timeout=120) as connection:
        with suppress(OSError):
            connection.sendall(data)
        with suppress(OSError):
            return connection.recv(100).split(b"\r\n")[0].decode() or "closed"
    return "reset"


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 80)


FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
ATTACKS: dict[str, Callable[[str], Callable[[], str]]] = {
    "body: 1 M numbers in images": posting(b'{"images":[' + b"0," * 1_000_000 + b"0]}"),
    "body: 15 M numbers in images": posting(b'{"images":[' + b"0," * 15_000_000 + b"0]}"),
    "body: 30 MB of brackets": posting(b'{"images":' + b"[" * 30_000_000),
    "body: 30 MB of quotes": posting(b'{"image_url":"' + b'\\"' * 15_000_000 + b'"}'),
    "body: 30 MB of backslashes": posting(b'{"image_url":"' + b"\\" * 30_000_000 + b'"}'),
    "body: 30 MB of spaces": posting(b'{"images":' + b" " * 30_000_000 + b"0}"),
    "body: 30 MB of base64": posting(b'{"image_url":"data:image/png;base64,' + b"AAAA" * 7_500_000 + b'"}'),
    "body: 30 MB of escaped base64": posting(b'{"image_url":"data:image/png;base64,' + b"\\/" * 15_000_000 + b'"}'),
    "body: 30 MB of almost the boundary": posting(
        FORM + b"\r\n--" * 7_500_000, "multipart/form-data; boundary=" + "-" * 69 + "b"
    ),
    "body: 30 MB of line ends in a form": posting(FORM + b"\r\n" * 15_000_000, "multipart/form-data; boundary=b"),
    "body: chunks of one byte": crumbs,
    "jpeg: 300 scans of 4 MP": image(lambda: scans(300, 2000)),
    "jpeg: 2000 scans of 4 MP": image(lambda: scans(2000, 2000)),
    "jpeg: 90 scans of 16 MP": image(lambda: scans(84, 4000)),
    "jpeg: 36 MP of noise": image(lambda: noise(6000)),
    "gif: 20,000 frames": image(lambda: gif(20_000)),
    "png: a million empty chunks": image(lambda: chunks(1_000_000)),
    "ppm: 20 MB of numbers in text": image(lambda: b"P3 2000 1666 255 " + b"1 " * 9_990_000),
    "header: half-sent": half_headers,
    "header: 200,000 of them": many_headers,
}


if __name__ == "__main__":
    run_main(main)
