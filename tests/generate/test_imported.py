"""Texts of others as reasons: found by name, cut into sentences, and of pairs denied of the other image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pyarrow.parquet as pq
import pytest

from tests.generate.fake_teacher import BOX, SIDE, fake_teacher, picture
from tests.generate.reason_sets import cell, reasons_of, rejects_of, write, write_pairs
from tests.scripts.here import run_here
from vlm_detect.columns import IMAGE_FEATURES
from vlm_detect.generate import asked_models

PROGRAM = "data_gen/reasons.py"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        asked_models.open_model.cache_clear()
        yield


def write_images(folder: Path) -> Path:
    """A photo and two generated images, from files of those names."""
    rows = []
    labels = {"set/real/1.png": "real", "set/fake/1.png": "generated", "b/2.png": "generated"}
    for number, (path, label) in enumerate(labels.items()):
        source = dict.fromkeys(IMAGE_FEATURES["source"]) | {"path_or_id": f"/somewhere/{path}"}
        row = dict.fromkeys(IMAGE_FEATURES) | {"label": label, "group": path, "source": source}
        source["sha256"] = f"{number}" * 64
        rows.append(row | {"image": cell(picture(number, twin=label == "generated"))})
    return write(folder, rows, IMAGE_FEATURES)


def add(dataset: Path, out: Path, texts: Any, *more: object, status: int = 0) -> Any:
    file = out.with_name("texts.json")
    file.write_text(json.dumps(texts))
    with mock.patch("vlm_detect.generate.dataset_files.write_audit"):
        done = run_here(PROGRAM, dataset, "--out", out, "--reasons", "imported", "--texts", file, *more)
    assert done.returncode == status, done.stderr
    return done


def talk(image: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nReal or fake?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


def test_sentences_of_a_text_become_reasons(tmp_path: Path) -> None:
    texts = [
        talk("C:\\data\\set\\fake\\1.png", "It is fake. The hand has six fingers. The sky is nice. Odd light. "
             "A hand holds a cup. You can tell that it is generated because the shadow points to the sun."),
        talk("/x/real/1.png", "This is a real photo. The texture of the wall is natural and uneven."),
        talk("2.png", "It is a real photo. The eyes are sharp."),
        talk("1.png", "The eyes are sharp."),
        talk("3.png", "The eyes are sharp."),
        talk("2" * 64, "The letters are garbled."),
        {"image": "2.png"},
    ]  # fmt: skip
    add(write_images(tmp_path / "set"), tmp_path / "out", texts, "--texts_layout", "conversations")
    found = reasons_of(tmp_path / "out", "reasons")
    assert [(one.text, one.kind, one.supports) for one in found["set/fake/1.png"]] == [
        ("The hand has six fingers.", "anatomy", "generated"),
        ("The shadow points to the sun.", "light", "generated"),
    ]
    assert [(one.text, one.supports) for one in found["set/real/1.png"]] == [
        ("The texture of the wall is natural and uneven.", "real")
    ]
    assert [one.text for one in found["b/2.png"]] == ["The letters are garbled."]
    assert {(one.source, one.checked_by, one.margin) for some in found.values() for one in some} == {
        ("imported", "", None)
    }
    rejects = rejects_of(tmp_path / "out")
    assert rejects["/somewhere/b/2.png"] == ["contradicts_label"]
    assert rejects["1.png"] == ["several_such_images"]
    assert rejects["3.png"] == ["no_such_image"]
    assert rejects["item 7"] == ["bad_record"]
    assert Counter(rejects["/somewhere/set/fake/1.png"]) == {
        "states_label": 1,
        "no_kind": 1,
        "no_sentence": 1,
        "says_nothing": 1,
    }
    assert "checked by" not in (tmp_path / "out" / "README.md").read_text()
    assert "judge: none" in (tmp_path / "out" / "README.md").read_text()


def test_boxes_are_cut_at_the_image(tmp_path: Path) -> None:
    problems = {
        "regional": [
            {"region": [24, 0, 12, 12], "desc": "The hand has six fingers."},
            {"region": [40, 40, 40, 40], "desc": "The eyes do not match."},
            {"region": [90, 90, 5, 5], "desc": "The sign is garbled."},
            {"region": [0, 0, 48, 40], "desc": "The light is wrong."},
        ]
    }
    texts = [{"image_path": "b/2.png", "problems": problems}]
    add(write_images(tmp_path / "set"), tmp_path / "out", texts, "--texts_layout", "loki")
    found = {one.text: one.box for one in reasons_of(tmp_path / "out", "reasons")["b/2.png"]}
    assert found == {
        "The hand has six fingers.": (24, 0, 36, 12),
        "The eyes do not match.": (40, 40, 48, 48),
        "The sign is garbled.": None,
    }
    assert rejects_of(tmp_path / "out")["/somewhere/b/2.png"] == ["box_too_large"]


def test_in_pairs_a_sentence_is_denied_of_the_other_image(tmp_path: Path) -> None:
    box = [round(part * SIDE) for part in BOX]
    texts = [
        {"id": "pair 0", "about": "twin", "text": "A red square floats there.", "kind": "physics", "box": box},
        {"id": "pair 0", "about": "image", "text": "A green square lies on the wall.", "kind": "light"},
        {"id": "pair 1", "about": "twin", "text": "A grey wall is behind it.", "kind": "background"},
    ]
    pairs = write_pairs(tmp_path / "pairs", [0, 1])
    with fake_teacher() as server:
        judge = ["--judge_endpoint", server.url, "--judge", "fake-vlm"]
        add(pairs, tmp_path / "out", texts, *judge)
        assert not [request for request in server.requests if server.is_question(request)]
    (twin,) = reasons_of(tmp_path / "out", "twin_reasons")["photo 0"]
    (photo,) = reasons_of(tmp_path / "out", "image_reasons")["photo 0"]
    assert (twin.text, twin.supports, list(twin.box or ())) == ("A red square floats there.", "generated", box)
    assert (photo.supports, photo.checked_by) == ("real", "fake-vlm")
    assert rejects_of(tmp_path / "out") == {"pair 1 twin": ["not_denied"]}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sentences: 2 of 3 (0 of 1 background, 1 of 1 light, 1 of 1 physics); rejected: 1 not_denied" in card


def test_without_pairs_a_judge_is_asked_about_the_image_alone(tmp_path: Path) -> None:
    texts = [
        {"image": "b/2.png", "text": "A red square floats there.", "kind": "physics"},
        {"image": "b/2.png", "text": "A yellow square floats there.", "kind": "physics"},
    ]
    with fake_teacher() as server:
        judge = ["--judge_endpoint", server.url, "--judge", "fake-vlm"]
        add(write_images(tmp_path / "set"), tmp_path / "out", texts, *judge)
    (kept,) = reasons_of(tmp_path / "out", "reasons")["b/2.png"]
    assert kept.checked_by == "fake-vlm, without a counterpart"
    assert rejects_of(tmp_path / "out") == {"/somewhere/b/2.png": ["not_borne_out"]}


def test_wrong_requests(tmp_path: Path) -> None:
    images, pairs = write_images(tmp_path / "set"), write_pairs(tmp_path / "pairs", [0])
    texts = [{"image": "b/2.png", "text": "A red square floats there."}]
    assert "give a --judge" in add(pairs, tmp_path / "out", texts, status=1).stderr
    strangers = [{"image": "9.png", "text": "A red square."}]
    printed = add(images, tmp_path / "out", strangers, status=1).stderr
    assert "none of its records is about an image" in printed
    assert "9.png" in printed
    with mock.patch("vlm_detect.generate.dataset_files.write_audit"):
        done = run_here(PROGRAM, images, "--out", tmp_path / "out", "--reasons", "imported")
    assert (done.returncode, "go together" in done.stderr) == (2, True)
    gone = ["--reasons", "imported", "--texts", tmp_path / "no.json"]
    missing = run_here(PROGRAM, images, "--out", tmp_path / "out", *gone)
    assert (missing.returncode, "no.json" in missing.stderr) == (1, True)


def test_unjudged_texts_are_kept_with_measured_reasons(tmp_path: Path) -> None:
    """A run with the texts again, after another source was added, keeps what that one found."""
    texts = [{"image": "b/2.png", "text": "The hand has six fingers."}]
    add(write_images(tmp_path / "set"), tmp_path / "first", texts)
    other = [{"image": "b/2.png", "text": "The eyes do not match."}]
    add(tmp_path / "first", tmp_path / "second", other)
    assert [one.text for one in reasons_of(tmp_path / "second", "reasons")["b/2.png"]] == ["The eyes do not match."]
    table = pq.read_table(next((tmp_path / "second").glob("data/*.parquet")))
    assert table.column_names.count("reasons") == 1
