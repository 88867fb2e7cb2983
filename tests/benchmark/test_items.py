import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark, write_image
from vlm_detect.benchmark.items import load_benchmark, side_by_side
from vlm_detect.errors import UserError
from vlm_detect.questions.ask import FAKE_QUESTION
from vlm_detect.questions.kind import generator_of, is_fake, prompts_of


@pytest.mark.parametrize("name", ["benchmark.json", "benchmark.jsonl"])
def test_json_list_and_jsonl_are_read_alike(tmp_path: Path, name: str) -> None:
    rows = [*verdict_rows(tmp_path), choice_row(tmp_path)]
    benchmark = load_benchmark(write_benchmark(tmp_path, rows, name))
    assert [item.id for item in benchmark.items] == [row["id"] for row in rows]
    assert [item.kind for item in benchmark.items] == ["true_false"] * 4 + ["multiple_choice"]
    assert [is_fake(item) for item in benchmark.items] == [False, True, False, True, True]
    assert [generator_of(item) for item in benchmark.items] == ["real", "big_gan", "real", "big_gan", "glide"]
    assert benchmark.image(benchmark.items[1].images[0]).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "tagged",
    [
        "<image>\n{}",
        "{}\n<image>",
        "<image> {}",
        "{}<image>",
        "<|image_1|>\n{}",
        "<image 1>{}",
        "<IMAGE>\n{}",
        "<img>\n{}",
    ],
)
def test_an_image_tag_does_not_change_the_polarity_of_a_question(tmp_path: Path, tagged: str) -> None:
    row = {**verdict_rows(tmp_path)[1], "question": tagged.format(FAKE_QUESTION), "ground_truth": "Yes."}
    (item,) = load_benchmark(write_benchmark(tmp_path, [row])).items
    assert item.question == FAKE_QUESTION
    assert [prompt.polarity for prompt in prompts_of(item)] == ["fake", "real"]


def test_a_question_without_a_tag_is_unchanged(tmp_path: Path) -> None:
    question = " Is <image> a word here?\n"
    rows = [{**verdict_rows(tmp_path)[1], "question": text} for text in (question.replace("<image>", "it"), "<image>")]
    benchmark = load_benchmark(write_benchmark(tmp_path, rows), skip_bad=True)
    assert [item.question for item in benchmark.items] == [" Is it a word here?\n"]
    assert "no question" in benchmark.skipped[0]


def test_equal_images_are_one_group(tmp_path: Path) -> None:
    rows = verdict_rows(tmp_path)
    (tmp_path / "3.png").write_bytes((tmp_path / "1.png").read_bytes())
    groups = [item.group for item in load_benchmark(write_benchmark(tmp_path, rows)).items]
    assert groups[1] == groups[3]
    assert len(set(groups)) == 3


def bad_rows(folder: Path) -> dict[str, dict]:
    """One bad item for each thing that can be wrong with one, by what the message has to say."""
    good = verdict_rows(folder)
    choice = choice_row(folder)
    (folder / "broken.png").write_bytes(b"not an image")
    return {
        "missing": {**good[0], "id": "b0", "image": "/elsewhere/nowhere.png"},
        "cannot be used": {**good[0], "id": "b1", "image": "broken.png"},
        "used twice": {**good[0], "id": "item0"},
        "none of the 4 options": {**choice, "id": "b2", "ground_truth": "E"},
        "none of Yes/No": {**good[0], "id": "b3", "ground_truth": "Maybe"},
        "no question": {**good[0], "id": "b4", "question": " "},
        "no ground_truth": {**good[0], "id": "b5", "ground_truth": None},
        "no id": {**good[0], "id": ""},
        "kind 'riddle'": {**good[0], "id": "b6", "kind": "riddle"},
        "two options are equal": {**choice, "id": "b7", "options": ["a", "a"]},
        "2 images": {**good[0], "id": "b8", "images": ["0.png", "1.png"]},
    }


def test_every_bad_item_is_listed(tmp_path: Path) -> None:
    bad = bad_rows(tmp_path)
    path = write_benchmark(tmp_path, [*verdict_rows(tmp_path), *bad.values()])
    with pytest.raises(UserError) as error:
        load_benchmark(path)
    for part in bad:
        assert part in str(error.value), part
    assert f"{len(bad)} of {4 + len(bad)} items are bad" in str(error.value)
    benchmark = load_benchmark(path, skip_bad=True)
    assert len(benchmark.items) == 4
    assert len(benchmark.skipped) == len(bad)


def test_a_line_separator_within_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    row = {**verdict_rows(tmp_path, 1)[0], "metadata": {"generator": "a\u2028b\x85c"}}
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8", newline="")
    assert load_benchmark(path).items[0].metadata["generator"] == "a\u2028b\x85c"


def test_broken_lines_of_jsonl_are_named(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in verdict_rows(tmp_path)]
    path = tmp_path / "b.jsonl"
    path.write_text("\n".join([lines[0], "{broken", "", lines[1], "[1, 2]"]))
    with pytest.raises(UserError, match=r"line 2: not JSON.*line 5: \[1, 2\] is not an object"):
        load_benchmark(path)
    assert len(load_benchmark(path, skip_bad=True).items) == 2


@pytest.mark.parametrize("content", ["", "\n \n", "[]"])
def test_empty_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(UserError, match="contains no items"):
        load_benchmark(path, skip_bad=True)


def test_broken_json_and_missing_file(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('[{"id": 1,]')
    with pytest.raises(UserError, match="invalid JSON at line 1"):
        load_benchmark(tmp_path / "b.json")
    with pytest.raises(UserError, match="no such benchmark"):
        load_benchmark(tmp_path / "c.json")


def test_side_by_side_keeps_both(tmp_path: Path) -> None:
    left, right = Image.new("RGB", (10, 20), "red"), Image.new("RGB", (30, 10), "blue")
    both = side_by_side(left, right, gap=2)
    assert both.size == (5 + 2 + 30, 10)
    assert both.getpixel((0, 5)) == (255, 0, 0)
    assert both.getpixel((36, 5)) == (0, 0, 255)
    assert both.getpixel((5, 5)) == (255, 255, 255)


DATA = Path(os.environ.get("VLM_DETECT_DATA", "")) / "custom_vqa"
needs_data = pytest.mark.skipif(
    not os.environ.get("VLM_DETECT_DATA") or not DATA.is_dir(), reason="VLM_DETECT_DATA names no folder with custom_vqa"
)


@needs_data
def test_teoscardov_files_as_they_are() -> None:
    choices = load_benchmark(DATA / "multiple-choice" / "vqa_multiple_choice_benchmark.json")
    assert len(choices.items) == 100
    assert len({item.group for item in choices.items}) == 98  # two pairs of equal images
    assert {len(item.options) for item in choices.items} == {4}
    for item in choices.items:
        assert prompts_of(item)[0].question == item.question  # asked first as it is written
        assert is_fake(item) == (generator_of(item) != "real")
    assert sum(generator_of(item) == "big_gan" for item in choices.items) == 15
    verdicts = load_benchmark(DATA / "true-false" / "vqa_true_false_benchmark.json")
    assert sorted(is_fake(item) for item in verdicts.items) == [False] * 25 + [True] * 25


def test_absolute_image_paths_that_exist_win(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_image(tmp_path / "x.png", "blue")
    elsewhere = write_image(tmp_path / "a" / "x.png", "red")
    row = {**verdict_rows(tmp_path)[0], "image": str(elsewhere)}
    benchmark = load_benchmark(write_benchmark(tmp_path, [row]))
    assert benchmark.items[0].images == (str(elsewhere),)
