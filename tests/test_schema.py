"""What an earlier version made opens in this one, and what a newer version made is refused in one line.

`tests/golden/v0_1` holds a pair dataset, a LoRA run, a CNN run, their benchmark results and a feature cache, all of
version 0.1, before files had schema numbers. Commands run in a copy of it, as they ran when it was made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.scripts.here import run_here, run_verb
from vlm_detect import Detector
from vlm_detect.benchmark.compare import load_run
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.run import check_same_run, settings_of
from vlm_detect.config import read_run_json, write_json, write_run_json
from vlm_detect.data.audit import audit_dataset
from vlm_detect.data.pairs import load_pairs, open_dataset
from vlm_detect.errors import UserError
from vlm_detect.images.stored import StoredImage, undecoded
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.registry import load_vlm
from vlm_detect.schema import SCHEMAS, check_folder
from vlm_detect.stats.calibration import Calibration
from vlm_detect.train import features as features_module
from vlm_detect.train.features import Features

GOLDEN = Path(__file__).parent / "golden" / "v0_1"
PAIRS = ["--images", "photos", "--out", "pairs", "--captioner", "nano", "--generator", "nano", "--limit", "12"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, which is the working directory, for it was made with relative paths."""
    folder = tmp_path / "old"
    shutil.copytree(GOLDEN, folder)
    for run in ("moondream_lora", "cnn_mai"):  # the pages were left out for their size
        (folder / run / "eval" / "report.html").touch()
    monkeypatch.chdir(folder)
    return folder


def test_the_artefacts_have_no_schema_number():
    records = [path for path in GOLDEN.rglob("*.json") if path.name in ("run.json", "settings.json", "summary.json")]
    assert len(records) == 11
    assert not any("schema" in json.loads(path.read_text()) for path in records)


def test_a_dataset_opens(old: Path):
    assert {split: len(rows) for split, rows in open_dataset("pairs").items()} == {
        "train": 6,
        "validation": 2,
        "test": 4,
    }
    first = load_pairs("pairs", "train")[0]
    assert (first["kind"], first["generator"], first["image"].size) == ("caption", "nano", first["twin"].size)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("data_gen/make_pairs.py", [*PAIRS, "--twins", "caption"]),
        ("recipes/moondream_lora.py", ["--config", "lora.yaml"]),
        ("recipes/cnn.py", ["--config", "cnn.yaml"]),
        *(
            ("eval/vqa_benchmark.py", ["--model", run, "--benchmark", "pairs", "--out", f"{run}/eval"])
            for run in ("moondream_lora", "cnn_mai")
        ),
    ],
    ids=["dataset", "LoRA", "CNN", "benchmark of the LoRA", "benchmark of the CNN"],
)
def test_the_same_command_has_nothing_left_to_do(old: Path, program: str, arguments: list[str]):
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    done = run_here(program, *arguments)
    assert (done.returncode, "nothing" in done.stdout) == (0, True), done.stderr + done.stdout
    assert {path: path.read_bytes() for path in before} == before


def test_a_setting_missing_in_a_run_has_its_default(old: Path):
    record = read_run_json("moondream_lora")
    assert record is not None
    for name in ("warmup_steps", "validation_limit"):  # as if they had come later
        del record["config"][name]
    write_json("moondream_lora/run.json", record)
    assert "nothing is left to do" in run_here("recipes/moondream_lora.py", "--config", "lora.yaml").stdout
    del record["config"]["lora_r"]  # lora.yaml has another than the default
    write_json("moondream_lora/run.json", record)
    done = run_here("recipes/moondream_lora.py", "--config", "lora.yaml")
    assert (done.returncode, "lora_r 16 -> 1" in done.stderr) == (1, True)


def images() -> list[Image.Image]:
    return [row[column] for row in load_pairs("pairs", "test") for column in ("image", "twin")]


def test_a_lora_run_gives_the_same_verdicts(old: Path):
    recorded = json.loads(Path("verdicts.json").read_text())["moondream_lora"]
    verdicts = Detector("moondream_lora", device="cpu").judge(images())
    assert [verdict.to_json()["log_odds"] for verdict in verdicts] == pytest.approx(recorded["log_odds"], abs=1e-4)
    assert [verdict.p_fake for verdict in verdicts] == pytest.approx(recorded["p_fake"], abs=1e-3)
    assert all(verdict.calibrated for verdict in verdicts)


def test_a_cnn_run_gives_the_same_verdicts(old: Path):
    recorded = json.loads(Path("verdicts.json").read_text())["cnn_mai"]
    scores = CnnDetector.load("cnn_mai").scores(images())
    assert scores.odds.tolist() == pytest.approx(recorded["log_odds"], abs=1e-4)
    assert scores.p_fake.tolist() == pytest.approx(recorded["p_fake"], abs=1e-3)
    done = run_verb("explain", "--model", "cnn_mai", "photos", "--out", "page.html")
    assert (done.returncode, Path("page.html").is_file()) == (0, True), done.stderr


def test_results_are_compared(old: Path):
    done = run_here("eval/compare.py", "moondream_lora/eval", "cnn_mai/eval", "--out", "compared")
    assert done.returncode == 0, done.stderr
    found = json.loads(Path("compared/compare.json").read_text())
    assert (found["items"], list(found["runs"])) == (8, ["moondream_lora", "cnn_mai"])
    accuracy = json.loads(Path("cnn_mai/eval/summary.json").read_text())["accuracy"]
    assert found["runs"]["cnn_mai"]["accuracy"] == accuracy


def cached_images() -> list[StoredImage]:
    first = undecoded(open_dataset("pairs")["train"])[0]
    return [StoredImage.from_cell(first[column]) for column in ("image", "twin")]


def test_a_feature_cache_is_read_and_not_rebuilt(old: Path, monkeypatch: pytest.MonkeyPatch):
    vlm = load_vlm("nano", device="cpu")
    vlm.model.requires_grad_(False)
    monkeypatch.setattr(features_module, "_write", lambda *_: pytest.fail("the cache is rebuilt"))
    features = Features.build(vlm, cached_images(), Path("features"))
    with torch.inference_mode():
        live = vlm.encode(vlm.prepare([image.open() for image in cached_images()]))
    torch.testing.assert_close(features.read(list(features.places))["image_embeds"], live, atol=1e-5, rtol=0)


def newer(*paths: str) -> None:
    """Give each of these files the schema number of a version to come."""
    for path in map(Path, paths):
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"schema": 99})


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("pairs/run.json", lambda: open_dataset("pairs")),
        ("pairs/run.json", lambda: audit_dataset("pairs")),
        ("pairs/run.json", lambda: read_run_json("pairs")),
        ("pairs/run.json", lambda: load_benchmark("pairs", split="test")),
        ("moondream_lora/run.json", lambda: Detector("moondream_lora", device="cpu")),
        ("moondream_lora/run.json", lambda: Detector("nano", adapter="moondream_lora", device="cpu")),
        ("moondream_lora/calibration.json", lambda: Detector("moondream_lora", device="cpu")),
        ("cnn_mai/run.json", lambda: CnnDetector.load("cnn_mai")),
        ("cnn_mai/eval/settings.json", lambda: settings_of(Path("cnn_mai/eval"))),
        ("cnn_mai/eval/settings.json", lambda: check_same_run(Path("cnn_mai/eval"), {}, write=False)),
        ("cnn_mai/eval/summary.json", lambda: load_run(Path("cnn_mai/eval"))),
    ],
)
def test_a_newer_file_is_refused_in_one_line(old: Path, path: str, read: Callable[[], object]):
    newer(path)
    with pytest.raises(UserError, match=rf"{Path(path).name}: has schema 99 .* up to 1") as refused:
        read()
    assert "\n" not in str(refused.value)


def test_a_newer_feature_cache_is_refused(old: Path):
    vlm = load_vlm("nano", device="cpu")
    vlm.model.requires_grad_(False)
    features = Features.build(vlm, cached_images(), Path("features"))
    (file,) = features.folder.iterdir()
    save_file(load_file(file), file, {"schema": "99"})
    with pytest.raises(UserError, match="has schema 99"):
        features.read(list(features.places))


def test_new_files_have_a_schema_number(tmp_path: Path):
    write_run_json(tmp_path, {})
    Calibration().save(tmp_path)
    check_same_run(tmp_path, {"model": "nano"}, write=True)
    found = {file.name: json.loads(file.read_text())["schema"] for file in tmp_path.iterdir()}
    assert found == {
        "run.json": SCHEMAS["run"],
        "calibration.json": SCHEMAS["calibration"],
        "settings.json": SCHEMAS["results"],
    }
    assert Calibration.load(tmp_path) == Calibration()
    check_same_run(tmp_path, {"model": "nano"}, write=False)


@pytest.mark.parametrize("text", ["", "not JSON", "[]", '{"schema": 0}', "{}"])
def test_a_foreign_folder_is_accepted(tmp_path: Path, text: str):
    (tmp_path / "run.json").write_text(text)
    check_folder(tmp_path)
