"""export --to onnx: onnxruntime's results are those of the detector and of the head, in a process without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit

from tests.infer.test_witnesses import toys
from tests.models.cnn.test_model import make
from tests.models.tiny_chat import save_tiny
from tests.train.toys import save_tiny_model
from vlm_detect import cli
from vlm_detect.errors import UserError
from vlm_detect.infer.head import Head, probe_image
from vlm_detect.infer.onnx_export import export_onnx
from vlm_detect.infer.pooled import pooled_features
from vlm_detect.models import onnx
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.registry import load_vlm
from vlm_detect.stats.calibration import Calibration

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

VERDICTS = {"real_fake": ["real", "generated"], "three_way": ["real", "generated", "edited"]}


def results(folder: Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == json.loads((folder / "export.json").read_text())["outputs"]
    return dict(zip(names, session.run(names, inputs), strict=True))


def photos(n: int, side: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)) for _ in range(n)]


@pytest.mark.parametrize(
    ("arch", "task", "view"),
    [
        ("fakenet2", "three_way", "invert_saturate"),
        pytest.param("npr", "real_fake", "plain", marks=pytest.mark.slow),
    ],
)
def test_a_cnn_gives_its_detectors_probabilities(arch, task, view, tmp_path: Path, capsys) -> None:
    run = tmp_path / "cnn"
    model = make(arch, 16, view=view, task=task, heads={"verdict": VERDICTS[task], "object": ["cat", "dog", "frog"]})
    model.eval().save_pretrained(run)
    Calibration(temperature=0.5, bias=0.1, threshold=0.6).save(run)
    cli.run(["export", str(run), str(tmp_path / "out"), "--to", "onnx"])
    assert "differ from ours by" in capsys.readouterr().out
    detector = CnnDetector.load(run)
    images = photos(3, 16)
    found = results(tmp_path / "out", pixels=detector.pixels(images).transpose(0, 3, 1, 2))
    scores = detector.scores(images)
    np.testing.assert_allclose(found["p_fake"], scores.p_fake, atol=1e-4)
    np.testing.assert_allclose(found["log_odds"], scores.odds, atol=1e-4)
    for head, probabilities in scores.heads.items():
        np.testing.assert_allclose(found[f"probabilities_{head}"], probabilities, atol=1e-4)
    assert np.ptp(scores.p_fake) > 1e-3, "all images get the same answer: nothing was compared"
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["inputs"] == {"pixels": {"dtype": "uint8", "shape": ["images", 3, 16, 16]}}
    assert record["calibration"]["threshold"] == 0.6
    assert record["heads"]["verdict"] == VERDICTS[task]


def fit(folder: Path, **about: Any) -> Head:
    """A head on the tower of the model in `folder`."""
    vlm = load_vlm(str(folder), dtype=torch.float32, device="cpu")
    images, generated = toys(40)
    head = Head.fit(pooled_features(vlm, images), generated, about=about)
    head = head.with_probe(pooled_features(vlm, [probe_image()]))
    head.save(folder)
    return head


def test_a_head_on_moondreams_tower_reads_every_tiling(tmp_path: Path) -> None:
    run = save_tiny_model(tmp_path / "run")
    head = fit(run)
    export_onnx(str(run), tmp_path / "out")
    vlm = load_vlm(str(run), dtype=torch.float32, device="cpu")
    rng = np.random.default_rng(1)
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((16, 16), (60, 20), (30, 30), (20, 60))
    ]
    odds = head.log_odds(pooled_features(vlm, images))
    tilings = set()
    for image, expected in zip(images, odds, strict=True):
        crops, tiling = vlm.processor.image_processor.crops(image)
        crops = crops.transpose(0, 3, 1, 2)
        tilings.add(tiling)
        found = results(tmp_path / "out", whole=crops[:1], tiles=crops[1:].reshape(*tiling, *crops.shape[1:]))
        np.testing.assert_allclose(found["log_odds"], [expected], rtol=1e-4, atol=1e-3)  # thousands of nats
        np.testing.assert_allclose(found["p_generated"], [expit(expected)], atol=1e-4)
    assert len(tilings) == 4


@pytest.mark.slow
def test_a_head_on_llavas_tower_runs_without_torch(tmp_path: Path) -> None:
    run = save_tiny("llava", tmp_path / "run")
    head = fit(run)
    export_onnx(str(run), tmp_path / "out")
    vlm = load_vlm(str(run), dtype=torch.float32, device="cpu")
    images, _ = toys(4, seed=2)
    expected = expit(head.log_odds(pooled_features(vlm, images)))
    pixels = vlm.processor.image_processor(images, return_tensors="np")["pixel_values"]
    np.save(tmp_path / "pixels.npy", pixels)
    code = (
        "import json, sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession('out/model.onnx')\n"
        "rows = [session.run(['p_generated'], {'pixel_values': row[None]})[0][0] for row in numpy.load('pixels.npy')]\n"
        "assert 'torch' not in sys.modules\n"
        "print(json.dumps([float(row) for row in rows]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-4)
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()


def test_what_has_no_graph_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch) -> None:
    def refused(run: Path, words: str) -> None:
        with pytest.raises(UserError, match=words):
            export_onnx(str(run), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    run = save_tiny_model(tmp_path / "run")
    refused(run, "a CNN's run or a run with a head")
    fit(run, backbone="facebook/dinov3-vits16")
    refused(run, "reads facebook/dinov3-vits16")
    qwen = save_tiny("qwen2_vl", tmp_path / "qwen")
    fit(qwen)
    refused(qwen, "knows the image towers of moondream and LLaVA")
    make("fakenet2", 16).save_pretrained(tmp_path / "cnn")
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    refused(tmp_path / "cnn", "differ by .*: not exported")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        export_onnx(str(run), tmp_path / "full")
    assert (tmp_path / "full" / "file").exists()


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vlm_detect.extras.find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"--to onnx needs onnx, onnxscript, onnxruntime; run: pip install 'vlm-detect\[onnx\]'"
    ):
        export_onnx("run", tmp_path / "out")
