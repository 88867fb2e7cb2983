"""Conversation files as training rows: JSON or JSONL in the layout of LLaVA, ShareGPT or ms-swift.

    rows, problems = read_conversations("talks.json")
    train, validation = split(rows)

`conversation_forms.py` has the layouts. An image is found at its path or, for paths of another machine (also Windows),
by the longest suffix that matches a file. Every answer is trained given the turns before it. A generator named natural,
real or similar makes an image a real one; an image without a generator is used for training, but not for validation.
Turns before the first question (a system prompt) are dropped: a model keeps its own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value

from vlm_detect.data.conversation_forms import Conversation, read_conversation
from vlm_detect.data.named_files import find_file, json_rows, why_not_found
from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected, read_bounded
from vlm_detect.images.decode import decode_image
from vlm_detect.records import Question

FEATURES = Features(
    {
        "image": Image(decode=False),
        "label": Value("string"),
        "generator": Value("string"),
        "group": Value("string"),
        "turns": List({"question": Value("string"), "answer": Value("string")}),
        "number": Value("int64"),  # of the record in its file, from 0
    }
)
_VALIDATION_PART = 0.2


def is_conversations(data: str) -> bool:
    """Whether `--data` names a file of conversations."""
    return Path(data).suffix.lower() in (".json", ".jsonl") and Path(data).is_file()


def read_conversations(path: str) -> tuple[Dataset, list[str]]:
    """The rows of `FEATURES`, and the number and reason of each unusable record.

    Raises:
        UserError: where the file is not JSON, or none of its records can be used.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    systems = 0
    number = -1
    for number, (_, record) in enumerate(json_rows(Path(path))):
        try:
            if isinstance(record, ValueError):
                raise record
            talk = read_conversation(record)
            rows.append({**_row(talk, Path(path).parent), "number": number})
            systems += bool(talk.system)
        except (ValueError, ImageRejected) as error:
            problems.append(f"record {number}: {error}")
    if not rows:
        reason = problems[0] if problems else "it contains none"
        raise UserError(f"{path}: none of its {number + 1} conversations can be used; {reason}")
    if systems:
        print(f"{path}: the system prompts of {systems} conversations are dropped; the model keeps its own")
    return Dataset.from_list(rows, features=FEATURES), problems


def split(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Split into rows for training and for validation: a fifth of either class, chosen by the images' hashes.

    If one of the classes is missing, validation is impossible and all rows are used for training.
    """
    held: set[int] = set()
    for label in ("real", "generated"):
        of_label = [i for i, found in enumerate(rows["label"]) if found == label]
        if not of_label:
            return rows, rows.select([])
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


def _row(talk: Conversation, folder: Path) -> dict[str, Any]:
    content = talk.image if isinstance(talk.image, bytes) else _content(talk.image, folder)
    decode_image(content)  # rejects what is not an image, or too large
    return {
        "image": {"bytes": content, "path": None},
        "label": talk.label or "",
        "generator": talk.generator,
        "group": hashlib.sha256(content).hexdigest(),
        "turns": [{"question": question, "answer": answer} for question, answer in talk.turns],
    }


def _content(name: str, folder: Path) -> bytes:
    if (path := find_file(folder, name)) is None:
        raise ValueError(why_not_found(folder, name))
    return read_bounded(path)
