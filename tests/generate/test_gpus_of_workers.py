"""On a cluster every step with a model of full size gets GPUs: on CPUs it would take weeks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vlm_detect.generate import caption_step, reasons, render_step
from vlm_detect.generate.options import CaptionConfig, RenderConfig, SourceConfig
from vlm_detect.generate.reason_options import TeacherConfig
from vlm_detect.jobs.launch import Launch

HERE, PLAN = Path(), SimpleNamespace(settings={})
REAL = "owner/model"


def gpus(module: ModuleType, monkeypatch: pytest.MonkeyPatch, run: Any) -> int | None:
    """The GPUs of a worker with which `module` starts its shards."""
    given: list[Launch] = []

    def run_shards(*arguments: Any) -> None:
        given.extend(argument for argument in arguments if isinstance(argument, Launch))

    monkeypatch.setattr(module, "run_shards", run_shards)
    run(Launch("ray"))
    return given[0].gpus


@pytest.mark.parametrize(("name", "expected"), [("nano", 0), (REAL, 1)])
def test_captions_and_twins(name: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source, captions = SourceConfig("photos"), CaptionConfig(captioner=name)
    plan: Any = PLAN
    caption = partial(caption_step.caption_photos, source, captions, plan, HERE)
    render = partial(render_step.render_twins, HERE, RenderConfig(generator=name), plan, HERE)
    assert gpus(caption_step, monkeypatch, caption) == expected
    assert gpus(render_step, monkeypatch, render) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"teacher": "nano"}, 0),
        ({"teacher": REAL}, 1),
        ({"teacher": "nano", "judge": REAL}, 1),
        ({"teacher": REAL, "teacher_endpoint": "http://localhost:8000/v1"}, 0),
    ],
)
def test_teachers_and_judges(asked: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "begin", lambda *_: None)
    wanted = SimpleNamespace(teacher=TeacherConfig(**asked), texts=None)
    plan: Any = SimpleNamespace(dataset="pairs", steps={"teacher": PLAN}, wanted=wanted)
    assert gpus(reasons, monkeypatch, partial(reasons.find_reasons, plan, HERE)) == expected
