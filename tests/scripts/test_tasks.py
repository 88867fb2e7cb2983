"""`eval/tasks`: what lm-evaluation-harness and lmms-eval are given, without either."""

import runpy
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from PIL import ImageFile

from tests.benchmark.fakes import choice_row, verdict_rows, write_benchmark
from vlm_detect.config import REPOSITORY

TASKS = REPOSITORY / "eval" / "tasks"


@pytest.fixture(scope="module")
def functions() -> dict:
    return runpy.run_path(str(TASKS / "vlm_detect_documents.py"))


def test_documents_and_their_judge(functions: dict, tmp_path: Path) -> None:
    rows = [*verdict_rows(tmp_path, 2), choice_row(tmp_path)]
    rows.append({**rows[0], "id": "open", "kind": "open", "ground_truth": "Because."})
    docs = functions["documents"](benchmark=str(write_benchmark(tmp_path, rows)), version=1.0)["test"]
    assert docs["id"] == ["item0", "item1", "choice"]  # closed items only
    choice = docs[2]
    assert functions["text"](choice).startswith("<image>Is it real, and why?\nA: The image is real")
    (image,) = functions["images"](choice)
    assert image.size == (20, 8)
    assert functions["judge"](choice, ["(c)"]) == {"acc": 1, "unparsed": 0}
    assert functions["judge"](choice, ["A dog"]) == {"acc": 0, "unparsed": 1}
    assert functions["judge"](docs[1], ["Fake."]) == {"acc": 1, "unparsed": 0}
    with pytest.raises(ValueError, match="name the benchmark"):
        functions["documents"]()


@pytest.fixture(scope="module")
def of_lmms() -> dict:
    return runpy.run_path(str(TASKS / "lmms" / "vlm_detect_lmms.py"))


def test_documents_of_lmms_eval_and_their_judge(of_lmms: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_DETECT_BENCHMARK", str(write_benchmark(tmp_path, [choice_row(tmp_path)])))
    (doc,) = of_lmms["documents"](Dataset.from_list([{"text": "a line"}] * 3))
    assert doc["question"].startswith("Is it real, and why?\nA: The image is real")
    (image,) = of_lmms["images"](doc)
    assert image.size == (20, 8)
    assert of_lmms["judge"](doc, ["(c)"]) == {"accuracy": 1, "unparsed": 0}
    assert of_lmms["judge"](doc, ["A dog"]) == {"accuracy": 0, "unparsed": 1}


def test_a_truncated_image_is_found_although_lmms_eval_has_pillow_pad_it(
    of_lmms: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setenv("VLM_DETECT_BENCHMARK", str(write_benchmark(tmp_path, verdict_rows(tmp_path, 1))))
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:-30])
    with pytest.raises(SystemExit, match=r"error: .*1 of 1 items are bad: .*truncated"):
        of_lmms["documents"](Dataset.from_list([]))
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_lmms_eval_without_a_benchmark(of_lmms: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLM_DETECT_BENCHMARK", raising=False)
    with pytest.raises(SystemExit, match="error: VLM_DETECT_BENCHMARK is not set: name a benchmark file"):
        of_lmms["documents"](Dataset.from_list([]))


@pytest.mark.parametrize(
    ("file", "calls", "metrics"),
    [
        ("vlm_detect_vqa.yaml", ["custom_dataset", "doc_to_image", "doc_to_text", "process_results"], "acc"),
        ("lmms/vlm_detect_lmms.yaml", ["process_docs", "doc_to_visual", "process_results"], "accuracy"),
    ],
)
def test_a_task_names_existing_files(file: str, calls: list[str], metrics: str) -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    path = TASKS / file
    task = yaml.load(path.read_text(), Loader)
    assert task["task"] == path.stem
    for name in calls:
        module, _, function = task[name].partition(".")
        assert callable(runpy.run_path(str(path.with_name(f"{module}.py")))[function])
    assert [metric["metric"] for metric in task["metric_list"]] == [metrics, "unparsed"]
    assert task.get("dataset_kwargs", {"data_files": {"test": path.name}}) == {"data_files": {"test": path.name}}
