"""Conversations in LLaVA's JSON form: turns, labels, images of another machine, and what is held back."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from vlm_detect.train.conversations import questions_of, read_conversations, split


def record(name: str, generator: str | None, *turns: str) -> dict[str, object]:
    messages = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(turns)]
    facts = {"image": f"/home/else/{name}", "conversations": messages}
    return facts | ({"metadata": {"generator": generator}} if generator else {})


def test_records_become_rows_and_bad_ones_are_named(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    records = [record(f"{i}.png", "natural" if i < 5 else "glide", "<image>\nIs it real?", "Yes.") for i in range(10)]
    records += [record("10.png", None, "What?\n<image>", "A dog.", "Is it fake?", "No.")]
    records += [
        record("broken.png", "glide", "?", "x"),
        record("11.png", "glide", "?"),
        record("11.png", "glide", "", "x"),
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    rows, problems = read_conversations(str(tmp_path / "data.json"))
    assert len(rows) == 11
    assert [line.split(":")[0] for line in problems] == ["record 11", "record 12", "record 13"]
    assert rows["label"] == ["real"] * 5 + ["generated"] * 5 + [""]
    assert rows["generator"] == [""] * 5 + ["glide"] * 5 + [""]
    first, second = questions_of(rows[10])
    assert (first.question, first.answer, first.history) == ("What?", "A dog.", ())
    assert (second.question, second.answer, second.history) == ("Is it fake?", "No.", (("What?", "A dog."),))
    train, validation = split(rows)
    assert sorted(validation["label"]) == ["generated", "real"]
    assert not set(train["group"]) & set(validation["group"])
    assert len(train) == 9
