"""`eval/tasks`: what lm-evaluation-harness is given, without the harness."""

import runpy
from pathlib import Path

import pytest
import yaml

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


def test_the_task_names_existing_files(functions: dict) -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load((TASKS / "vlm_detect_vqa.yaml").read_text(), Loader)
    for name in ("custom_dataset", "doc_to_image", "doc_to_text", "process_results"):
        module, _, function = task[name].partition(".")
        assert module == "vlm_detect_documents"
        assert callable(functions[function])
    assert [metric["metric"] for metric in task["metric_list"]] == ["acc", "unparsed"]
