"""Verdicts that a condition turns over, in either direction, and photos that it makes look generated.

    flips(clean, changed, calibration, variants)["to_real"]["rate"]      # of images that were called generated before
    false_alarms(changed, calibration, variants)["rate"]                 # of photos, called generated

By the run's own threshold where it is calibrated, else at even odds. Intervals are over source photos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_detect.benchmark.item_scores import ItemScore, item_odds
from vlm_detect.stats.calibration import Calibration
from vlm_detect.stats.intervals import RESAMPLES, bootstrap

Scores = Mapping[str, ItemScore]
_WAYS = {"to_real": "From generated to real", "to_generated": "From real to generated"}


def flips(
    clean: Scores,
    changed: Scores,
    calibration: Calibration | None,
    variants: Mapping[str, str],
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """{to_generated, to_real: {n, rate, ci95}}: of those that were called the other before; and the same by variant.

    `variants` gives for each id what was done to its image; without any there is no `by_variant`.
    """
    before = {id_: calls_generated(clean[id_], calibration) for id_ in changed}
    after = {id_: calls_generated(score, calibration) for id_, score in changed.items()}

    def turned(ids: Sequence[str]) -> dict[str, Any]:
        found = {}
        for name, was in (("to_generated", False), ("to_real", True)):
            of = [id_ for id_ in ids if before[id_] is was]
            found[name] = _rate([changed[id_].group for id_ in of], [after[id_] is not was for id_ in of], resamples)
        return found

    return turned(list(changed)) | _by_variant(turned, list(changed), variants)


def false_alarms(
    scores: Scores, calibration: Calibration | None, variants: Mapping[str, str], *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """{n, rate, ci95} of photos that are called generated, and the same by variant."""

    def alarms(ids: Sequence[str]) -> dict[str, Any]:
        said = [calls_generated(scores[id_], calibration) for id_ in ids]
        return _rate([scores[id_].group for id_ in ids], said, resamples)

    photos = [id_ for id_, score in scores.items() if score.is_fake is False]
    return alarms(photos) | _by_variant(alarms, photos, variants)


def calls_generated(score: ItemScore, calibration: Calibration | None) -> bool:
    """The verdict of one item, by the run's threshold where there is one."""
    odds = item_odds(score)
    if calibration is None or not calibration.n or np.isnan(odds):
        return bool(score.said_fake)
    return bool(calibration.p_fake(odds) > calibration.threshold)


def attack_tables(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For the page: of each condition with variants its rates, and a row a variant."""
    tables = []
    for name, row in found.items():
        if alarms := row.get("false_alarms"):
            lines = [{"text": "Photos called generated", "rate": alarms, "clean": alarms["clean"]}]
            cells = {variant: [one] for variant, one in alarms["by_variant"].items()}
            first, columns = "Made by", ["Called generated"]
        elif "by_variant" in (turned := row.get("flips", {})):
            lines = [{"text": text, "rate": turned[way]} for way, text in _WAYS.items()]
            cells = {variant: [one[way] for way in _WAYS] for variant, one in turned["by_variant"].items()}
            first, columns = "The text says", list(_WAYS.values())
        else:
            continue
        rows = [
            {
                "name": variant.replace("_", " "),
                "n": sum(one["n"] for one in rates),
                "cells": [(one["rate"], one["ci95"]) for one in rates],
            }
            for variant, rates in cells.items()
        ]
        tables.append({"name": name, "lines": lines, "first": first, "columns": columns, "rows": rows})
    return tables


def attack_lines(found: Mapping[str, Any]) -> list[str]:
    """The same in a line each, without the variants."""
    described = []
    for table in attack_tables(found):
        parts = [f"{line['text'].lower()} {_told(line['rate'])}" for line in table["lines"]]
        clean = [f"clean {_told(line['clean'])}" for line in table["lines"] if "clean" in line]
        described.append(f"{table['name']}: {', '.join(parts + clean)}")
    return described


def _told(rate: Mapping[str, Any]) -> str:
    if rate["rate"] is None:
        return "undefined (of 0)"
    interval = " [{:.3f}, {:.3f}]".format(*rate["ci95"]) if rate["ci95"] else ""
    return f"{rate['rate']:.3f}{interval} of {rate['n']}"


def _by_variant(figures: Any, ids: Sequence[str], variants: Mapping[str, str]) -> dict[str, Any]:
    names = sorted({variants[id_] for id_ in ids if id_ in variants})
    if not names:
        return {}
    return {"by_variant": {name: figures([id_ for id_ in ids if variants.get(id_) == name]) for name in names}}


def _rate(groups: Sequence[str], hits: Sequence[bool], resamples: int) -> dict[str, Any]:
    values = np.array(hits, float)
    if not len(values):
        return {"n": 0, "rate": None, "ci95": None}
    interval = bootstrap(groups, lambda w: {"rate": w @ values / w.sum(axis=1)}, resamples=resamples)["rate"]
    return {"n": len(values), "rate": float(values.mean()), "ci95": list(interval) if interval else None}
