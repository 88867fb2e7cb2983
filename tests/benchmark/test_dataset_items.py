import io
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from vlm_detect.benchmark.dataset_items import dataset_pairs
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.columns import IMAGE_FEATURES, PAIR_FEATURES
from vlm_detect.errors import UserError
from vlm_detect.questions.ask import EDIT_QUESTION, FAKE_QUESTION
from vlm_detect.questions.kind import generator_of, is_fake, prompts_of


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


def test_pairs_become_one_item_per_image(tmp_path: Path) -> None:
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


def test_other_labels_of_the_same_images_are_another_benchmark(tmp_path: Path) -> None:
    """A run over the one must not be taken for a run over the other."""
    real, glide, adm = ("real", "", "cat"), ("generated", "glide", "cat"), ("generated", "adm", "cat")
    sets = {"one": [real, glide], "again": [real, glide], "other": [real, adm]}
    one, again, other = (load_benchmark(images(tmp_path / name, rows)).sha256 for name, rows in sets.items())
    assert one == again
    assert one != other


def test_edits_have_separate_questions(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", [pair(0, "red", "blue"), pair(1, "red", "green", "edit")])
    items = load_benchmark(folder).items
    assert [(item.question, item.ground_truth) for item in items] == [
        (FAKE_QUESTION, "No."),
        (FAKE_QUESTION, "Yes."),
        (EDIT_QUESTION, "No."),
        (EDIT_QUESTION, "Yes."),
    ]
    assert [is_fake(item) for item in items] == [False, True, None, None]


def test_the_unedited_twin_of_an_edit_has_its_generator(tmp_path: Path) -> None:
    """Of an edit made from a twin, both images were generated, by what the row names."""
    of_twin = pair(0, "red", "green", "edit") | {"image_label": "generated", "generator": "sd35"}
    folder = write_pairs(tmp_path / "pairs", [of_twin, pair(1, "blue", "gray", "edit")])
    items = load_benchmark(folder).items
    facts = [(item.metadata["label"], generator_of(item), item.metadata["made_from"]) for item in items]
    assert facts == [
        ("generated", "sd35", "generated"),
        ("edited", "sd35", "generated"),
        ("real", "real", "real"),
        ("edited", "blur", "real"),
    ]
    pairs, _ = dataset_pairs(folder, "test")
    assert [[source.facts["generator"] for source in one] for one in pairs] == [["sd35", "sd35"], ["real", "blur"]]


def images(folder: Path, rows: list[tuple[str, str, str]], split: str = "test") -> Path:
    """An image dataset of (label, generator, object class), each image of a grey of its own."""
    full = [
        dict.fromkeys(IMAGE_FEATURES)
        | {"image": png(f"#{20 + i:02x}8080"), "label": label, "generator": name, "object_class": of, "group": f"g{i}"}
        for i, (label, name, of) in enumerate(rows)
    ]
    return write_pairs(folder, full, split, IMAGE_FEATURES)


def test_an_image_dataset_with_edits_asks_about_equally_many_photos(tmp_path: Path) -> None:
    rows = [("real", "", "cat")] * 3 + [("generated", "glide", "cat"), ("edited", "blur", "cat"), ("edited", "", "dog")]
    items = load_benchmark(images(tmp_path / "images", rows)).items
    about_edits = [item for item in items if item.question == EDIT_QUESTION]
    assert sorted(item.metadata["label"] for item in about_edits) == ["edited", "edited", "real", "real"]
    assert sorted(item.ground_truth for item in about_edits) == ["No.", "No.", "Yes.", "Yes."]
    assert sum(item.question == FAKE_QUESTION for item in items) == 4  # no edited one among them
    assert len({item.id for item in items}) == len(items) == 8


def test_images_are_matched_within_their_class_and_label(tmp_path: Path) -> None:
    rows = [("real", "", of) for of in ("cat", "cat", "dog", "car")]
    rows += [("generated", "glide", "cat"), ("generated", "adm", "dog"), ("generated", "adm", "dog")]
    rows += [("edited", "blur", "cat"), ("edited", "blur", "car")]
    pairs, data = dataset_pairs(images(tmp_path / "images", rows), "test")
    assert {photo.label for photo, _ in pairs} == {"real"}
    made = [pair for pair in pairs if pair[1].label == "generated"]
    edits = [pair for pair in pairs if pair[1].label == "edited"]
    assert (len(made), len(edits)) == (3, 2)  # a photo stands next to a generated and next to an edited image
    assert [sum(a.object_class == b.object_class for a, b in some) for some in (made, edits)] == [2, 2]
    assert len({photo.ref for photo, _ in made}) == 3
    assert data(pairs[0][0].ref) != data(pairs[0][1].ref)


def test_a_photo_with_two_twins_is_one_image(tmp_path: Path) -> None:
    rows = [pair(0, "red", "blue"), pair(1, "red", "green"), pair(2, "pink", "gray")]
    pairs, _ = dataset_pairs(write_pairs(tmp_path / "pairs", rows), "test")
    assert [(photo.ref, twin.ref) for photo, twin in pairs] == [
        ("0:image", "0:twin"),
        ("0:image", "1:twin"),
        ("2:image", "2:twin"),
    ]


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
