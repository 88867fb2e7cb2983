"""The dashboard in deploy/ shows every metric that a server has, and none that it has not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")
from prometheus_client import CollectorRegistry

from vlm_detect.apps.metrics import ModelMetrics, ReplicaMetrics, RequestMetrics

DASHBOARD = Path(__file__).parents[2] / "deploy" / "dashboard.json"


def served() -> set[str]:
    registry = CollectorRegistry()
    for metrics in (RequestMetrics, ModelMetrics, ReplicaMetrics):
        metrics(registry)
    return {family.name for family in registry.collect()}


def test_every_metric_has_a_panel_and_every_panel_a_metric() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    shown = {
        re.sub("_(total|bucket|sum|count)$", "", name)
        for expression in expressions
        for name in re.findall(r"\bvlm_detect_\w+", expression)
    }
    assert shown == served()


def test_panels_fit_the_grid_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
