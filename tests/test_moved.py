"""Import paths of version 0.1: they work, they say where a name is now, and they cost nothing until they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.util import find_spec

import pytest

from vlm_detect import _moved


def test_every_old_path_resolves_to_a_module():
    for old, new in _moved.moves():
        assert find_spec(f"vlm_detect.{new}") is not None, new
        assert importlib.import_module(f"vlm_detect.{old}").__name__ == f"vlm_detect.{old}"


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("bench.metrics", "figures", "stats.metrics"),
        ("bench.parse", "parse_choice", "questions.read"),
        ("baselines.detector", "CnnDetector", "models.cnn.detector"),
        ("baselines.tasks", "odds_of", "models.cnn.verdicts"),
        ("chat.settings", "ServerSettings", "apps.settings"),
        ("data.decode", "decode_image", "images.decode"),
        ("bench.prompts", "prompts_of", "questions.kind"),
        ("data.questions", "FAKE_QUESTION", "questions.ask"),
        ("data.questions", "Subject", "records"),
        ("train.calibration", "Calibration", "stats.calibration"),
        ("models.nano.weights", "halve", "nano.weights"),
    ],
)
def test_a_name_is_the_one_at_the_new_path(old: str, name: str, new: str):
    with pytest.warns(DeprecationWarning, match=rf"vlm_detect\.{old}\.{name} is vlm_detect\.{new}\.{name} now") as seen:
        found = getattr(importlib.import_module(f"vlm_detect.{old}"), name)
    assert found is getattr(importlib.import_module(f"vlm_detect.{new}"), name)
    assert seen[0].filename == __file__  # at the caller, so that Python shows it


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("data.questions", "draw_questions", "questions.sample.sample_questions"),
        ("data.edits", "draw_edit", "generate.edits.random_edit"),
        ("bench.floors", "text_floors", "benchmark.text_baselines.text_baselines"),
        ("bench.floors", "floors_by_kind", "benchmark.text_baselines.baselines_by_kind"),
        ("bench.model_floors", "model_floors", "benchmark.model_baselines.model_baselines"),
    ],
)
def test_an_old_name_is_the_new_one(old: str, name: str, new: str):
    with pytest.warns(DeprecationWarning, match=rf"vlm_detect\.{old}\.{name} is vlm_detect\.{new} now"):
        found = getattr(importlib.import_module(f"vlm_detect.{old}"), name)
    module, _, new_name = new.rpartition(".")
    assert found is getattr(importlib.import_module(f"vlm_detect.{module}"), new_name)


def test_statements_of_every_form():
    with pytest.warns(DeprecationWarning, match="old path"):
        from vlm_detect.bench.intervals import bootstrap
    from vlm_detect.bench import intervals

    with pytest.warns(DeprecationWarning, match="old path"):
        assert intervals.bootstrap is bootstrap
    with pytest.raises(AttributeError, match=r"no attribute 'bootstrapp'; it is vlm_detect\.stats\.intervals now"):
        intervals.bootstrapp  # noqa: B018
    with pytest.raises(ImportError):
        from vlm_detect.bench import no_such_module  # type: ignore[attr-defined]  # noqa: F401


def test_nothing_is_loaded_or_warned_before_a_name_is_used():
    code = (
        "import sys, vlm_detect; assert 'vlm_detect.bench' not in sys.modules; import vlm_detect.bench.metrics;"
        "assert 'vlm_detect.stats.metrics' not in sys.modules; [hasattr(m, '__file__') for m in sys.modules.values()]"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
