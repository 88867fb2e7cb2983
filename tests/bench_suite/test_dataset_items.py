import io
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from vlm_detect.bench.items import load_benchmark
from vlm_detect.bench.prompts import generator_of, is_fake, prompts_of
from vlm_detect.data.questions import EDIT_QUESTION, FAKE_QUESTION
from vlm_detect.errors import UserError
from vlm_detect.records import IMAGE_FEATURES, PAIR_FEATURES


def png(colour: str) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def pair(i: int, image: str, twin: str, kind: str = "caption") -> dict:
    row = dict.fromkeys(PAIR_FEATURES)
    return row | {
        "pair_id": f"p{i}",
        "group": f"g{i // 2}",
        "image": png(image),
        "image_label": "real",
        "twin": png(twin),
        "kind": kind,
        "generator": "sd35" if kind == "caption" else "blur",
        "caption": "a thing",
    }


def write_pairs(folder: Path, rows: list[dict], split: str = "test", features=PAIR_FEATURES) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_pairs_become_one_item_an_image(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [pair(0, "red", "blue"), pair(1, "red", "green"), pair(2, "pink", "gray")])
    benchmark = load_benchmark(folder)
    # The red photo of the first two rows is asked about once.
    assert [item.id for item in benchmark.items] == ["p0/image", "p0/twin", "p1/twin", "p2/image", "p2/twin"]
    assert [is_fake(item) for item in benchmark.items] == [False, True, True, False, True]
    assert [generator_of(item) for item in benchmark.items] == ["real", "sd35", "sd35", "real", "sd35"]
    assert [item.group for item in benchmark.items] == ["g0", "g0", "g0", "g1", "g1"]
    assert {item.question for item in benchmark.items} == {FAKE_QUESTION}
    assert all(len(prompts_of(item)) == 2 for item in benchmark.items)
    assert benchmark.image(benchmark.items[2].images[0]).getpixel((0, 0)) == (0, 128, 0)


def test_edits_have_questions_of_their_own(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [pair(0, "red", "blue"), pair(1, "red", "green", "edit")])
    items = load_benchmark(folder).items
    assert [(item.question, item.ground_truth) for item in items] == [
        (FAKE_QUESTION, "No."),
        (FAKE_QUESTION, "Yes."),
        (EDIT_QUESTION, "No."),
        (EDIT_QUESTION, "Yes."),
    ]
    assert [is_fake(item) for item in items] == [False, True, None, None]


def test_image_dataset_and_its_splits(tmp_path: Path) -> None:
    rows = [
        dict.fromkeys(IMAGE_FEATURES)
        | {"image": png(colour), "label": label, "generator": name, "object_class": "cat", "group": colour}
        for colour, label, name in [("red", "real", ""), ("blue", "generated", "glide")]
    ]
    folder = write_pairs(tmp_path / "images", rows, "validation", IMAGE_FEATURES)
    assert [is_fake(item) for item in load_benchmark(folder, split="validation").items] == [False, True]
    with pytest.raises(UserError, match="no split named test; it has validation"):
        load_benchmark(folder)


def test_a_dataset_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other" / "data").mkdir(parents=True)
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "other" / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="neither a pair nor an image dataset"):
        load_benchmark(tmp_path / "other")
    with pytest.raises(UserError, match=r"no data/\*\.parquet"):
        load_benchmark(tmp_path)
