"""Conversations as people have them: each form, images of another machine, labels, and what is held back."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_detect.data.conversation_forms import read_conversation
from vlm_detect.errors import UserError
from vlm_detect.train.conversations import is_conversations, questions_of, read_conversations, split
from vlm_detect.train.data import open_splits


def record(name: str, generator: str | None, *turns: str) -> dict[str, object]:
    messages = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(turns)]
    facts = {"image": f"/home/else/{name}", "conversations": messages}
    return facts | ({"metadata": {"generator": generator}} if generator else {})


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")


def test_records_become_rows_and_bad_ones_are_named(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
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
    assert rows["number"] == list(range(11))
    first, second = questions_of(rows[10])
    assert (first.question, first.answer, first.history) == ("What?", "A dog.", ())
    assert (second.question, second.answer, second.history) == ("Is it fake?", "No.", (("What?", "A dog."),))
    train, validation = split(rows)
    assert sorted(validation["label"]) == ["generated", "real"]
    assert not set(train["group"]) & set(validation["group"])
    assert len(train) == 9


def said(
    human: str, gpt: str, asked: str = "<image>\nReal?", answer: str = "Yes.", **keys: str
) -> list[dict[str, str]]:
    role, text = keys.get("role", "from"), keys.get("text", "value")
    return [{role: human, text: asked}, {role: gpt, text: answer}]


OPENAI = {"role": "role", "text": "content"}
DATA_URL = "data:image/png;base64,"
FORMS: dict[str, dict[str, Any]] = {
    "LLaVA": {"image": "IMAGE", "conversations": said("human", "gpt")},
    "a list of one image": {"image": ["IMAGE"], "conversations": said("human", "gpt")},
    "roles of OpenAI": {"image": "IMAGE", "conversations": said("user", "assistant")},
    "capital roles": {"image": "IMAGE", "conversations": said("USER", "ASSISTANT")},
    "ShareGPT": {"images": ["IMAGE"], "conversations": said("human", "gpt", "<image>Real?"), "system": "Be brief."},
    "ms-swift": {"images": ["IMAGE"], "messages": said("user", "assistant", "<image>Real?", **OPENAI)},
    "ms-swift's image object": {"images": [{"path": "IMAGE"}], "messages": said("user", "assistant", **OPENAI)},
    "ms-swift of old": {"images": "IMAGE", "query": "<image>Real?", "response": "Yes.", "history": []},
    "a system turn": {
        "image": "IMAGE",
        "conversations": [{"from": "system", "value": "You are a detector."}, *said("human", "gpt")],
    },
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "IMAGE"}, {"type": "text", "text": "Real?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        ]
    },
    "parts without types": {
        "messages": [
            {"role": "user", "content": [{"image": "IMAGE"}, {"text": "Real?"}]},
            {"role": "assistant", "content": "Yes."},
        ]
    },
    "an image part that names none": {
        "images": ["IMAGE"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Real?"}]},
            {"role": "assistant", "content": "Yes."},
        ],
    },
    "an image URL": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": "Real?"}],
            },
            {"role": "assistant", "content": "Yes."},
        ]
    },
    "a path in the text": {"conversations": said("user", "assistant", "<img>IMAGE</img>\nReal?")},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lines", [False, True])
def test_all_formats_are_read_alike(tmp_path: Path, form: str, lines: bool) -> None:
    write_images(tmp_path / "images", 1)
    data = (tmp_path / "images" / "0.png").read_bytes()
    text = json.dumps(FORMS[form]).replace("IMAGE", "images/0.png")
    text = text.replace(DATA_URL, DATA_URL + base64.b64encode(data).decode())
    path = tmp_path / ("talk.jsonl" if lines else "talk.json")
    path.write_text(f"{text}\n{text}\n" if lines else f"[{text}, {text}]", encoding="utf-8-sig")
    assert is_conversations(str(path))
    rows, problems = read_conversations(str(path))
    assert problems == []
    assert rows["turns"] == [[{"question": "Real?", "answer": "Yes."}]] * 2
    assert [row["image"]["bytes"] for row in rows] == [data] * 2


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "with a byte order mark": lambda text: text.encode("utf-8-sig"),
    "of PowerShell": lambda text: text.encode("utf-16"),
    "with ends of line of Windows": lambda text: text.replace("\n", "\r\n").encode(),
}


@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSONL"])
def test_byte_order_marks_and_line_ends(tmp_path: Path, kind: str, suffix: str) -> None:
    write_images(tmp_path, 2)
    records = [json.dumps(record(f"{i}.png", None, "Ist es künstlich?", "日本")) for i in range(2)]
    text = "\n".join(records) if suffix.lower() == ".jsonl" else f"[{','.join(records)}]"
    (tmp_path / f"talk{suffix}").write_bytes(ENCODINGS[kind](text))
    rows, _ = read_conversations(str(tmp_path / f"talk{suffix}"))
    assert rows[1]["turns"] == [{"question": "Ist es künstlich?", "answer": "日本"}]


@pytest.mark.parametrize(
    "named",
    [
        "C:\\data\\fakes\\images\\1.png",
        "D:/sets/images/1.png",
        "..\\fakes\\images\\1.png",
        "/mnt/else/fakes/images/1.png",
        "file:///mnt/else/images/1.png",
        "images/1.png",
        "1.png",
    ],
)
def test_images_of_another_machine_are_found(tmp_path: Path, named: str) -> None:
    write_images(tmp_path / "images", 2)
    write_images(tmp_path / "other" / "images", 1)
    if named == "1.png":
        (tmp_path / "images" / "1.png").rename(tmp_path / "1.png")
    (tmp_path / "talk.json").write_text(json.dumps([{"image": named, "conversations": said("human", "gpt")}]))
    rows, _ = read_conversations(str(tmp_path / "talk.json"))
    assert rows[0]["image"]["bytes"] == next(tmp_path.rglob("1.png")).read_bytes()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"conversations": said("human", "gpt")}, "it has no image"),
        ({"image": ["0.png", "1.png"], "conversations": said("human", "gpt")}, "2 images; exactly one is supported"),
        ({"image": "none.png", "conversations": said("human", "gpt")}, "none.png is missing"),
        ({"image": "0.png", "conversations": said("gpt", "human")}, "its questions and answers do not alternate"),
        ({"image": "0.png", "conversations": said("human", "observation")}, "'observation', which is neither"),
        ({"image": "0.png", "conversations": said("human", "gpt", "<image>")}, "is empty"),
        ({"image": "0.png", "conversations": said("human", "gpt", answer=" ")}, "is empty"),
        ({"image": "0.png", "conversations": []}, "has no conversation"),
        ({"image": "0.png", "conversations": "Real?"}, "has no conversation"),
        ({"image": "0.png", "messages": [{"role": "user", "content": None}]}, "a NoneType, not a text"),
        ({"image": 7, "conversations": said("human", "gpt")}, "it has no image"),
        ({"image": "data:image/png;base64,%%", "conversations": said("human", "gpt")}, "not base64"),
        ({"image": "0.png", "conversations": said("human", "gpt"), "metadata": "sd"}, "metadata are a str"),
        ("a text", "a str, not an object"),
        ([1], "a list, not an object"),
    ],
)
def test_an_invalid_record_is_named_and_the_others_are_kept(tmp_path: Path, bad: Any, says: str) -> None:
    write_images(tmp_path, 2)
    good = {"image": "1.png", "conversations": said("human", "gpt")}
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, [good, bad, good])) + "\n{broken\n")
    rows, problems = read_conversations(str(tmp_path / "talk.jsonl"))
    assert rows["number"] == [0, 2]
    assert problems[0].startswith("record 1: ")
    assert says in problems[0]
    assert problems[1].startswith("record 3: not JSON")


def test_only_the_image_tag_is_removed() -> None:
    talk = read_conversation(
        {
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nIs it real?"},
                {"from": "gpt", "value": "No. <image> </s>"},
                {"from": "human", "value": "What does <image> mean?"},
                {"from": "gpt", "value": "A tag."},
            ],
        }
    )
    assert talk.turns == (("Is it real?", "No. <image> </s>"), ("What does <image> mean?", "A tag."))


def test_labels_by_generator_or_by_name() -> None:
    def label(**facts: Any) -> tuple[str | None, str]:
        talk = read_conversation({"image": "a.png", "conversations": said("human", "gpt"), **facts})
        return talk.label, talk.generator

    assert label() == (None, "")
    assert label(metadata={"generator": "Camera"}) == ("real", "")
    assert label(metadata={"generator": "sd14"}) == label(generator="sd14") == ("generated", "sd14")
    assert label(label="fake") == label(metadata={"label": "AI-generated"}) == ("generated", "")
    assert label(label=1) == (None, "")


@pytest.mark.parametrize("generators", [[None] * 6, ["sd14"] * 6, ["natural"] * 6])
def test_without_both_labels_all_train_and_there_is_no_validation(
    tmp_path: Path, generators: list[str | None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, 6)
    records = [record(f"{i}.png", generator, "Real?", "Yes.") for i, generator in enumerate(generators)]
    (tmp_path / "talk.json").write_text(json.dumps(records))
    train, held = open_splits(str(tmp_path / "talk.json"))
    assert (len(train), len(held)) == (6, 0)
    assert "validation needs real and generated images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"), [("[]", "it contains none"), ("[{]", "invalid JSON at line 1"), ("", "contains none")]
)
def test_files_without_any_conversation(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "talk.json").write_text(content)
    with pytest.raises(UserError, match=says):
        read_conversations(str(tmp_path / "talk.json"))
