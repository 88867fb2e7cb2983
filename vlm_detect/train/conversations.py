"""Conversations about images in LLaVA's JSON form, as training rows.

    [{"id": ..., "image": "photo.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."},
      {"from": "gpt", "value": "..."}, ...], "metadata": {"generator": "natural"}}, ...]

An image is looked for where the JSON says, else by its file name beside the JSON (paths of another machine). Every
answer is learned behind the turns before it. A generator called natural or real makes an image a real one; without a
generator an image trains and validates nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value

from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.records import Question, is_real_name

FEATURES = Features(
    {
        "image": Image(decode=False),
        "label": Value("string"),
        "generator": Value("string"),
        "group": Value("string"),
        "turns": List({"question": Value("string"), "answer": Value("string")}),
    }
)
_VALIDATION_PART = 0.2


def is_conversations(data: str) -> bool:
    """Whether `--data` names a JSON file of conversations."""
    return Path(data).suffix == ".json" and Path(data).is_file()


def read_conversations(path: str) -> tuple[Dataset, list[str]]:
    """The rows of `FEATURES`, and for each record that cannot be used its number and the reason.

    Raises:
        UserError: where the file is no JSON list, or none of its records can be used.
    """
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a JSON file of conversations ({error})") from error
    if not isinstance(records, list):
        raise UserError(f"{path}: holds a {type(records).__name__}, not a list of conversations")
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, record in enumerate(records):
        try:
            rows.append(_row(record, Path(path).parent))
        except (ValueError, ImageRejected) as error:
            problems.append(f"record {number}: {error}")
    if not rows:
        reason = problems[0] if problems else "the list is empty"
        raise UserError(f"{path}: none of its {len(records)} conversations can be used; {reason}")
    return Dataset.from_list(rows, features=FEATURES), problems


def split(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Rows to train on and to validate on: a fifth of either class, chosen by the images' bytes."""
    held: set[int] = set()
    for label in ("real", "generated"):
        of_label = [i for i, found in enumerate(rows["label"]) if found == label]
        of_label.sort(key=lambda i: rows[i]["group"])
        held |= set(of_label[: round(_VALIDATION_PART * len(of_label))])
    rest = [i for i in range(len(rows)) if i not in held]
    return rows.select(rest), rows.select(sorted(held))


def questions_of(row: dict[str, Any]) -> list[Question]:
    """Each turn of a row as a question, with the turns before it."""
    turns = [(turn["question"], turn["answer"]) for turn in row["turns"]]
    return [
        Question("explain", question, answer, history=tuple(turns[:i])) for i, (question, answer) in enumerate(turns)
    ]


def _row(record: Any, folder: Path) -> dict[str, Any]:
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        raise ValueError("no image is named")
    turns = list(_turns(record.get("conversations")))
    path = next((at for at in (folder / record["image"], folder / Path(record["image"]).name) if at.is_file()), None)
    if path is None:
        raise ValueError(f"{record['image']} is neither there nor, by its name, beside the JSON")
    decode_image(path)  # refuses what is no image, or too large a one
    content = path.read_bytes()
    generator = str((record.get("metadata") or {}).get("generator") or "")
    label = "" if not generator else "real" if is_real_name(generator) else "generated"
    return {
        "image": {"bytes": content, "path": None},
        "label": label,
        "generator": "" if label == "real" else generator,
        "group": hashlib.sha256(content).hexdigest(),
        "turns": turns,
    }


def _turns(messages: Any) -> Iterator[dict[str, str]]:
    """Pairs of what a human asks and the model answers; the mark of the image's place is dropped."""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise ValueError("its conversation is not made of questions and answers in turn")
    for asked, answered in zip(messages[::2], messages[1::2], strict=True):
        if [message.get("from") for message in (asked, answered)] != ["human", "gpt"]:
            raise ValueError("its conversation is not made of questions (human) and answers (gpt) in turn")
        question = str(asked["value"]).replace("<image>", "").strip()
        if not question or not str(answered["value"]).strip():
            raise ValueError("a question or an answer is empty")
        yield {"question": question, "answer": str(answered["value"])}
