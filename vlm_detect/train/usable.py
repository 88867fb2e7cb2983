"""Select the rows of a dataset that a model can train on; the rest is skipped before the first step, and reported.

    rows = usable(rows, "data/mine", vlm)

Skipped are images that cannot be decoded (not checked in datasets written by this package), images of a shape that the
model rejects, and conversations whose answers exceed its context.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from vlm_detect.errors import UserError
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.decode import decode_image, upright_size
from vlm_detect.images.stored import StoredImage, undecoded
from vlm_detect.models.base import VLM
from vlm_detect.progress import progress
from vlm_detect.train.conversations import questions_of

_AT_ONCE = 256  # images in memory
_NAMED = 5  # rows listed in a message
_TEMPLATE_BYTES = 200  # more than any template adds to a turn

_Found = tuple[int, str, str]  # row, short reason, details


def usable(rows: Dataset, data: str, vlm: VLM, *, quiet: bool = False) -> Dataset:
    """The rows of `data` that `vlm` can train on; prints the skipped rows unless `quiet`.

    Raises:
        UserError: if no row remains.
    """
    found = {row: (reason, detail) for row, reason, detail in _unusable(rows, data, vlm, quiet)}
    if not found:
        return rows
    is_talk = "number" in rows.column_names
    numbers = rows["number"] if is_talk else range(len(rows))
    what = "conversations" if is_talk else "rows"
    message = f"{len(found)} of {len(rows)} {what} are skipped: {_summary(found, numbers)}"
    if len(found) == len(rows):
        raise UserError(f"{data}: no rows remain for training; {message}")
    if not quiet:
        print(f"{data}: {message}")
    return rows.select([row for row in range(len(rows)) if row not in found])


def _summary(found: dict[int, tuple[str, str]], numbers: Any) -> str:
    """Per reason: the count, the rows, and the details of the first."""
    by_reason: dict[str, list[int]] = defaultdict(list)
    for row, (reason, _) in found.items():
        by_reason[reason].append(row)
    parts = []
    for reason, places in by_reason.items():
        named = ", ".join(str(numbers[row]) for row in places[:_NAMED]) + (", ..." if len(places) > _NAMED else "")
        detail = found[places[0]][1]
        parts.append(f"{len(places)} {reason} (number {named}{f': {detail}' if detail else ''})")
    return "; ".join(parts)


def _unusable(rows: Dataset, data: str, vlm: VLM, quiet: bool) -> Iterator[_Found]:
    is_talk = "turns" in rows.column_names  # their images were decoded when they were read
    decode = not is_talk and not is_own(data)
    if not (decode or is_talk) and vlm.reads_any_shape:
        return
    columns = [name for name in ("image", "twin", "turns") if name in rows.column_names]
    cells = iter(undecoded(rows).select_columns(columns))
    refused_turns = _refused_turns(vlm) if is_talk else ""
    row = 0
    with progress(desc="check images", total=len(rows), unit="row", quiet=quiet) as bar, ThreadPoolExecutor() as pool:
        while chunk := list(islice(cells, _AT_ONCE)):
            for cell, sizes in zip(chunk, pool.map(partial(_sizes, decode=decode), chunk), strict=True):
                reason = (sizes.reason, sizes.detail) if isinstance(sizes, ImageRejected) else _refused(sizes, vlm)
                if reason is None and is_talk and not isinstance(sizes, ImageRejected):
                    reason = _talk_problem(cell["turns"], sizes[0], vlm, refused_turns)
                if reason is not None:
                    yield row, *reason
                row += 1
            bar.update(len(chunk))


def is_own(data: str) -> bool:
    """Whether this package wrote a dataset, and so has decoded all of its images."""
    return (Path(data) / "run.json").is_file()


def _sizes(cell: dict[str, Any], *, decode: bool) -> list[tuple[int, int]] | ImageRejected:
    """(width, height) of a row's images, or why one of them cannot be used."""
    try:
        images = [StoredImage.from_cell(cell[name]) for name in ("image", "twin") if name in cell]
        return [decode_image(one.content).image.size if decode else upright_size(one.content) for one in images]
    except ImageRejected as rejected:
        return rejected


def _refused(sizes: list[tuple[int, int]], vlm: VLM) -> tuple[str, str] | None:
    refusals = (vlm.refusal(size) for size in sizes)
    return next((("of an unsupported shape", refusal) for refusal in refusals if refusal), None)


def _refused_turns(vlm: VLM) -> str:
    """The error of a family without conversations for a second question; None if supported."""
    try:
        vlm.dialogue_ids([("Is it real?", "Yes.")], "Why?")
    except UserError as error:
        return str(error)
    return ""


def _talk_problem(
    turns: list[dict[str, str]], size: tuple[int, int], vlm: VLM, refused_turns: str
) -> tuple[str, str] | None:
    """Why the model cannot train on a conversation, laid out as by `Collator`; None if it can."""
    if refused_turns and len(turns) > 1:
        return "with several turns", refused_turns
    limit = context_of(vlm)
    # An image takes at most as many tokens as its area has squares of 512 pixels, a text at most as many as it has
    # bytes.
    prefix = len(vlm.prefix_ids()) * max(1.0, size[0] * size[1] / 512**2)
    if prefix + sum(len(text.encode()) + _TEMPLATE_BYTES for turn in turns for text in turn.values()) <= limit:
        return None
    longest = max(
        len(vlm.dialogue_ids(asked.history, asked.question)) + len(vlm.answer_ids(asked.answer))
        for asked in questions_of({"turns": turns})
    )
    length = longest + (vlm.prefix_length(size) if prefix + longest > limit else 0)
    detail = f"{length} tokens with the image, while {vlm.name} has a context of {limit}"
    return ("beyond the context", detail) if length > limit else None


def context_of(vlm: VLM) -> int:
    """The maximum number of tokens of an image with one question and its answer, in training."""
    return int(vlm.model.config.get_text_config().max_position_embeddings)
