"""What a model cannot learn from is left out before the first step, counted and named by its number."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.factories import tiny_vlm
from tests.models.tiny_chat import save_tiny
from tests.scripts.here import run_here
from tests.train.toys import save_toy_pairs, toy_image, toy_images, toy_pairs
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError
from vlm_detect.images.stored import undecoded
from vlm_detect.models.base import VLM
from vlm_detect.models.registry import load_vlm
from vlm_detect.train.conversations import read_conversations
from vlm_detect.train.failures import as_user_errors
from vlm_detect.train.usable import usable
from vlm_detect.train.validation import ValidationSet

SETTINGS = ["--use_cpu", "True", "--cpu_threads", "1", "--report_to", "none", "--num_train_epochs", "1"]


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def qwen(qwen_folder: Path) -> VLM:
    return load_vlm(str(qwen_folder), device="cpu")


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def with_bytes(rows: datasets.Dataset, changed: dict[int, Any], column: str = "image") -> datasets.Dataset:
    """The rows with other bytes in some cells."""
    cells = [{"bytes": changed.get(i, row[column]["bytes"]), "path": None} for i, row in enumerate(undecoded(rows))]
    rest = rows.remove_columns(column)
    return rest.add_column(column, cells).cast_column(column, datasets.Image())


def test_images_that_cannot_be_decoded(capsys: pytest.CaptureFixture[str]) -> None:
    rows = toy_images(["real", "generated"] * 6)
    cut = encoded(toy_image(True, np.random.default_rng(0), 64))
    damaged = with_bytes(rows, {3: cut[: len(cut) // 2], 8: b"no image", 9: b""})
    kept = usable(damaged, "elsewhere", tiny_vlm())
    assert kept["group"] == [str(i) for i in range(12) if i not in (3, 8, 9)]
    said = capsys.readouterr().out
    assert said.startswith("elsewhere: 3 of 12 rows are skipped: ")
    assert "1 truncated (number 3: " in said
    assert "1 not_an_image (number 8: " in said
    assert usable(rows, "elsewhere", tiny_vlm()) is rows
    pairs = with_bytes(toy_pairs(4), {2: b"no image"}, "twin")
    assert usable(pairs, "elsewhere", tiny_vlm())["pair_id"] == ["pair0", "pair1", "pair3"]
    with pytest.raises(UserError, match="no rows remain for training"):
        usable(with_bytes(rows, dict.fromkeys(range(12), b"no image")), "elsewhere", tiny_vlm())


def test_shapes_that_the_model_refuses(qwen: VLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tall = encoded(Image.new("RGB", (4, 1000)))
    rows = with_bytes(toy_images(["real", "generated"] * 4), {2: tall, 5: tall})
    (tmp_path / "run.json").write_text("{}")  # a set of our own, whose images need not be decoded again
    kept = usable(rows, str(tmp_path), qwen)
    assert kept["group"] == ["0", "1", "3", "4", "6", "7"]
    assert "2 of an unsupported shape (number 2, 5: 4x1000 pixels" in capsys.readouterr().out
    assert usable(rows, str(tmp_path), tiny_vlm()) is rows
    assert len(ValidationSet.from_rows(usable(rows, str(tmp_path), qwen))) == 6


def talks(folder: Path, answers: list[str], *more: str) -> datasets.Dataset:
    for i in range(len(answers)):
        toy_image(bool(i % 2), np.random.default_rng(i), 28).save(folder / f"{i}.png")
    turns = [[{"from": "human", "value": "<image>\nReal?"}, {"from": "gpt", "value": answer}] for answer in answers]
    for turn in turns:
        turn += [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(more)]
    records = [{"image": f"{i}.png", "conversations": turn} for i, turn in enumerate(turns)]
    (folder / "talk.json").write_text(json.dumps(records))
    return read_conversations(str(folder / "talk.json"))[0]


@pytest.mark.parametrize("family", ["moondream", "qwen"])
def test_an_answer_beyond_the_context_is_found_before_the_first_step(
    family: str, qwen: VLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vlm = qwen if family == "qwen" else tiny_vlm()
    limit = vlm.model.config.get_text_config().max_position_embeddings
    taken = vlm.prefix_length((28, 28)) + len(vlm.question_ids("Real?"))
    longest = "x" * (limit - taken - len(vlm.answer_ids("")))  # a token a byte
    assert taken + len(vlm.answer_ids(longest)) == limit
    kept = usable(talks(tmp_path, ["Yes.", longest, longest + "x", "No."]), "talk.json", vlm)
    assert kept["number"] == [0, 1, 3]
    said = capsys.readouterr().out
    assert "1 of 4 conversations are skipped: 1 beyond the context (number 2: " in said
    assert f"{limit + 1} tokens with the image" in said


def test_turns_that_a_family_does_not_support(tmp_path: Path, qwen: VLM) -> None:
    rows = talks(tmp_path, ["Yes."] * 2, "Why?", "It is.")
    assert usable(rows, "talk.json", qwen) is rows
    with pytest.raises(UserError, match=r"with several turns .* answers single questions"):
        usable(rows, "talk.json", tiny_vlm())


def test_a_run_on_foreign_files_trains_on_what_it_can_use(qwen_folder: Path, tmp_path: Path) -> None:
    """No labels, one image too tall, one answer too long, one image cut: the rest trains, unvalidated."""
    talks(tmp_path, ["Yes.", "y" * 4000, "No.", "No.", "Yes."])
    Image.new("RGB", (4, 1000)).save(tmp_path / "3.png")
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:200])
    arguments = ["--model", qwen_folder, "--data", tmp_path / "talk.json", "--output_dir", tmp_path / "run", *SETTINGS]
    done = run_here("recipes/vlm_lora.py", *arguments)
    assert done.returncode == 0, done.stderr
    for words in (
        "1 of 5 conversations are skipped (record 4",
        "validation needs real and generated images",
        "(number 1: ",
        "(number 3: ",
    ):
        assert words in done.stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["validation"]) == ("finished", {})
    assert not (tmp_path / "run" / "calibration.json").exists()
    assert "no validation images" in (tmp_path / "run" / "README.md").read_text()
    assert "nothing is left to do" in run_here("recipes/vlm_lora.py", *arguments).stdout
    patient = run_here("recipes/vlm_lora.py", *arguments, "--early_stopping_patience", 1)
    assert (patient.returncode, "--early_stopping_patience needs" in patient.stderr) == (1, True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_of_a_set_of_our_own_is_one_line(workers: int, qwen_folder: Path, tmp_path: Path) -> None:
    """Also from a worker process, whose errors torch wraps in a traceback."""
    folder = save_toy_pairs(tmp_path / "pairs", n_train=4, n_validation=2)
    file = folder / "data" / "train-00000-of-00001.parquet"
    data = encoded(toy_image(False, np.random.default_rng(0), 64))  # whose header is whole
    with_bytes(datasets.Dataset.from_parquet(str(file)), {2: data[: len(data) // 2]}).to_parquet(file)
    (folder / "run.json").write_text("{}")
    arguments = ["--model", qwen_folder, "--data", folder, "--output_dir", tmp_path / "run", *SETTINGS]
    done = run_here("recipes/vlm_lora.py", *arguments, "--dataloader_num_workers", workers)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "the image of row 2" in line
    assert "Traceback" not in done.stderr


def test_other_errors_are_passed_through() -> None:
    class Trainer:
        args = None

    with pytest.raises(UserError, match=r"^plain$"), as_user_errors(Trainer()):
        raise UserError("plain")


def test_labels_of_foreign_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Class names, other words, and rows without any; numbers alone say nothing."""
    plain = toy_images(["real", "generated"] * 3).remove_columns("label")
    names = datasets.ClassLabel(names=["fake", "REAL"])
    columns = {
        "names": (["AI-generated", "human"] * 3, datasets.Value("string")),
        "classes": ([0, 1, 0, 1, 0, 1], names),
        "gaps": ([0, 1, None, 1, 0, 1], names),
        "numbers": ([0, 1, 0, 1, 0, 1], datasets.Value("int64")),
    }
    for name, (values, feature) in columns.items():
        (tmp_path / name / "data").mkdir(parents=True)
        for split in ("train", "validation", "test"):
            rows = plain.add_column("label", values, feature=feature)
            rows.to_parquet(tmp_path / name / "data" / f"{split}-00000-of-00001.parquet")
    for name in ("names", "classes"):
        assert open_dataset(tmp_path / name)["train"]["label"] == ["generated", "real"] * 3
        items = load_benchmark(tmp_path / name).items
        assert [item.ground_truth for item in items] == ["Yes.", "No."] * 3
    assert open_dataset(tmp_path / "gaps")["train"]["label"] == ["generated", "real", "real", "generated", "real"]
    assert "1 of 6 rows are skipped: they have no label" in capsys.readouterr().out
    done = run_here("recipes/moondream_lora.py", "--data", tmp_path / "numbers", "--output_dir", tmp_path / "run")
    assert (done.returncode, "unknown labels 0, 1" in done.stderr) == (1, True)
