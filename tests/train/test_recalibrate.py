"""vlm-detect calibrate: a run's threshold follows one's own images, and the test split is left alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.factories import tiny_vlm
from tests.train.toys import save_tiny_model, save_toy_pairs, toy_image
from vlm_detect import cli
from vlm_detect.apps.session import describe
from vlm_detect.errors import UserError
from vlm_detect.infer import detector as detector_module
from vlm_detect.infer.detector import Detector
from vlm_detect.infer.verdict import Odds
from vlm_detect.stats.calibration import Calibration
from vlm_detect.train.lora import add_lora
from vlm_detect.train.options import LoraOptions


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    save_toy_pairs(folder / "pairs", n_train=2, n_validation=6)
    vlm = tiny_vlm()
    vlm.name = str(save_tiny_model(folder / "model"))
    add_lora(vlm, LoraOptions())
    vlm.model.save_pretrained(folder / "run", save_embedding_layers=False)
    Calibration(temperature=17.0).save(folder / "run")
    return folder


@pytest.fixture
def run(home):
    Calibration(temperature=17.0).save(home / "run")
    return home / "run"


@pytest.fixture
def knows(monkeypatch):
    """The log-odds of every image are its brightness, and so right on the toys."""

    def by_brightness(engine, images):
        return [Odds((mean(image) / 10, mean(image) / 10), 0.0) for image in images]

    monkeypatch.setattr(detector_module, "read_odds", by_brightness)


def mean(image):
    return float(np.asarray(image).mean()) - 125


def save_photos(folder, n, seed=0):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n):
        toy_image(False, rng, side=8).save(folder / f"{i}.png")
    return folder


def photo(path):
    toy_image(False, np.random.default_rng(0)).save(path)
    return path


def calibrate(*arguments):
    cli.run(["calibrate", *map(str, arguments)])


def test_the_calibration_is_refitted_and_saved(home, run, knows, capsys):
    calibrate(run, "--data", home / "pairs")
    found = Calibration.load(run)
    assert (found.n, found.n_real, found.reliable, found.max_fpr) == (12, 6, True, None)
    assert found.temperature != 17.0
    assert len(found.real_quantiles) == 6
    assert "calibrated on 12 images (AUROC 1.000)" in capsys.readouterr().out


def test_a_model_at_chance_keeps_its_calibration(home, run, monkeypatch, capsys):
    monkeypatch.setattr(
        detector_module, "read_odds", lambda _, images: [Odds((i % 3, i % 3), 0.0) for i in range(len(images))]
    )
    before = (run / "calibration.json").read_bytes()
    with pytest.raises(UserError, match="nothing to calibrate, the old calibration stays") as refused:
        calibrate(run, "--data", home / "pairs")
    assert "\n" not in str(refused.value)
    assert (run / "calibration.json").read_bytes() == before
    calibrate(run, "--data", home / "pairs", "--force")
    assert not Calibration.load(run).reliable
    found = Detector(str(run))(photo(home / "pale.png"))
    assert found.calibrated
    assert not found.reliable
    assert not found.to_json()["reliable"]
    assert "not reliable" in describe(found, "black.png")
    cli.run(["scan", "--model", str(run), str(photo(home / "pale.png"))])
    assert "its calibration is not reliable: " in capsys.readouterr().err


def test_photos_alone_guarantee_a_rate(run, tmp_path, knows, capsys):
    calibrate(run, "--data", save_photos(tmp_path / "photos", 60), "--max_fpr", "0.05")
    found = Calibration.load(run)
    assert (found.n, found.n_real, found.max_fpr, found.confidence) == (60, 60, 0.05, 0.95)
    assert (found.reached, found.tpr, found.temperature) == (0.0, None, 17.0)
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / 60))
    out = capsys.readouterr().out
    for words in ("calibrated on 60 images", "0 % of 60 photos exceed it", "at most 4.87 % (95 % confidence)"):
        assert words in out


def test_scan_chooses_its_own_rate(run, tmp_path, knows, capsys):
    photos, out = save_photos(tmp_path / "photos", 60), tmp_path / "verdicts.jsonl"
    calibrate(run, "--data", photos, "--max_fpr", "0.05")
    scan = ["scan", "--model", str(run), str(photos)]
    cli.run([*scan, "--max_fpr", "0.2", "--out", str(out)])
    assert "at most 20 % of photos like the 60 of its calibration are called generated" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["max_fpr"] for row in rows} == {0.2}
    assert 0 < sum(row["label"] == "generated" for row in rows) < 12
    with pytest.raises(UserError, match="1 % needs at least 299 photos, these are 60"):
        cli.run([*scan, "--max_fpr", "0.01"])
    with pytest.raises(UserError, match=r"holds verdicts with --max_fpr 0.2, not 0.05"):
        cli.run([*scan, "--out", str(out)])


@pytest.mark.parametrize("photos", [27, 58])
def test_rates_that_the_photos_cannot_guarantee(run, tmp_path, photos):
    before = (run / "calibration.json").read_bytes()
    with pytest.raises(UserError, match=f"5 % needs at least 59 photos, these are {photos}"):
        calibrate(run, "--data", save_photos(tmp_path / "photos", photos), "--max_fpr", "0.05")
    assert (run / "calibration.json").read_bytes() == before


def test_copies_and_damaged_files_do_not_count(run, tmp_path, knows):
    folder = save_photos(tmp_path / "photos", 58)
    for i in range(9):
        (folder / f"copy{i}.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="these are 58"):
        calibrate(run, "--data", folder, "--max_fpr", "0.05")
    save_photos(tmp_path / "more", 1, seed=1)
    (tmp_path / "more" / "0.png").rename(folder / "new.png")
    calibrate(run, "--data", folder, "--max_fpr", "0.05")
    assert Calibration.load(run).n_real == 59


def test_all_of_a_labelled_set_is_used(home, run, tmp_path, knows, capsys):
    """All splits but test, and the part of the generated images that is found; of the run's own data validation."""
    calibrate(run, "--data", home / "pairs", "--max_fpr", "0.5")
    found = Calibration.load(run)
    assert (found.n, found.tpr) == (16, 1.0)
    assert "100 % of the generated images are found" in capsys.readouterr().out
    (run / "run.json").write_text(json.dumps({"config": {"data": str(home / "pairs")}}))
    try:
        calibrate(run, "--data", home / "pairs", "--max_fpr", "0.5")
    finally:
        (run / "run.json").unlink()
    assert Calibration.load(run).n == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{home}/nowhere", "--data", "{home}/pairs"], "nowhere: no such run directory"),
        (["{home}/run", "--data", "{home}/nothing"], "nothing: cannot be opened"),
        (["{home}/run", "--data", "{home}/pairs", "--split", "dev"], "has no dev split"),
        (["{home}/run", "--data", "{home}/model", "--max_fpr", "0.5"], "no images in this folder"),
    ],
)
def test_refused_inputs(home, arguments, message):
    with pytest.raises(UserError, match=message):
        cli.run(["calibrate", *(part.format(home=home) for part in arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "cannot be evaluated on them"),
        (["--max_fpr", "5"], "--max_fpr 5.0"),
        (["--max_fpr", "0"], "--max_fpr 0.0"),
    ],
)
def test_errors_in_the_command_line_alone(home, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        cli.run(["calibrate", str(home / "run"), "--data", str(home / "pairs"), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
