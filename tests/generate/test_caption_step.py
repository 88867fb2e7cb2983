"""Captions: from the engine in batches, or from the source's own column; the photo's bytes pass through untouched."""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.data.factories import write_photos
from vlm_detect.errors import UserError
from vlm_detect.generate import caption_step
from vlm_detect.generate.caption_step import caption_photos, name_captioner, plan_captions
from vlm_detect.generate.options import CaptionConfig, SourceConfig
from vlm_detect.jobs.shards import begin, read_rejects, read_rows


class Speaker:
    """An engine that says the size of what it sees, and keeps how many photos it saw at a time and which were begun."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.begun: list[Image.Image] = []

    def prepare_ahead(self, images: Sequence[Image.Image]) -> None:
        self.begun += images

    def caption(self, images: Sequence[Image.Image], length: str = "normal") -> list[str]:
        self.batches.append(len(images))
        return [f"A {length} photo of a thing, {image.width} wide." for image in images]

    def generate(
        self, images: Sequence[Image.Image], questions: list[list[str]], max_new_tokens: int
    ) -> list[list[str]]:
        self.batches.append(len(images))
        return [[f"A blurry photo of {question}" for question in asked] for asked in questions]


def stand_in(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Speaker], revision: str | None = None) -> None:
    """Captioners are made by `make`, and kept from shard to shard as the real one is."""
    load = functools.cache(lambda captioner: (captioner, revision, make()))
    monkeypatch.setattr(caption_step, "_load_captioner", load)


def test_the_captioner_is_freed_before_the_renderer_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", 3)
    made: list[weakref.ref[Speaker]] = []

    def make() -> Speaker:
        speaker = Speaker()
        speaker.itself = speaker  # type: ignore[attr-defined]  # as the parts of a model refer to each other
        made.append(weakref.ref(speaker))
        return speaker

    stand_in(monkeypatch, make)
    source, config = SourceConfig(str(tmp_path / "photos"), shard_size=2), CaptionConfig(captioner="owner/name")
    caption_photos(source, config, plan_captions(source, config), tmp_path / "out")
    assert [speaker() for speaker in made] == [None]  # one for both shards, and it is freed


def test_the_engine_is_called_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "zero.png").write_bytes(b"")
    speaker = Speaker()
    stand_in(monkeypatch, lambda: speaker, "abc")
    source = SourceConfig(str(tmp_path / "photos"), shard_size=4)
    config = CaptionConfig(captioner="owner/name", caption_length="short", caption_batch=3)
    plan = plan_captions(source, config)
    begin(tmp_path / "out", plan)
    caption_photos(source, config, plan, tmp_path / "out")
    assert speaker.batches == [3, 1, 1]
    rows = [row for shard in range(2) for row in read_rows(tmp_path / "out", shard)]
    assert [row["image"]["bytes"] for row in rows] == [path.read_bytes() for path in paths]
    assert {(row["captioner"], row["captioner_revision"]) for row in rows} == {("owner/name", "abc")}
    assert rows[0]["caption_raw"] == "A short photo of a thing, 48 wide."
    assert rows[0]["group"] == rows[0]["id"] == rows[0]["source"]["sha256"][:16]
    assert [(reject.stage, reject.reason) for reject in read_rejects(tmp_path / "out", 1)] == [("decode", "empty")]


def test_the_next_batch_is_decoded_and_begun_while_one_is_captioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos", 6)
    begun: list[int] = []

    class Waiting(Speaker):
        def caption(self, images: Sequence[Image.Image], length: str = "normal") -> list[str]:
            assert all(any(image is one for one in self.begun) for image in images)
            ended = time.monotonic() + 20
            while not self.batches and len(self.begun) < 5 and time.monotonic() < ended:
                time.sleep(0.01)
            begun.append(len(self.begun))
            return super().caption(images, length)

    stand_in(monkeypatch, Waiting)
    source, config = SourceConfig(str(tmp_path / "photos")), CaptionConfig(captioner="owner/name", caption_batch=3)
    caption_photos(source, config, plan_captions(source, config), tmp_path / "out")
    assert begun[0] >= 5, "the second batch waits for the first"
    assert begun[-1] == 6


def test_a_question_may_replace_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path / "photos", 3)
    stand_in(monkeypatch, Speaker)
    source = SourceConfig(str(tmp_path / "photos"))
    config = CaptionConfig(captioner="owner/name", caption_question="what you see", caption_batch=2)
    caption_photos(source, config, plan_captions(source, config), tmp_path / "out")
    rows = list(read_rows(tmp_path / "out", 0))
    assert {(row["caption_raw"], row["caption"]) for row in rows} == {
        ("A blurry photo of what you see", "What you see")
    }


def test_captions_from_a_column_of_any_name(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "photos" / "metadata.jsonl").write_text(
        '{"file_name": "photo00.png", "sentences": ["a photo of a cat", "another"]}\n'
        '{"file_name": "photo01.png", "sentences": ["a dog"]}\n'
    )
    source = SourceConfig(str(tmp_path / "photos"), caption_column="sentences")
    config = CaptionConfig(captioner="column")
    caption_photos(source, config, plan_captions(source, config), tmp_path / "out")
    assert [row["caption"] for row in read_rows(tmp_path / "out", 0)] == ["a cat", "a dog"]


def test_a_missing_caption_column_is_reported(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 2)
    source, config = SourceConfig(str(tmp_path / "photos")), CaptionConfig(captioner=name_captioner("column"))
    with pytest.raises(UserError, match=r"2 photos have no caption, the first is .*photo00\.png"):
        caption_photos(source, config, plan_captions(source, config), tmp_path / "out")


def test_a_real_model_captions(tmp_path: Path) -> None:
    from tests.factories import tiny_vlm

    vlm = tiny_vlm()
    vlm.model.save_pretrained(tmp_path / "model")
    vlm.processor.save_pretrained(tmp_path / "model")
    write_photos(tmp_path / "photos", 2)
    source, config = SourceConfig(str(tmp_path / "photos")), CaptionConfig(captioner=str(tmp_path / "model"))
    plan = plan_captions(source, config)
    caption_photos(source, config, plan, tmp_path / "out")
    # random weights say anything or nothing, and one of the two is written down
    assert len([*read_rows(tmp_path / "out", 0), *read_rejects(tmp_path / "out", 0)]) == 2
