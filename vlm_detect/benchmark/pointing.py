"""Compare a model's maps and answers with planted edits: the implementation of `vlm-detect evidence`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from vlm_detect.benchmark.explained_rows import is_of_few
from vlm_detect.benchmark.options import EvidenceOptions
from vlm_detect.benchmark.run import default_out
from vlm_detect.config import command_line, git_commit, write_json, write_run_json
from vlm_detect.data.pairs import load_pairs
from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage, undecoded
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.engine import Ask
from vlm_detect.infer.evidence import evidence_map
from vlm_detect.infer.verdict import log_odds
from vlm_detect.models.registry import resolve_id
from vlm_detect.progress import progress
from vlm_detect.questions.ask import EDIT_EXPLAIN_QUESTION
from vlm_detect.questions.kinds.operation import NOTHING, OPERATION_QUESTION
from vlm_detect.questions.kinds.place import PLACE_QUESTION
from vlm_detect.questions.sample import make_question
from vlm_detect.records import Subject, Topic
from vlm_detect.stats.intervals import Interval, bootstrap
from vlm_detect.stats.metrics import Array

RESAMPLES = 2000
WORDS = {"operation": OPERATION_QUESTION, "place": PLACE_QUESTION, "explanation": EDIT_EXPLAIN_QUESTION}
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Edit:
    """The result for one edit: whether the peak hit its box, the box's share of the image, both images' log-odds, and
    the answers; `true` and `said` by the keys of `WORDS`."""

    group: str
    operation: str
    strength: float
    hit: bool
    share: float
    odds_edited: float
    odds_before: float
    true: dict[str, str]
    said: dict[str, str]
    likeliest: str  # log-probabilities of the operations' names
    said_before: str  # the answer about the unedited image

    def right(self, what: str) -> bool:
        if what == "likeliest":
            return self.likeliest == self.true["operation"]
        return self.said[what] == self.true[what]


def judge_pointing(options: EvidenceOptions) -> None:
    """Write evidence.json into `--out` and print one line per metric."""
    rows = load_pairs(options.data, options.split).filter(lambda kind: kind == "edit", input_columns="kind")
    if not len(rows):
        raise UserError(
            f"{options.data}: no edits in its {options.split} split; vlm-detect make-pairs --twins edit makes some"
        )
    rows = rows.select(range(min(len(rows), options.limit or len(rows))))
    detector = Detector(options.model, adapter=options.adapter)
    edits = list(progress(look(detector, rows, options.topic), "edits", total=len(rows), unit="edit"))
    found = {
        "model": detector.name,
        "task": "planted edits: pointed at, named",
        "data": options.data,
        "split": options.split,
        "topic": options.topic,
        **figures(edits),
        "command": " ".join(command_line()),
        "commit": git_commit(),
        "device": str(detector.engine.vlm.device),
    }
    # Never a folder named like a Hub id: it would shadow the model from then on.
    model = resolve_id(options.model).name if options.model == "auto" else options.model
    out = Path(options.out or default_out(options.adapter or model, None).parent / "evidence")
    write_json(out / "evidence.json", found)
    write_run_json(out, options)
    few = f" (of {found['groups']} photos: too few to say)" if is_of_few(found) else ""
    hits = f"the peak hits {found['hit_rate']:.3f} of the boxes, by chance {found['chance']:.3f}"
    print(f"{found['n']} edits{few}: {hits}")
    ratio = f"ratio {found['ratio']:.2f}{shown(found['ci95']['ratio'])}"
    print(f"{ratio}; edited against untouched AUROC {found['auroc']:.3f}")
    for what, words in found["words"].items():
        print(f"{what} right {words['right']:.3f}{shown(words['ci95'])}, by chance {words['chance']:.3f}")


def look(detector: Detector, rows: Any, topic: Topic) -> Iterator[Edit]:
    engine = detector.engine
    rows = undecoded(rows)
    names = sorted({true_words(edit, (1, 1))["operation"] for edit in rows["edit"]})
    naming = [Ask(OPERATION_QUESTION, tuple(names))]
    for places in engine.images_at_once.batches(range(len(rows))):
        some = [rows[i] for i in places]
        edited, before = ([StoredImage.from_cell(row[column]).open() for row in some] for column in ("twin", "image"))
        odds = log_odds(engine, before, topic=topic)
        said = engine.generate(edited, [list(WORDS.values())] * len(some), MAX_NEW_TOKENS)
        said_before = engine.generate(before, [[OPERATION_QUESTION]] * len(some), MAX_NEW_TOKENS)
        scores = [asked[0] for asked in engine.score(edited, [naming] * len(some))]
        for i, (row, image) in enumerate(zip(some, edited, strict=True)):
            found = evidence_map(engine, image, topic=topic)
            x0, y0, x1, y1 = row["edit"]["box"]
            x, y = found.peak[0] * image.width, found.peak[1] * image.height
            yield Edit(
                group=row["group"],
                operation=row["edit"]["operation"],
                strength=row["edit"]["strength"],
                hit=x0 <= x < x1 and y0 <= y < y1,
                share=(x1 - x0) * (y1 - y0) / (image.width * image.height),
                odds_edited=found.log_odds,
                odds_before=odds[i],
                true=true_words(row["edit"], image.size),
                said=dict(zip(WORDS, said[i], strict=True)),
                likeliest=names[int(np.argmax([score.logprob for score in scores[i]]))],
                said_before=said_before[i][0],
            )


def true_words(edit: dict[str, Any], size: tuple[int, int]) -> dict[str, str]:
    """The training answers to `WORDS`."""
    subject = Subject(label="edited", kind="edit", edit=edit, size=size)
    kinds = ("operation", "place", "explain")
    asked = [make_question(subject, kind, "fake", Random(0), topic="edit") for kind in kinds]
    return {what: question.answer for what, question in zip(WORDS, asked, strict=True) if question}


def figures(edits: Sequence[Edit]) -> dict[str, Any]:
    by_operation = {
        operation: [edit for edit in edits if edit.operation == operation]
        for operation in sorted({edit.operation for edit in edits})
    }
    stronger = [
        edit
        for some in by_operation.values()
        for edit in some
        if edit.strength >= np.median([other.strength for other in some])
    ]
    return {
        **of_all(edits),
        "stronger_half": of_all(stronger),
        "by_operation": {operation: of_operation(some) for operation, some in by_operation.items()},
    }


def of_all(edits: Sequence[Edit]) -> dict[str, Any]:
    hit, share = (np.array([getattr(edit, name) for edit in edits], dtype=float) for name in ("hit", "share"))
    asked_for = {"likeliest": "operation", **{what: what for what in WORDS}}
    right = {what: np.array([edit.right(what) for edit in edits], dtype=float) for what in asked_for}
    groups = [edit.group for edit in edits]

    def rates(weights: Array) -> dict[str, Array]:
        counts = {"hit_rate": weights @ hit, **{what: weights @ values for what, values in right.items()}}
        return {what: count / weights.sum(1) for what, count in counts.items()} | {
            "ratio": (weights @ hit) / (weights @ share)
        }

    ci95 = bootstrap(groups, rates, resamples=RESAMPLES)
    odds = [edit.odds_edited for edit in edits] + [edit.odds_before for edit in edits]
    return {
        "n": len(edits),
        "groups": len(set(groups)),
        "hit_rate": float(hit.mean()),
        "chance": float(share.mean()),
        "ratio": float(hit.mean() / share.mean()),
        "ci95": {name: ci95[name] for name in ("hit_rate", "ratio")},
        "auroc": float(roc_auc_score([1] * len(edits) + [0] * len(edits), odds)),
        "words": {
            what: {
                "right": float(right[what].mean()),
                "chance": commonest([edit.true[true] for edit in edits]),
                "ci95": ci95[what],
            }
            for what, true in asked_for.items()
        },
        "nothing_of_untouched": float(np.mean([edit.said_before == NOTHING for edit in edits])),
    }


def of_operation(edits: Sequence[Edit]) -> dict[str, Any]:
    return {
        "n": len(edits),
        "hit_rate": float(np.mean([edit.hit for edit in edits])),
        "chance": float(np.mean([edit.share for edit in edits])),
        "named": float(np.mean([edit.right("operation") for edit in edits])),
        "likeliest": dict(Counter(edit.likeliest for edit in edits).most_common()),
        "said": dict(Counter(edit.said["operation"] for edit in edits).most_common(8)),
    }


def shown(interval: Interval) -> str:
    """A single photo has no interval."""
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


def commonest(words: Sequence[str]) -> float:
    """The share of the most frequent value."""
    return Counter(words).most_common(1)[0][1] / len(words)
