"""vlm-detect fit-head: head and weights from a dataset, on the run's tower or a backbone, with an expert or without."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.factories import tiny_vlm
from tests.infer.test_backbone import save_dinov3
from tests.infer.test_witnesses import save_cnn, toys
from tests.train.toys import save_tiny_model, save_toy_pairs
from vlm_detect import Detector, cli
from vlm_detect.data.pairs import open_dataset
from vlm_detect.errors import UserError
from vlm_detect.infer.fusion import Fusion
from vlm_detect.infer.head import Head
from vlm_detect.stats.calibration import Calibration
from vlm_detect.train.fit_head import Read, cross_fitted, fit_at_end, weigh
from vlm_detect.train.lora import add_lora
from vlm_detect.train.options import LoraOptions
from vlm_detect.train.validation import ValidationSet


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit_head")
    save_toy_pairs(folder / "pairs", n_train=20, n_validation=12)
    save_toy_pairs(folder / "few", n_train=20, n_validation=9)
    vlm = tiny_vlm()
    vlm.name = str(save_tiny_model(folder / "model"))
    add_lora(vlm, LoraOptions())
    vlm.model.save_pretrained(folder / "run", save_embedding_layers=False)
    Calibration(temperature=17.0).save(folder / "run")
    save_cnn(folder / "cnn")
    return folder


def copy(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def accuracy(run: Path, **options: str) -> float:
    images, generated = toys(40, seed=9)
    found = [verdict.log_odds > 0 for verdict in Detector(str(run), **options).judge(images)]
    return float(np.mean(np.array(found) == generated))


def test_head_weights_and_calibration_are_fitted_and_used(home: Path, tmp_path: Path, capsys) -> None:
    run = copy(home, tmp_path)
    cli.run(["fit-head", str(run), "--data", str(home / "pairs")])
    assert accuracy(run) > 0.9
    fusion, head, calibration = Fusion.load(run), Head.load(run), Calibration.load(run)
    assert fusion is not None
    assert head is not None
    assert fusion.names == ["language_model", "head"]
    assert (head.n, fusion.n, calibration.n, len(head.ordinary)) == (40, 24, 24, 24)
    assert calibration.temperature != 17.0
    out = capsys.readouterr().out
    for shown in ("language model", "head", "fused", "a level of 0.01 needs 99 ordinary images, these are 24"):
        assert shown in out


def test_a_run_is_calibrated_on_the_fused_log_odds(home: Path, tmp_path: Path) -> None:
    run = copy(home, tmp_path)
    cli.run(["fit-head", str(run), "--data", str(home / "pairs")])
    fitted = Calibration.load(run)
    cli.run(["calibrate", str(run), "--data", str(home / "pairs")])
    again = Calibration.load(run)
    assert again.temperature == pytest.approx(fitted.temperature, rel=0.01)
    assert again.bias == pytest.approx(fitted.bias, abs=0.05)


def test_a_backbone_and_an_expert_are_recorded_and_reused(home: Path, tmp_path: Path) -> None:
    run = copy(home, tmp_path)
    backbone, cnn = str(save_dinov3(tmp_path / "dinov3")), str(home / "cnn")
    cli.run(["fit-head", str(run), "--data", str(home / "pairs"), "--backbone", backbone, "--expert", cnn])
    head, fusion = Head.load(run), json.loads((run / "fusion.json").read_text(encoding="utf-8"))
    assert head is not None
    assert head.about["backbone"] == backbone
    assert head.width == 32
    assert [one["name"] for one in fusion["witnesses"]] == ["language_model", "head", "expert"]
    assert fusion["witnesses"][2]["path"] == cnn
    assert accuracy(run) > 0.9
    assert accuracy(run, expert=cnn) > 0.9


def test_a_model_that_is_not_a_run_gets_a_run_folder(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "with_head"
    cli.run(["fit-head", str(home / "model"), "--data", str(home / "pairs"), "--out", str(out)])
    assert not (home / "model" / "fusion.json").exists()
    assert Detector(str(out)).name == str(out)
    assert accuracy(out) > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "{home}/few"], "the validation images are 9 real and 9 generated: .* at least 10 of each"),
        (["--data", "{home}/pairs", "--expert", "{home}/nowhere"], "nowhere: not the run of a CNN"),
        (["--data", "{home}/pairs", "--backbone", "{home}/pairs"], "no vision model of transformers"),
    ],
)
def test_refused_inputs(home: Path, tmp_path: Path, arguments, message) -> None:
    run = copy(home, tmp_path)
    with pytest.raises(UserError, match=message):
        cli.run(["fit-head", str(run), *(part.format(home=home) for part in arguments)])
    assert not (run / "fusion.json").exists()


@pytest.mark.parametrize(
    ("data", "columns", "message"),
    [
        ("few", None, "the validation images are 9 real and 9 generated"),
        ("pairs", ["image"], "conversations have no labels"),
        ("pairs", None, ""),
    ],
)
def test_a_recipe_fits_a_head_or_reports_why_not(home, tmp_path, capsys, data, columns, message) -> None:
    vlm = tiny_vlm()
    splits = open_dataset(home / data)
    validation = ValidationSet.from_rows(splits["validation"])
    odds = np.where(validation.generated, 1.0, -1.0) * np.linspace(-1, 5, len(validation))
    rows = splits["train"].select_columns(columns) if columns else splits["train"]
    vlm.model.train()
    found = fit_at_end(vlm, tmp_path, rows, str(home / data), validation, odds)
    assert vlm.model.training
    out = capsys.readouterr().out
    if message:
        assert found is None
        assert "no head is fitted, the language model's verdict stands alone: " in out
        assert message in out
        assert not list(tmp_path.iterdir())
    else:
        assert found is not None
        assert set(found["weights"]) == {"language_model", "head"}
        assert {path.name for path in tmp_path.iterdir()} == {"head.safetensors", "fusion.json", "calibration.json"}


def test_an_adapter_is_exported_with_its_head(home: Path, tmp_path: Path) -> None:
    run = copy(home, tmp_path)
    cli.run(["fit-head", str(run), "--data", str(home / "pairs")])
    cli.run(["export", str(run), str(tmp_path / "out"), "--to", "merged"])
    (image,), _ = toys(1)
    assert Detector(str(tmp_path / "out"))(image).log_odds == pytest.approx(
        Detector(str(run))(image).log_odds, rel=0.02
    )


def test_fused_figures_are_cross_validated() -> None:
    rng = np.random.default_rng(0)
    generated = np.arange(60) % 2 == 1
    noise = {f"{i}": rng.normal(size=60) for i in range(30)}  # that weights of its own images can follow
    learned = Fusion.fit(noise, generated).log_odds(noise)
    by_itself = ((learned > 0) == generated).mean()
    assert by_itself > 0.65
    assert ((cross_fitted(noise, generated) > 0) == generated).mean() < by_itself - 0.05


def test_disputed_images_are_unsure_below_the_reliable_distance() -> None:
    rng = np.random.default_rng(0)
    generated = np.arange(2000) % 2 == 1
    features = rng.normal(size=(2000, 2)) + 1.5 * generated[:, None]
    own = np.where(generated, 1.0, -1.0) + rng.normal(size=2000)
    head = Head.fit(features, generated)
    said = Read(features, {"language_model": own}, generated).said(head)
    fitted = weigh(head, said, generated, {}, 0.01)
    fused = fitted.fusion.log_odds(said)
    margin = np.abs(fitted.calibration.margin(fused))
    disputed, right = fitted.fusion.is_disputed(said), (fused > 0) == generated
    assert fitted.fusion.disputed > 0
    sure = disputed & (margin > fitted.fusion.disputed)
    assert right[disputed & ~sure].mean() < 0.8
    assert not sure.any() or right[sure].mean() >= 0.9


def test_an_image_is_read_by_the_language_model_and_the_head_in_one_pass(home: Path, tmp_path: Path) -> None:
    run = copy(home, tmp_path)
    cli.run(["fit-head", str(run), "--data", str(home / "pairs")])
    detector = Detector(str(run))
    read = []
    encode = detector.engine.vlm.encode
    detector.engine.vlm.encode = lambda prepared: read.append(1) or encode(prepared)  # type: ignore[method-assign]
    detector(Image.new("RGB", (16, 16)))
    assert len(read) == 1


def test_benchmark_robustness_and_compare_use_the_fused_verdict(home: Path, tmp_path: Path, capsys) -> None:
    run = copy(home, tmp_path)
    cli.run(["fit-head", str(run), "--data", str(home / "pairs"), "--expert", str(home / "cnn")])
    fusion = Fusion.load(run)
    assert fusion is not None
    # The head alone decides, turned round: whatever follows it is wrong wherever it is right.
    weights = {"language_model": 0.0, "head": -1.0, "expert": 0.0}
    turned = replace(
        fusion, witnesses=tuple(replace(one, weight=weights[one.name]) for one in fusion.witnesses), intercept=0.0
    )
    turned.save(run)
    asked = ["--model", str(run), "--benchmark", str(home / "pairs")]
    cli.run(["benchmark", *asked, "--generate", "False"])
    cli.run(["robustness", *asked, "--conditions", "tiers", "--out", str(tmp_path / "robust")])
    cli.run(["compare", str(run / "eval"), "--out", str(tmp_path / "compared")])

    summary = json.loads((run / "eval" / "summary.json").read_text())
    clean = json.loads((tmp_path / "robust" / "robustness.json").read_text())["conditions"]["clean"]
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())["runs"]["run"]
    for found in (summary, clean["both"], compared):
        assert found["accuracy"] == 0
    for found in (summary, clean, compared):
        assert list(found["witnesses"]) == ["language_model", "head", "expert"]
        assert found["witnesses"]["head"]["accuracy"] == 1
        assert found["witnesses"]["head"]["fused_above"]["value"] == -1
    assert summary["witnesses"]["head"]["weight"] == -1
    assert "above this witness" in (run / "eval" / "report.html").read_text()
    assert "Head alone" in (run / "eval" / "report.html").read_text()
    assert "head alone" in (tmp_path / "compared" / "report.html").read_text()
    assert "clean, head alone" in (tmp_path / "robust" / "report.html").read_text()
    assert "head alone" in capsys.readouterr().out
    detector = Detector(str(run))
    rows = [json.loads(line) for line in (run / "eval" / "results.jsonl").read_text().splitlines()]
    images = {row["id"]: row for row in rows if row["generator"] == "toy"}
    assert images
    test = open_dataset(home / "pairs")["test"]
    expected = [detector(test[i]["twin"]).log_odds for i in range(len(test))]
    assert sorted(row["fused_odds"] for row in images.values()) == pytest.approx(sorted(expected), rel=1e-3)
