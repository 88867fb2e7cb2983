"""What a run leaves for people: its curves, the floors on its card, and its upload."""

from __future__ import annotations

import json

from PIL import Image

from vlm_detect.train import program
from vlm_detect.train.card import _baselines
from vlm_detect.train.curves import _loss, _validation, write_curves

SCORED = {"eval_auroc": 0.8, "eval_balanced_accuracy": 0.7, "eval_log_loss": 0.6, "eval_images": 40}
HISTORY = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "epoch": 1.0, **SCORED}]


def test_curves_as_pictures_and_as_a_page(tmp_path):
    write_curves(tmp_path, HISTORY, title="Training: <run>", command="moondream_lora.py --x 1")
    page = (tmp_path / "training.html").read_text()
    assert "Training: &lt;run&gt;" in page
    assert "Loss from 2.000 at step 1 to 1.000 at step 2" in page
    assert "<td>0.800</td>" in page
    assert 'src="http' not in page
    assert all(Image.open(tmp_path / f"{name}.png").size[0] > 300 for name in ("loss", "validation"))


def test_a_single_validation_has_an_axis_from_the_start():
    (figure, text) = _validation(HISTORY)
    assert figure.axes[0].get_xlim() == (0, 1.05)
    assert "epoch 1.00: AUROC 0.800" in text
    (figure, _) = _loss(HISTORY[:1], "nats")
    assert figure.axes[0].get_xlim() == (0, 1.05)


def test_a_run_without_validation_has_only_a_loss(tmp_path):
    write_curves(tmp_path, HISTORY[:2], title="t", command="c")
    assert (tmp_path / "loss.png").is_file()
    assert not (tmp_path / "validation.png").exists()


def test_the_card_has_the_content_baselines_or_says_how_to_get_them(tmp_path):
    assert "vlm-detect audit" in _baselines(tmp_path / "audit.json")
    probe = {"name": "bytes", "auc": 0.91, "ci95": [0.88, 0.94], "n": 100, "groups": 50}
    audit = {"probes": [probe], "findings": ["The size in bytes gives the label away."]}
    (tmp_path / "audit.json").write_text(json.dumps(audit))
    text = _baselines(tmp_path / "audit.json")
    assert "| bytes | 0.910 | 0.880 to 0.940 |" in text
    assert "- The size in bytes" in text


def test_checkpoints_are_not_uploaded(tmp_path, monkeypatch, capsys):
    sent = {}
    monkeypatch.setattr(program, "upload_folder", lambda **arguments: sent.update(arguments))
    program.publish(tmp_path, "me/detector", None)
    assert (sent["repo_id"], sent["folder_path"]) == ("me/detector", tmp_path)
    assert "checkpoint-*/**" in sent["ignore_patterns"]
    assert "huggingface.co/me/detector" in capsys.readouterr().out
