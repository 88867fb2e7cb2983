"""The Prometheus metrics of a server.

`RequestMetrics` are counted where requests arrive, `ModelMetrics` where the models run. With `--replicas` the latter
are several processes: each writes to files in the folder that the environment variable `PROMETHEUS_MULTIPROC_DIR`
names, and `add_sum` reads them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from starlette.responses import Response

NAMESPACE = "vlm_detect"


class RequestMetrics:
    """Of requests and their answers, as clients see them. `key` is a key's name in the file of `--api_keys`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names: dict[str, Any] = {"namespace": NAMESPACE, "registry": registry}
        self.requests = Counter("requests", "Requests by route and status", ["route", "status"], **names)
        self.seconds = Histogram("request_seconds", "Time from request to complete response", ["route"], **names)
        self.by_key = Counter("key_requests", "Requests by key and status", ["key", "status"], **names)


class ModelMetrics:
    """Of the models and their queue."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names: dict[str, Any] = {"namespace": NAMESPACE, "registry": registry}
        self.batch = Histogram("batch_size", "Jobs per batch", ["kind"], buckets=(1, 2, 4, 8, 16, 32, 64), **names)
        self.verdicts = Counter("verdicts", "Verdicts given", ["label"], **names)
        self.contradictions = Counter("contradictions", "Verdicts where the model contradicts itself", **names)
        self.tokens = Counter("generated_tokens", "Tokens generated", **names)
        self.jobs = Gauge("jobs", "Jobs queued or running", multiprocess_mode="livesum", **names)


class ReplicaMetrics:
    """Of the processes of `--replicas`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        names: dict[str, Any] = {"namespace": NAMESPACE, "registry": registry}
        self.replicas = Gauge("replicas", "Replicas that are wanted, and that take requests", ["state"], **names)
        self.deaths = Counter("replica_deaths", "Replicas that died", **names)
        self.reloads = Counter("reloads", "Reloads that were done, and that failed", ["outcome"], **names)


def add_sum(registry: CollectorRegistry, folder: Path) -> None:
    """Let `registry` have the sum of what processes write to `folder`: counters and histograms of all of them, also of
    dead ones; gauges of those that are alive."""
    multiprocess.MultiProcessCollector(registry, path=str(folder))


def exposition(registry: CollectorRegistry) -> Response:
    """The answer to a scrape."""
    figures = prometheus_client.generate_latest(registry)
    return Response(figures, media_type=prometheus_client.CONTENT_TYPE_LATEST)
