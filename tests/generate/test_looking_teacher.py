"""What `tests/bench/teachers.py` measures on photos, on a few small ones: what is kept, and what it is kept from."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.bench.teachers import Pairs, acceptance, add_reasons, at, questions
from tests.generate.looking_teacher import JUDGES, TEACHERS, LookingTeacher, looking_teacher
from tests.generate.reason_sets import cell, write
from tests.measures.factories import natural, noisy
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.generate import asked_models

ROWS = 10


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pairs]:
    """Photos and twins that are softer and paler."""
    rows = []
    for i in range(ROWS):
        photo = Image.fromarray(np.rint(noisy(natural(i, 48), 0.04, i) * 255).astype(np.uint8))
        twin = Image.blend(photo, photo.convert("L").convert("RGB"), 0.5).filter(ImageFilter.GaussianBlur(1.5))
        facts: dict[str, Any] = {"pair_id": f"pair {i}", "group": f"photo {i}", "image_label": "real", "kind": "vae"}
        rows.append(dict.fromkeys(PAIR_FEATURES) | facts | {"image": cell(photo), "twin": cell(twin)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield Pairs(write(tmp_path_factory.mktemp("pairs"), rows, PAIR_FEATURES))
    asked_models.open_model.cache_clear()


def figures(pairs: Pairs, out: Path, teacher: str, judge: str | None) -> dict[str, Any]:
    with looking_teacher() as server:
        done = add_reasons(pairs, out, "--reasons", "teacher", *at(server, teacher, judge))
        assert done.returncode == 0, done.stderr
        assert questions(server)["to_teacher"] >= 2 * ROWS
    return acceptance(pairs, out, ROWS)


@pytest.mark.parametrize("judge", ["looks", "words", None])
def test_a_good_teacher_is_kept_where_its_samples_agree(pairs: Pairs, tmp_path: Path, judge: str | None) -> None:
    found = figures(pairs, tmp_path / "out", "good", judge)
    assert found["pairs_shown"] == ROWS
    assert found["kept"]["share"] > 0.3
    assert sum(one["n"] for one in found["by_kind"].values()) == found["sentences"] == found["kept"]["n"]
    assert set(found["left_out"]) <= {"draws_differ", "not_denied"}
    assert found["checked_by"] == [judge or "good (the teacher itself)"]


@pytest.mark.parametrize(
    ("teacher", "judge", "reason"),
    [
        ("hallucinates", "looks", "not_denied"), ("hallucinates", None, "not_denied"), ("swaps", "looks", "not_denied"),
        ("disagrees", "looks", "draws_differ"), ("whole_image", "looks", "box_too_large"),
        ("contradicts", "looks", "contradicts_label"), ("compares", "looks", "names_another_image"),
        ("no_json", "looks", "no_json"), ("sees_nothing", "looks", "sees_nothing"),
    ],
)  # fmt: skip
def test_what_is_not_so_is_not_kept(pairs: Pairs, tmp_path: Path, teacher: str, judge: str | None, reason: str) -> None:
    found = figures(pairs, tmp_path / "out", teacher, judge)
    assert max(found["left_out"], key=found["left_out"].get) == reason
    # Two samples that invent independently agree now and then; then the judge denies it.
    assert set(found["left_out"]) <= {reason, "not_denied"}
    assert not found["kept"] or found["kept"]["share"] == 0


@pytest.mark.parametrize(("teacher", "reason"), [("refuses", "refused"), ("hangs", "timed_out")])
def test_single_failures_are_counted_and_the_others_kept(
    pairs: Pairs, tmp_path: Path, teacher: str, reason: str
) -> None:
    share = "tests.generate.looking_teacher." + ("REFUSED_SHARE" if teacher == "refuses" else "HANG_SHARE")
    quickly = (mock.patch.object(LookingTeacher, "hang_s", 8.0), mock.patch("tests.bench.teachers.TIMEOUT_S", 3.0))
    with mock.patch(share, 0.3), quickly[0], quickly[1] if teacher == "hangs" else contextlib.nullcontext():
        found = figures(pairs, tmp_path / "out", teacher, "looks")
    assert 0 < found["left_out"][reason] < ROWS
    assert found["kept"]["share"] > 0.3


def test_an_evasive_judge_denies_nothing(pairs: Pairs, tmp_path: Path) -> None:
    """What it does not answer says nothing about its image: neither kept nor denied."""
    sound = figures(pairs, tmp_path / "sound", "good", "looks")
    evasive = figures(pairs, tmp_path / "evasive", "good", "evades")
    unjudged = evasive["left_out"].pop("not_judged")
    assert 0 < unjudged < sound["sentences"] / 2
    kept, denied = (count_of(evasive, name) - count_of(sound, name) for name in ("kept", "not_denied"))
    assert kept <= 0
    assert denied <= 0
    assert kept + denied == -unjudged


def count_of(found: dict[str, Any], name: str) -> int:
    if name == "kept":
        return round(found["kept"]["share"] * found["kept"]["n"])
    return int(found["left_out"].get(name, 0))


def test_a_limited_rate_loses_nothing(pairs: Pairs, tmp_path: Path) -> None:
    limited = figures(pairs, tmp_path / "limited", "limited", "looks")
    good = figures(pairs, tmp_path / "good", "good", "looks")
    assert limited == {**good, "checked_by": limited["checked_by"]}


def test_every_behaviour_is_named_once() -> None:
    assert max(Counter([*TEACHERS, *JUDGES]).values()) == 1
