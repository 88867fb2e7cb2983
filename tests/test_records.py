"""One vocabulary: what is called a photo anywhere is called one everywhere."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from PIL import Image

import vlm_detect
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.data.image_sets import open_image_set
from vlm_detect.questions.kind import generator_of, is_fake, prompts_of
from vlm_detect.records import Item, is_real_name, label_named
from vlm_detect.train.conversations import read_conversations

PHOTOS = ["natural", "Nature", "REAL", "Camera", "A camera.", "photo", "Photographs", "human", "authentic", "", "None"]
FAKES = ["sd14", "Real-ESRGAN", "RealVisXL", "glide", "camera2image", "Midjourney v5"]


@pytest.mark.parametrize(("names", "real"), [(PHOTOS, True), (FAKES, False)])
def test_a_generator_name_means_the_same_in_training_and_evaluation(tmp_path: Path, names: list[str], real: bool):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    records, items = [], []
    for number, name in enumerate(names):
        about = {"image": "a.png", "metadata": {"generator": name}}
        turns = [{"from": "human", "value": "<image>\nReal?"}, {"from": "gpt", "value": "Yes."}]
        records.append({**about, "conversations": turns})
        items.append({**about, "id": number, "kind": "open", "question": "Why?", "ground_truth": "Because."})
    (tmp_path / "talk.json").write_text(json.dumps(records))
    (tmp_path / "bench.json").write_text(json.dumps(items))
    rows, _ = read_conversations(str(tmp_path / "talk.json"))
    trained = [label for label, name in zip(rows["label"], names, strict=True) if name]  # without a name: no label
    assert trained == ["real" if real else "generated"] * len(trained)
    benchmark = load_benchmark(tmp_path / "bench.json").items
    assert [is_fake(item) for item in benchmark] == [not real] * len(names)
    assert all((generator_of(item) == "real") == real for item in benchmark)
    attribution = Item("1", "attribution", ("a.png",), "What made this image?", names[0])
    prompt = prompts_of(attribution, names)[0]
    assert prompt.fake == tuple(not real for _ in prompt.candidates)
    assert [is_real_name(name) for name in names] == [real] * len(names)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("REAL", "real"),
        ("0_real", "real"),
        ("AI-generated", "generated"),
        ("Deepfake", "generated"),
        ("1_fake", "generated"),
        ("Tampered", "edited"),
        ("camera", None),
        ("unrealistic", None),
        ("0", None),
    ],
)
def test_a_label_in_a_folder_and_in_an_item(tmp_path: Path, name: str, label: str | None):
    assert label_named(name) == label
    item = Item("1", "open", ("a.png",), "Why?", "Because.", metadata={"label": name})
    assert is_fake(item) == {"real": False, "generated": True}.get(str(label))
    (tmp_path / "real" / name).mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "real" / name / "a.png")
    (entry,) = open_image_set("folders", str(tmp_path)).entries
    assert entry.label == (label or "real")


def test_there_is_no_other_list_of_labels():
    """A collection of names of labels stands in one file."""
    package = Path(vlm_detect.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Set | ast.List | ast.Tuple | ast.Dict):
                texts = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                if {"natural", "nature", "pristine"} & {word for text in texts for word in text.split()}:
                    found.add(path.relative_to(package).as_posix())
    assert found == {"records.py", "data/layouts.py"}  # the latter knows how GenImage calls its own folders
