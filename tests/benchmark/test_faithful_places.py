"""Faithfulness and hits where explanations name places: planted edits in real photos of 160 pixels.

The models are rules that know what their verdict rests on: the edit's own pixels, other pixels, or none.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from tests.benchmark.explained import asked_for_reasons, explained, write_split
from tests.benchmark.fakes import FakeEngine
from tests.train.reasoned import with_reasons
from vlm_detect.benchmark import faithfulness
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.checked import Checked
from vlm_detect.benchmark.explained_rows import explained_rows, is_of_few
from vlm_detect.benchmark.faithfulness import faithfulness_figures, probes
from vlm_detect.benchmark.hits import hit_figures, planted
from vlm_detect.benchmark.report_sections import explanations_part
from vlm_detect.columns import PAIR_FEATURES
from vlm_detect.data.demo_photos import TileConfig, write_demo_photos
from vlm_detect.generate.edit_reasons import edit_reasons
from vlm_detect.generate.edits import random_edit
from vlm_detect.places import PLACES
from vlm_detect.records import Item
from vlm_detect.stats.intervals import FEW

SIDE, PHOTOS = 160, 24
Rule = Callable[[Image.Image], float]  # the log-odds that an image was altered


@dataclass(frozen=True)
class Edits:
    """The benchmark, with each edit's pixels before and after: (n, SIDE, SIDE, 3)."""

    benchmark: Benchmark
    photos: np.ndarray
    twins: np.ndarray

    def which(self, pixels: np.ndarray) -> int:
        """The edit that an image is a copy of."""
        return int((self.twins[:, ::5, ::5] == pixels[::5, ::5]).mean(axis=(1, 2, 3)).argmax())

    def sees_the_edit(self, image: Image.Image) -> float:
        """As much as is left of the pixels that the edit changed."""
        pixels = np.asarray(image)
        i = self.which(pixels)
        changed = (self.twins[i] != self.photos[i]).any(axis=2)
        return 10 * float((pixels == self.twins[i]).all(axis=2)[changed].mean()) - 2

    def sees_elsewhere(self, image: Image.Image) -> float:
        """As much as is left of the ninth across from the edit."""
        pixels = np.asarray(image)
        i = self.which(pixels)
        left, top, right, bottom = changed_box(self.twins[i], self.photos[i])
        rows, columns = (slice(0, SIDE // 3) if side > SIDE / 2 else slice(-SIDE // 3, None) for side in
                         ((top + bottom) / 2, (left + right) / 2))  # fmt: skip
        return 10 * float((pixels == self.twins[i])[rows, columns].mean()) - 2


def changed_box(twin: np.ndarray, photo: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((twin != photo).any(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> Edits:
    tiles = tmp_path_factory.mktemp("photos") / "tiles"
    write_demo_photos(tiles, TileConfig(tile=SIDE, tiles_per_group=6))
    rows, photos, twins = [], [], []
    for path in sorted(tiles.glob("*.png"), key=lambda path: path.stem[-3:]):
        photo = Image.open(path).convert("RGB")
        made = random_edit(photo, seed=len(rows), operations=("blur", "smear", "recolour", "warp"))
        edit = {"of": "photo", "operation": made.operation, "box": list(made.box), "strength": made.strength}
        reasons = edit_reasons(edit, photo.size, seed=path.stem)
        facts: dict[str, Any] = {"pair_id": path.stem, "group": path.stem, "image_label": "real", "kind": "edit"}
        facts |= {"generator": "", "edit": {**edit, "donor": None, "attempt": made.attempt}, "image_reasons": []}
        images = {"image": cell(photo), "twin": cell(made.image)}
        rows.append(
            {**dict.fromkeys(PAIR_FEATURES), **facts, **images, "twin_reasons": [one.to_row() for one in reasons]}
        )
        photos.append(np.asarray(photo))
        twins.append(np.asarray(made.image))
        if len(rows) == PHOTOS:
            break
    assert len(rows) == PHOTOS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        dataset = Dataset.from_list(rows, features=with_reasons(PAIR_FEATURES, "pairs"))
        folder: Path = write_split(tmp_path_factory.mktemp("edits"), dataset)
        return Edits(asked_for_reasons(folder), np.stack(photos), np.stack(twins))


def cell(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def as_recorded(item: Item) -> str:
    """The dataset's own explanation, in the words that a model learns."""
    return item.ground_truth


def the_opposite_place(item: Item) -> str:
    return f"Altered. Blur at the {PLACES[8 - PLACES.index(item.metadata['edit']['place'])]}."


def checked(edits: Edits, say: Callable[[Item], str]) -> list[Checked]:
    return [row.checked for row in explained(edits.benchmark, say) if row.checked]


def figures(edits: Edits, rule: Rule, say: Callable[[Item], str], most: int = 100) -> dict[str, Any]:
    def score(image: Image.Image, question: str, candidates: Sequence[str]) -> list[float]:
        odds = rule(image)
        return [odds, 0.0] if "free of" not in question else [0.0, odds]

    assert edits.benchmark.dataset is not None
    wanted = probes(checked(edits, say), most=most)
    records = faithfulness.asker(FakeEngine(score), edits.benchmark.dataset)(wanted)
    found = faithfulness_figures(wanted, records, resamples=200)
    assert found is not None
    return found


def off_centre(item: Item) -> bool:
    return item.metadata["edit"]["place"] != "centre"


def test_a_verdict_that_rests_on_the_place_is_faithful_to_it(edits: Edits) -> None:
    found = figures(edits, edits.sees_the_edit, as_recorded)
    assert set(found) == {"hiding", "pasting"}
    for side in found.values():
        assert (side["n"], side["groups"]) == (PHOTOS, PHOTOS)
        assert side["share"] > 0.9
        assert side["ci95"][0] > 0.8
        assert side["nats"] > side["nats_random"] + 2


@pytest.mark.parametrize("say", [as_recorded, the_opposite_place])
def test_a_verdict_that_rests_on_no_pixel_is_faithful_to_none(edits: Edits, say: Callable[[Item], str]) -> None:
    for side in figures(edits, lambda image: 1.5, say).values():
        assert (side["n"], side["share"], side["nats"], side["nats_random"]) == (PHOTOS, 0.5, 0, 0)


def test_a_verdict_that_rests_on_another_place_is_not_faithful(edits: Edits) -> None:
    hiding = figures(edits, edits.sees_elsewhere, as_recorded)["hiding"]
    assert hiding["share"] < 0.4
    assert hiding["nats"] == pytest.approx(0, abs=0.5)
    assert hiding["nats_random"] > hiding["nats"]
    # The other way round: the verdict rests on the edit, and the explanation names the place across.
    elsewhere = [row for row in checked(edits, the_opposite_place) if off_centre(row.item)]
    assert len(elsewhere) >= FEW
    hiding = figures(edits, edits.sees_the_edit, lambda item: the_opposite_place(item) if off_centre(item) else "")[
        "hiding"
    ]
    assert hiding["n"] == len(elsewhere)
    assert hiding["share"] < 0.4


def test_named_places_hit_and_the_map_stands_next_to_them(edits: Edits) -> None:
    rows = planted(checked(edits, as_recorded))
    wrong = [PLACES[8 - PLACES.index(row.item.metadata["edit"]["place"])] for row in rows]
    found = hit_figures(rows, wrong, resamples=200)
    assert found is not None
    assert (found["named"]["hit"]["n"], found["named"]["hit"]["share"]) == (PHOTOS, 1)
    assert found["evidence_map"]["hit"]["share"] < 0.3
    assert found["chance"]["hit"]["share"] == pytest.approx(1 / 9, abs=0.03)
    assert found["named"]["iou"]["share"] > 2 * found["chance"]["iou"]["share"]
    shown = {row["name"]: row for row in explained_rows([{"hits": found}])}
    assert shown["Planted edits: the named box hits"]["n"] == shown["… by the evidence map"]["n"] == PHOTOS


def test_few_photos_are_called_too_few(edits: Edits) -> None:
    few = figures(edits, edits.sees_the_edit, as_recorded, most=FEW - 1)
    assert few["hiding"]["ci95"] is not None
    assert is_of_few(few["hiding"])
    hits = hit_figures(planted(checked(edits, as_recorded)), [None] * PHOTOS, resamples=10)
    rows = explained_rows([{"faithfulness": few, "hits": hits}])
    assert [row["few"] for row in rows] == [True, True, False, False, False, False]
    assert [row["name"].endswith(": too few photos to say") for row in rows] == [row["few"] for row in rows]
    # Where all are of few, the page says it once.
    assert str(explanations_part({"faithfulness": few})).count("too few photos to say") == 1
    enough = figures(edits, edits.sees_the_edit, as_recorded, most=FEW)
    assert not any("too few" in row["name"] for row in explained_rows([{"faithfulness": enough}]))
