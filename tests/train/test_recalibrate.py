"""vlm-detect calibrate: a run's threshold follows one's own images, and the test split is left alone."""

from __future__ import annotations

import json

import pytest

from tests.factories import tiny_vlm
from tests.train.toys import save_tiny_model, save_toy_pairs
from vlm_detect import cli
from vlm_detect.errors import UserError
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


def test_it_is_fitted_anew_and_saved(home, capsys):
    cli.run(["calibrate", str(home / "run"), "--data", str(home / "pairs")])
    found = Calibration.load(home / "run")
    assert found.n == 12
    assert found.temperature != 17.0
    assert "calibrated on 12 images" in capsys.readouterr().out


def test_a_bound_on_false_positives_moves_the_threshold(home):
    cli.run(["calibrate", str(home / "run"), "--data", str(home / "pairs"), "--max_fpr", "0", "--limit", "8"])
    strict = json.loads((home / "run" / "calibration.json").read_text())
    cli.run(["calibrate", str(home / "run"), "--data", str(home / "pairs"), "--limit", "8"])
    assert strict["n"] == 8
    assert strict["threshold"] != Calibration.load(home / "run").threshold


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{home}/nowhere", "--data", "{home}/pairs"], "nowhere: no such run directory"),
        (["{home}/run", "--data", "{home}/nothing"], "nothing: cannot be opened"),
        (["{home}/run", "--data", "{home}/pairs", "--split", "dev"], "has no dev split"),
    ],
)
def test_what_it_refuses(home, arguments, message):
    with pytest.raises(UserError, match=message):
        cli.run(["calibrate", *(part.format(home=home) for part in arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--split", "test"], "is not measured by them"), (["--max_fpr", "5"], "--max_fpr 5.0")],
)
def test_what_the_command_line_alone_shows_wrong(home, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        cli.run(["calibrate", str(home / "run"), "--data", str(home / "pairs"), *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
