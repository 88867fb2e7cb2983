"""Import public VQA sets: LOKI, FakeBench and FakeClue, in their published layouts.

    rows, left_out, problems = import_rows("loki", json.loads(...), images=Path("loki/media"))

- LOKI (`true_or_false.json`, `multi_choice.json`, `open_ended_vqa.json`): the image questions; video, audio, text and
  3D are skipped and counted. A choice between two images becomes which_of_two.
- FakeBench (`FakeClass.json`, `FakeClue.json`): questions by authenticity, and free analyses. Its fault-finding prompt
  leaks the verdict and is skipped. The public files contain no reference texts.
- FakeClue (`data_json/*.json` of FakeVLM): each conversation becomes a real/fake item and an open item, whose reference
  is the published answer.

Questions are kept verbatim, except for image tags.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlm_detect.benchmark.items import bad_items_message
from vlm_detect.benchmark.options import VQA_IMPORTERS, ImportOptions, Reader
from vlm_detect.config import write_json
from vlm_detect.data.named_files import find_file
from vlm_detect.errors import UserError
from vlm_detect.progress import progress
from vlm_detect.questions.markup import untagged
from vlm_detect.questions.read import parse_explanation

# Appended by LOKI's own scripts.
_YES_OR_NO, _LETTER = "Answer with yes or no.", "Answer with the option letter."


class LeftOut(Exception):
    """A valid row that is not about images; the message names its modality."""


def vqa_importer(name: str) -> Callable[[Reader], Reader]:
    """Register a function as the layout `--from name` of a set of questions."""

    def register(reader: Reader) -> Reader:
        VQA_IMPORTERS.add(name, reader)
        return reader

    return register


def import_rows(
    layout: str, rows: Sequence[Any], images: Path, *, named: Callable[[Path], str] = str
) -> tuple[list[dict[str, Any]], Counter[str], list[str]]:
    """(items for a benchmark file, skipped rows by reason, the problems of invalid rows).

    Image paths are of another machine: an image is the file under `images` that matches the longest suffix of its path;
    `named` gives the item's name for it.
    """
    items: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    problems: list[str] = []
    for number, row in enumerate(progress(rows, "import", unit="row")):
        try:
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, not an object")
            for item in VQA_IMPORTERS[layout](row, str(number)):
                key = "images" if "images" in item else "image"
                names = item[key] if key == "images" else [item[key]]
                found = [named(find_image(images, name)) for name in names]
                items.append({**item, key: found if key == "images" else found[0]})
        except LeftOut as reason:
            left_out[str(reason)] += 1
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
            what = f"no {problem}" if isinstance(problem, KeyError) else str(problem)
            problems.append(f"row {number}: {what}")
    return items, left_out, problems


def find_image(folder: Path, name: str) -> Path:
    """The file under `folder` that matches the longest suffix of `name`; ValueError if none does."""
    if (found := find_file(folder, str(name).replace("\\", "/").lstrip("/"))) is None:
        raise ValueError(f"image {name} is not under {folder}")
    return found


@vqa_importer("loki")
def loki(row: Mapping[str, Any], number: str) -> Iterator[dict[str, Any]]:
    if row.get("modality") != "image-text":
        raise LeftOut(f"{row.get('modality', 'no modality')}")
    kind_of_question = str(row.get("question_type", ""))
    category = kind_of_question.rpartition("_")[2]
    question, metric = untagged(row["question"]), row["metric"]
    paths = row["image_path"] if isinstance(row["image_path"], list) else [row["image_path"]]
    base = {"id": str(row.get("id", number))}
    about: dict[str, Any] = {"object_category": category}
    if metric == "multi-choice":
        options, answer = list(row["choices"]), str(row["answer"]).strip().upper()
        question = f"{question}\n{_lettered(options)}\n{_LETTER}"
        if len(paths) == 2:
            # "real_from_fake" asks for the photo; a model that sees single images has to know which one is meant.
            asks_for_photo = "real_from_fake" in kind_of_question or "not generated" in question.partition("Which")[2]
            seeks = {"seeks": "real"} if asks_for_photo else {}
            yield base | _item("which_of_two", paths, question, answer, about | seeks, options)
            return
        yield base | _item("multiple_choice", paths, question, answer, about, options)
    elif metric == "open-ended":
        answer = str(row["answer"]).strip().capitalize()
        if "ask_fake" in kind_of_question or "ask_real" in kind_of_question:
            fake = (answer == "Yes") == ("ask_fake" in kind_of_question)
            about |= {"label": "generated" if fake else "real"}
        yield base | _item("true_false", paths, f"{question}\n{_YES_OR_NO}", answer, about)
    elif metric == "image-model-as-judge":
        notes = row["problems"]
        reasons = [part["desc"] for part in (*notes.get("global", ()), *notes.get("regional", ()))]
        yield base | _item("open", paths, question, " ".join(["Fake.", *reasons]), about | {"label": "generated"})
    else:
        raise LeftOut(f"metric {metric}")


@vqa_importer("fakebench")
def fakebench(row: Mapping[str, Any], number: str) -> Iterator[dict[str, Any]]:
    name = row["image_id"]
    answer = {"answer": row["answer"]} if row.get("answer") else {}
    if "authenticity" not in row:
        about = {"label": "generated", "generator": row["generation_model"]}
        about |= {"object_category": row.get("content_categories", "")}
        reference = f"Fake. {row.get('telltale_clues') or ''}".strip()
        yield {"id": f"{number}:{name}"} | _item("open", [name], row["inference_mode"], reference, about) | answer
        return
    fake = _label(row["authenticity"], fake=0)
    # File names of fakes start with the generator: "Glide-01493.jpg".
    about = {"label": "generated", "generator": name.rpartition("-")[0]} if fake else {"label": "real"}
    question = row["question"]
    if "yes or no" in question.lower():
        truth = "Yes" if fake == ("fake" in question.lower()) else "No"
    else:
        truth = "Fake" if fake else "Real"
    yield {"id": f"{number}:{name}"} | _item("true_false", [name], question, truth, about) | answer


@vqa_importer("fakeclue")
def fakeclue(row: Mapping[str, Any], number: str) -> Iterator[dict[str, Any]]:
    turns = {turn["from"]: turn["value"] for turn in row["conversations"][:2]}
    question, reference = untagged(turns["human"]), turns["gpt"].strip()
    fake = _label(row["label"], fake=0)
    said = parse_explanation(reference)
    if said is not None and said != fake:
        raise ValueError(f"label {row['label']} says {'fake' if fake else 'real'}, its text the opposite")
    about = {"label": "generated" if fake else "real", "object_category": str(row.get("cate", ""))}
    name = row["image"]
    yield {"id": f"{number}/verdict"} | _item("true_false", [name], question, "Fake" if fake else "Real", about)
    yield {"id": f"{number}/reason"} | _item("open", [name], question, reference, about)


def _item(
    kind: str,
    paths: Sequence[str],
    question: str,
    ground_truth: str,
    metadata: Mapping[str, Any],
    options: Sequence[str] = (),
) -> dict[str, Any]:
    image = {"images": list(paths)} if kind == "which_of_two" else {"image": paths[0]}
    known = {name: value for name, value in metadata.items() if value}
    chosen = {"options": list(options)} if options else {}
    return {"kind": kind, **image, "question": question, **chosen, "ground_truth": ground_truth, "metadata": known}


def _label(value: Any, *, fake: int) -> bool:
    if value not in (0, 1):
        raise ValueError(f"label {value!r} is neither 0 nor 1")
    return int(value) == fake


def _lettered(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGH", options, strict=False))


def _name_for(out: Path, images: Path, path: Path) -> str:
    """The name of an image relative to the benchmark's file; an image from another folder is linked or copied next to
    it.

    A benchmark is self-contained in its folder: files outside of it are read only with --allow_local_paths.
    """
    folder, path = out.parent.resolve(), path.resolve()
    if not path.is_relative_to(folder):
        home = images.resolve()
        there = folder / f"{out.stem}_images" / (path.relative_to(home) if path.is_relative_to(home) else path.name)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.unlink(missing_ok=True)
        try:
            there.hardlink_to(path)
        except OSError:  # another disk
            shutil.copyfile(path, there)
        path = there
    return path.relative_to(folder).as_posix()


def import_file(options: ImportOptions) -> None:
    """Write the benchmark file of a published set."""
    source, out = Path(options.questions), Path(options.out)
    images = Path(options.images) if options.images else source.parent
    if not images.is_dir():
        raise UserError(f"--images {images}: no such folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    items, left_out, problems = import_rows(options.layout, read(source), images, named=partial(_name_for, out, images))
    if problems and not options.skip_bad:
        raise UserError(bad_items_message(source, problems, len(items) + len(problems)))
    if not items:
        raise UserError(
            f"{source}: none of its rows is about images" + (f"; such as {problems[0]}" if problems else "")
        )
    write_json(out, items)
    kinds = sorted({item["kind"] for item in items})
    counts = [f"{sum(item['kind'] == kind for item in items)} {kind.replace('_', ' ')}" for kind in kinds]
    counts += [f"{n} skipped ({reason})" for reason, n in left_out.items()]
    counts += [f"{len(problems)} bad"] if problems else []
    print(f"{out}: " + ", ".join(counts))


def read(path: Path) -> list:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: not a list of questions, or an empty list")
    return rows
