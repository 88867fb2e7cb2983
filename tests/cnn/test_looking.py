"""Heat maps on a planted mark, and the pages that show them, a dataset and a run's errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cnn.toys import MARK, picture, save_images
from vlm_detect import cli
from vlm_detect.cnn.evaluation import evaluate_split
from vlm_detect.cnn.heatmap import heat_maps
from vlm_detect.cnn.pixels import decode_split
from vlm_detect.errors import UserError
from vlm_detect.models.cnn.configuration import CnnConfig, is_cnn_run
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.cnn.model import head_loss, logits_of, new_model
from vlm_detect.stats.calibration import Calibration


def marked(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """n images, every second generated with its mark on a place of the feature maps' grid; truths and corners."""
    corners = [(int(y), int(x)) for y, x in rng.integers(0, 32 // MARK, (n, 2)) * MARK]
    labels = np.arange(n) % 2
    images = [
        picture("generated" if label else "real", rng, corner=at) for label, at in zip(labels, corners, strict=True)
    ]
    return np.stack(images), labels, corners


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory whose network knows the mark."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    heads = {"verdict": ["real", "generated"]}
    model = new_model(CnnConfig(arch="fakenet2", image_size=32, heads=heads)).train()
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        images, labels, _ = marked(32, rng)
        loss = head_loss(model(torch.from_numpy(images).permute(0, 3, 1, 2))["verdict"], torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    Calibration(temperature=2.0, n=10).save(folder)
    return folder


def test_the_hottest_region_is_the_planted_mark(run):
    detector = CnnDetector.load(run)
    images, labels, corners = marked(40, np.random.default_rng(1))
    assert ((detector.scores([Image.fromarray(i) for i in images]).odds > 0) == labels).mean() > 0.9
    heat = heat_maps(detector, images)
    assert heat.shape == (40, 32, 32)
    assert heat.min() >= 0
    hits = []
    for each, (y, x) in zip(heat[labels == 1], np.array(corners)[labels == 1], strict=True):
        hot_y, hot_x = np.unravel_index(each.argmax(), each.shape)
        hits.append(y <= hot_y < y + MARK and x <= hot_x < x + MARK)
    assert np.mean(hits) >= 0.9  # by chance 1 in 16


def test_scores_are_calibrated_and_do_not_depend_on_the_batch(run):
    detector = CnnDetector.load(run)
    images = [Image.fromarray(picture("real", np.random.default_rng(i), side=40 + i)) for i in range(3)]
    together = detector.scores(images)
    np.testing.assert_allclose(together.p_fake, 1 / (1 + np.exp(-together.odds / 2)), rtol=1e-6)
    alone = [detector.scores([image]).odds[0] for image in images]
    np.testing.assert_allclose(together.odds, alone, atol=1e-4)
    assert together.heads["verdict"].shape == (3, 2)
    np.testing.assert_allclose(together.heads["verdict"].sum(axis=1), 1, rtol=1e-6)
    assert detector.scores([Image.new("RGB", (9, 7))]).odds.shape == (1,)  # smaller than the square: scaled up


def test_other_runs_are_refused(run, tmp_path):
    assert is_cnn_run(run)
    assert not is_cnn_run(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "moondream"}')
    assert not is_cnn_run(tmp_path)
    with pytest.raises(UserError, match="not the run of a CNN"):
        CnnDetector.load(tmp_path)


def test_explain_shows_each_image_in_three_ways_and_names_the_file_it_could_not_read(run, tmp_path, capsys):
    shots = tmp_path / "shots"
    shots.mkdir()
    Image.fromarray(picture("generated", np.random.default_rng(0))).save(shots / "one.png")
    (shots / "two.png").write_bytes(b"nothing")
    cli.run(["explain", "--model", str(run), str(shots), "--out", str(tmp_path / "page.html")])
    assert "1 images with heat maps" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 3
    assert "two.png: not_an_image" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        cli.run(["explain", "--model", str(run), str(shots / "two.png"), "--out", str(tmp_path / "page.html")])
    with pytest.raises(UserError, match="no such file or folder"):
        cli.run(["explain", "--model", str(run), str(tmp_path / "gone"), "--out", str(tmp_path / "page.html")])


def test_view_shows_a_dataset_and_the_errors_of_a_run(run, tmp_path, capsys):
    data = str(save_images(tmp_path / "set", n_scored=12))
    page = tmp_path / "page.html"
    cli.run(["view", data, "--split", "validation", "--n", "8", "--out", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 8
    assert "generated (gan)" in text

    detector = CnnDetector.load(run)
    shots = decode_split(data, "validation", size=32, cache=tmp_path / "cache")
    logits = logits_of(detector.model, shots.images, np.arange(len(shots)), 8, "cpu")
    logits["verdict"][0] = 5.0  # a real image, called generated with great confidence
    results = tmp_path / "results"
    summary = evaluate_split(shots, logits, detector.config, results, data=data, split="validation", model=str(run))
    assert summary["n"] == 12
    assert summary["heads"]["verdict"]["accuracy"] == summary["accuracy"]
    cli.run(["view", str(results), "--out", str(page)])
    wrong = round(12 * (1 - summary["accuracy"]))
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == wrong >= 1
    assert "answer Yes., truth No." in text
    assert text.index("P(generated) = 0.993") > 0
    with pytest.raises(UserError, match="has no split what"):
        cli.run(["view", data, "--split", "what", "--out", str(page)])
    (tmp_path / "set").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="does not exist here"):
        cli.run(["view", str(results), "--out", str(page)])
    for verb, flag in [("view", "--n"), ("report", "--n"), ("audit", "--max_images")]:
        with pytest.raises(SystemExit) as ended:
            cli.run([verb, data, flag, "-5"])
        assert ended.value.code == 2
        assert f"{flag} -5: give 1 or more" in capsys.readouterr().err
