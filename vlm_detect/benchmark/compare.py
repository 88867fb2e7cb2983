"""Several runs on the same items in one table, with paired tests: the content of `vlm-detect compare`.

A run is a folder with `results.jsonl`, or a CSV of any detector with the columns `image, p_fake` (and `label`,
`generator`, `group`, unless a benchmark provides them). Only items that every run answered are compared.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.item_scores import ItemScore, headline_scores, item_scores, verdicts
from vlm_detect.benchmark.results import RESULTS, read_results
from vlm_detect.benchmark.summary import calibrated_figures, every_figure, figures_of, rounded, witness_figures
from vlm_detect.config import read_run_json
from vlm_detect.errors import UserError
from vlm_detect.questions.kind import KINDS, generator_of, is_fake
from vlm_detect.records import is_real_name, label_named
from vlm_detect.schema import Kind, check_schema
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.intervals import RESAMPLES, mcnemar, paired_bootstrap
from vlm_detect.stats.metrics import Array, weighted_figures

PAIRED = ("accuracy", "balanced_accuracy", "auroc")
_ROBUSTNESS = Path("robustness") / "robustness.json"  # next to a run's results, or in its folder


@dataclass(frozen=True)
class Run:
    """One column of the table; `how` is the source of its answers (log-probability, generation, a score file)."""

    name: str
    how: str
    scores: dict[str, ItemScore]
    calibration: Calibration | None = None  # of the run itself
    robustness: dict[str, Any] | None = None  # results of vlm-detect robustness for the same model
    note: str = ""
    explained: dict[str, Any] | None = None  # the figures of its explanations, as its summary has them


def load_run(path: Path, benchmark: Benchmark | None = None) -> Run:
    if path.is_dir():
        results = read_results(path / RESULTS)
        if not results:
            raise UserError(f"{path}: no {RESULTS} with answers; give the --out of vlm-detect benchmark, or a CSV")
        how = "logprob" if any(result.scoring == "logprob" for result in results) else "generate"
        scores = {score.id: score for score in item_scores(results, how)}
        calibration = Calibration.load(path.resolve().parent)
        summary = _json(path / "summary.json", "summary") or {}
        curves = next((found for folder in (path, path.parent) if (found := _curves(path, folder))), None)
        return Run(
            _name(path),
            how,
            scores,
            calibration if calibration.n else None,
            curves,
            str(summary.get("note") or ""),
            summary.get("explanations"),
        )
    if not path.is_file():
        raise UserError(f"{path}: no such folder or CSV file")
    return Run(path.stem, "score file", {score.id: score for score in read_csv(path, benchmark)})


def read_csv(path: Path, benchmark: Benchmark | None) -> list[ItemScore]:
    """The yes/no items of `benchmark` with their image's score; without a benchmark, one item per row with a
    `label`."""
    rows = _csv_rows(path)
    if benchmark is None:
        names = [Path(row["image"]).name for _, row in rows]
        short = len(set(names)) == len(names)  # otherwise real/1.png and fake/1.png would be the same
        ids = names if short else [row["image"] for _, row in rows]
        return [_labelled(path, number, row, id_) for id_, (number, row) in zip(ids, rows, strict=True)]
    p_fake = {row["image"]: float(row["p_fake"]) for _, row in rows}
    by_end: dict[str, list[str]] = defaultdict(list)
    for image in p_fake:
        for end in _ends(image):
            by_end[end].append(image)
    found: list[ItemScore] = []
    missing: list[str] = []
    taken: dict[str, str] = {}  # row -> its image
    for item in benchmark.items:
        truth = is_fake(item)
        if not KINDS[item.kind].is_verdict or truth is None:
            continue
        # An image inside a dataset has no file name: the item's id is used instead.
        ends = [item.id] if item.id in p_fake else _ends(item.images[0])
        fitting: list[str] = next((by_end[end] for end in ends if end in by_end), [])
        if not fitting:
            missing.append(Path(item.images[0]).name)
            continue
        if len(fitting) > 1 or taken.setdefault(fitting[0], item.images[0]) != item.images[0]:
            raise UserError(
                f"{path}: image {fitting[0]} matches several images of the benchmark, such as {item.images[0]}; give "
                "the paths with enough parent folders to be unique"
            )
        facts = (item.group, generator_of(item), str(item.metadata.get("object_class") or ""))
        found.append(_score(item.id, *facts, truth, p_fake[fitting[0]]))
    if missing:
        listed = ", ".join(missing[:5])
        raise UserError(f"{path}: no score for {len(missing)} of the benchmark's images, such as {listed}; add them")
    return found


def _ends(path: str) -> list[str]:
    """`a/b.png` and `b.png` of `/a/b.png`: the longest first."""
    parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("/", "..")]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def compare(
    runs: Sequence[Run], *, by: Mapping[str, Mapping[str, str]] | None = None, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Metrics of every run on the items that all share, and each run against the first.

    `by` maps a column to {item id: value}; every rate is then also computed per value.
    """
    shared = sorted(set.intersection(*(set(run.scores) for run in runs)))
    if not shared:
        raise UserError("the runs share no item: compare runs on the same benchmark")
    for id_ in shared:
        _check_one_item([run.scores[id_] for run in runs])
    table = {run.name: [run.scores[id_] for id_ in shared] for run in runs}
    found: dict[str, Any] = {
        "items": len(shared),
        "left_out": {run.name: len(run.scores) - len(shared) for run in runs},
        "runs": {run.name: _figures(run, table[run.name], resamples) for run in runs},
        "against_first": {
            run.name: paired(*(headline_scores(table[name]) for name in (runs[0].name, run.name)), resamples=resamples)
            for run in runs[1:]
        },
    }
    for column, values in (by or {}).items():
        found[f"by_{column}"] = {
            value: {
                name: figures_of([s for s in headline_scores(scores) if values.get(s.id) == value], resamples=resamples)
                for name, scores in table.items()
            }
            for value in sorted({values[id_] for id_ in shared if values.get(id_)})
        }
    return rounded(found)


def _check_one_item(scores: Sequence[ItemScore]) -> None:
    """`UserError` where one id means different items: many benchmarks use the same numbers as ids."""
    asked = [{(result.question, result.ground_truth) for result in score.results} for score in scores if score.results]
    if len({score.is_fake for score in scores}) > 1 or (asked and not set.intersection(*asked)):
        raise UserError(
            f"the runs answered different benchmarks: item {scores[0].id} is not the same in all; compare runs on "
            "the same benchmark"
        )


def _figures(run: Run, scores: Sequence[ItemScore], resamples: int) -> dict[str, Any]:
    found = {"how": run.how, "note": run.note, **every_figure(scores, resamples=resamples)}
    if alone := witness_figures(scores, resamples):
        found["witnesses"] = alone
    if run.calibration:
        found["calibrated"] = calibrated_figures(scores, run.calibration, resamples)
    if run.explained:
        found["explanations"] = run.explained
    return found


def paired(first: Sequence[ItemScore], second: Sequence[ItemScore], *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """McNemar's test on the items, and the bootstrap of each difference over the shared groups."""
    only_first, only_second, p = mcnemar([s.correct for s in first], [s.correct for s in second])
    tests: dict[str, Any] = {"mcnemar": {"only_first": only_first, "only_second": only_second, "p": p}}
    differences = paired_bootstrap([s.group for s in first], _accuracy(first), _accuracy(second), resamples=resamples)
    (y, p_first, groups, ranked), (_, p_second, _, also_ranked) = verdicts(first), verdicts(second)
    if len(y) and len(p_first) == len(p_second):
        more = paired_bootstrap(
            groups,
            lambda w: weighted_figures(y, p_first, w),
            lambda w: weighted_figures(y, p_second, w),
            resamples=resamples,
        )
        differences |= {name: more[name] for name in PAIRED[1:] if name != "auroc" or (ranked and also_ranked)}
    for name, (interval, p_value) in differences.items():
        tests[name] = {"difference_ci95": interval, "p": p_value}
    return tests


def _accuracy(scores: Sequence[ItemScore]) -> Callable[[Array], dict[str, Array]]:
    right = np.array([score.correct for score in scores], float)
    return lambda weights: {"accuracy": weights @ right / weights.sum(axis=1)}


def _csv_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"image", "p_fake"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: a score file has the columns image, p_fake; this has {reader.fieldnames}")
            rows = list(enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error
    problems = []
    seen: set[str] = set()
    for number, row in rows:
        try:
            in_range = 0 <= float(row["p_fake"]) <= 1
        except (TypeError, ValueError):
            in_range = False
        if not row["image"]:
            problems.append(f"line {number}: no image")
        elif not in_range:
            problems.append(f"line {number}: p_fake {row['p_fake']!r} is not a number from 0 to 1")
        elif row["image"] in seen:
            problems.append(f"line {number}: image {row['image']} occurs twice")
        seen.add(row["image"])
    if problems:
        raise UserError(f"{path}: {len(problems)} bad lines: {'; '.join(problems[:20])}")
    if not rows:
        raise UserError(f"{path}: contains no scores")
    return rows


def _labelled(path: Path, number: int, row: dict[str, str], id_: str) -> ItemScore:
    given = row.get("label") or ""
    label = label_named(given)
    if label not in ("real", "generated"):
        raise UserError(
            f"{path}: line {number}: label {given!r} is neither real nor generated; add a column label, or --benchmark"
        )
    generator = row.get("generator") or ("real" if label == "real" else "unknown")
    generator = "real" if is_real_name(generator) else generator
    return _score(id_, row.get("group") or row["image"], generator, "", label != "real", float(row["p_fake"]))


def _score(id_: str, group: str, generator: str, object_class: str, truth: bool, p_fake: float) -> ItemScore:
    said = p_fake >= 0.5
    return ItemScore(
        id_, "true_false", group, generator, object_class, truth, p_fake, said, said == truth, parsed=True, results=()
    )


def _curves(run: Path, folder: Path) -> dict[str, Any] | None:
    """The results of `vlm-detect robustness` in `folder`, if they are of the same model as the run."""
    record, of_run = (read_run_json(place) for place in ((folder / _ROBUSTNESS).parent, run))
    if record and of_run and _model(record) != _model(of_run):
        return None
    return _json(folder / _ROBUSTNESS)


def _model(record: dict[str, Any]) -> Any:
    """Identify a local model by its weights, regardless of its path."""
    return sorted((record.get("weights_sha256") or {}).values()) or (record.get("model"), record.get("adapter"))


def _json(path: Path, kind: Kind | None = None) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if kind:
        check_schema(kind, found, path)
    return found


def _name(path: Path) -> str:
    """The name of a run: `runs/moondream_lora/eval` becomes moondream_lora."""
    return path.resolve().parent.name if path.name == "eval" else path.name
