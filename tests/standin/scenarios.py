"""What is run on the stand-in device: functions that assert. One process runs all of them: imports take seconds.

    python -m tests.standin.device tests/standin/scenarios.py FOLDER fast_paths scan ...

Writes FOLDER/NAME.failed with the traceback of what fails. FOLDER holds a tiny `model` and toy `pairs`.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.cnn.toys import picture, save_images
from tests.factories import tiny_vlm
from tests.models.tiny_chat import ARCHITECTURES, save_tiny
from tests.models.tiny_types import save_tiny_type
from tests.scripts.here import run_verb
from tests.standin.counting import micro_steps
from tests.standin.device import KIND, counted
from tests.train.toys import toy_pairs
from vlm_detect.apps.doctor import examine
from vlm_detect.config import REPOSITORY
from vlm_detect.infer.asks import Ask
from vlm_detect.infer.engine import Engine
from vlm_detect.infer.reference import generate_plain, score_plain
from vlm_detect.models.base import MEASURED, VLM
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.moondream.image_processing import MoondreamImageProcessor
from vlm_detect.models.registry import load_vlm
from vlm_detect.train.arguments import TrainArguments
from vlm_detect.train.examples import Units
from vlm_detect.train.lora import add_lora
from vlm_detect.train.options import LoraOptions, QuestionOptions
from vlm_detect.train.progress import Progress
from vlm_detect.train.trainer import DetectorTrainer
from vlm_detect.train.tuning import scale_float16

ASK = Ask("Is this image AI-generated?", ("Yes.", "No."))
SETTINGS = ["--learning_rate", "3e-3", "--questions_per_image", "2", "--report_to", "none", "--num_train_epochs", "2"]
SETTINGS += ["--dtype", "float32", "--autocast", "no", "--per_device_train_batch_size", "2", "--cpu_threads", "1"]


def photos(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    sizes = [(16, 16), (40, 30), (20, 64), (33, 17)]
    return [Image.fromarray(rng.integers(0, 255, (*sizes[i % 4], 3), dtype=np.uint8)) for i in range(count)]


def fast_paths(home: str) -> None:
    """The engine's packed scores and texts are those of the plain path, and those of the CPU."""
    chat = [_tiny(home, name) for name in ("llava", "qwen2_5_vl", "qwen3_vl", "glm46v")]
    for vlm in (tiny_vlm(), *chat):
        images = photos(3)
        on_cpu = _answers(vlm, images)
        vlm.model.to(KIND)
        assert vlm.device.type == KIND
        scores, texts, captions = _answers(vlm, images)
        np.testing.assert_allclose(scores, on_cpu[0], atol=1e-4)
        assert (texts, captions) == on_cpu[1:]
        plain = [[score_plain(vlm, image, ASK.question, one).logprob for one in ASK.candidates] for image in images]
        np.testing.assert_allclose(scores, plain, atol=1e-4)
        assert texts == [[generate_plain(vlm, image, vlm.question_ids("What?"), 6)] for image in images]


def _answers(vlm: VLM, images: list[Image.Image]) -> tuple[list[list[float]], list[list[str]], list[str]]:
    engine = Engine(vlm, batch_images=2)
    scores = [[one.logprob for one in found] for (found,) in engine.score(images, [[ASK]] * len(images))]
    return scores, engine.generate(images, [["What?"]] * len(images), 6), engine.caption(images, "short", 6)


def scan(home: str) -> None:
    """A folder with a broken file in it: the others are judged."""
    folder = Path(home, "photos")
    folder.mkdir()
    for number, image in enumerate(photos(5)):
        image.save(folder / f"{number}.png")
    Path(folder, "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    found = Path(home, "found.jsonl")
    with counted() as counts, preparing() as threads:
        done = run_verb("scan", folder, "--model", Path(home, "model"), "--out", found)
    assert counts.launches, "nothing ran on the device"
    assert done.returncode == 0, done.stderr
    assert [name.split("_")[0] for name in threads] == ["prepare"] * 5
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    assert sorted(row["label"] == "unreadable" for row in rows) == [False] * 5 + [True]


@contextmanager
def preparing() -> Iterator[list[str]]:
    """The name of the thread that cuts each image's crops, but those whose cost is measured."""
    plain, threads = MoondreamImageProcessor.crops, []

    def crops(self, image):
        if image.size not in MEASURED:
            threads.append(threading.current_thread().name)
        return plain(self, image)

    with mock.patch.object(MoondreamImageProcessor, "crops", crops):
        yield threads


def recipe(home: str) -> None:
    """LoRA with validation and checkpoints: the losses of the CPU, and interrupted and resumed those of one run."""
    assert _train(home, "cpu", "--use_cpu", "True") == 0
    with counted() as counts:
        assert _train(home, "whole") == 0
    assert counts.launches["aten::mm"], "nothing was trained on the device"
    np.testing.assert_allclose(_losses(home, "whole"), _losses(home, "cpu"), atol=1e-3)

    plain = Progress.on_step_begin

    def interrupt(self, args, state, control, **options):
        plain(self, args, state, control, **options)
        if state.global_step == 7:
            raise KeyboardInterrupt

    with mock.patch.object(Progress, "on_step_begin", interrupt):
        assert _train(home, "resumed") == 130
    assert json.loads(Path(home, "resumed", "run.json").read_text())["status"] == "running"
    assert _train(home, "resumed") == 0
    assert _losses(home, "resumed") == _losses(home, "whole")
    adapters = [load_file(Path(home, name, "adapter_model.safetensors")) for name in ("resumed", "whole")]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[1])
    assert json.loads(Path(home, "whole", "run.json").read_text())["validation"]["auroc"] is not None


def _train(home: str, name: str, *flags: str) -> int:
    program = str(REPOSITORY / "recipes" / "moondream_lora.py")
    paths = ["--model", f"{home}/model", "--data", f"{home}/pairs", "--output_dir", f"{home}/{name}"]
    with mock.patch.object(sys, "argv", [program, *paths, *SETTINGS, *flags]):
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def _losses(home: str, name: str) -> list[float]:
    history = json.loads(Path(home, name, "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def cnn(home: str) -> None:
    """A CNN learns on the device, and judges there as on the CPU."""
    data = save_images(Path(home, "images"))
    flags = ["--arch", "mai", "--num_train_epochs", 4, "--learning_rate", "3e-3", "--report_to", "none"]
    flags += ["--per_device_train_batch_size", 16, "--output_dir", Path(home, "cnn")]
    with counted() as counts:
        done = run_verb("train", "cnn", "--data", data, *flags)
    assert done.returncode == 0, done.stderr
    assert counts.launches["aten::convolution_backward"], "nothing was trained on the device"
    images = [Image.fromarray(picture(label, np.random.default_rng(1))) for label in ("real", "generated")]
    on_device, on_cpu = (CnnDetector.load(Path(home, "cnn"), device).scores(images) for device in (KIND, "cpu"))
    np.testing.assert_allclose(on_device.odds, on_cpu.odds, atol=1e-3)
    assert on_cpu.odds[0] < on_cpu.odds[1]


def waiting(home: str) -> None:
    """Between two logs nothing waits for the device, with the tower live or its features cached, packed or not; for
    other architectures nothing of this package: their forward itself waits."""
    ways = [(tiny_vlm(), False, True), (tiny_vlm(), True, False), (_tiny(home, "llava"), False, True)]
    for vlm, cached, pack in ways:
        counts = micro_steps(vlm, cached=cached, pack=pack)
        assert counts.launches, "nothing ran on the device"
        assert not counts.waits, f"{type(vlm).__name__}, cached {cached}, packed {pack}: {dict(counts.waits)}"
    ways = [("qwen2_vl", True), ("qwen2_vl", False), ("qwen3_vl", True), ("glm46v", True), ("paligemma", False)]
    for name, pack in ways:
        counts = micro_steps(_tiny(home, name), cached=False, pack=pack)
        assert counts.others, "transformers' own waits were not seen"
        assert not counts.ours, f"{name}, packed {pack}: {dict(counts.ours)}"


def waiting_for_scores(home: str) -> None:
    """A batch of images is scored with one wait of this package, for the scores; moondream checks its prefixes too."""
    scores = "vlm_detect.infer.scoring:score_packed"
    checked = {"vlm_detect.models.moondream.modeling:_embed": 1}
    others = ("llava", "qwen2_vl", "qwen3_vl", "glm46v")
    ways = [(tiny_vlm(), checked), *((_tiny(home, name), {}) for name in others)]
    for vlm, other in ways:
        vlm.model.to("cuda")
        engine = Engine(vlm, batch_images=2)
        engine.score(photos(1), [[ASK]])  # tables are copied to the device once
        images = [image.resize((20, 28)) for image in photos(3)[1:]]
        with counted() as counts:
            engine.score(images, [[ASK]] * 2)
        assert counts.ours == {scores: 1, **other}, f"{type(vlm).__name__}: {dict(counts.ours)}"


def _tiny(home: str, name: str) -> VLM:
    folder = Path(home, name)
    if not folder.exists():
        save = save_tiny if name in ARCHITECTURES else save_tiny_type
        folder = save(name, folder)
    return load_vlm(str(folder), device="cpu")


def without_bfloat16(home: str) -> None:
    """A GPU older than Ampere: float16 with a scaled loss for weights that were trained in it, float32 for others."""
    from tests.data.factories import photo, save_tiny_pipeline
    from vlm_detect.generate.options import Sampling
    from vlm_detect.generate.renderer import Renderer
    from vlm_detect.models.registry import ResolvedModel

    assert not any(line.startswith("no bfloat16: moondream2") for line in examine())
    with mock.patch.object(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation):
        assert any(line.startswith("no bfloat16: moondream2") for line in examine())
        assert load_vlm(str(Path(home, "model"))).model.dtype is torch.float32  # a moondream of bfloat16
        vlm, plain = load_vlm("tinyllava-nano"), load_vlm("tinyllava-nano", device="cpu")
        assert (vlm.model.dtype, plain.model.dtype) == (torch.float16, torch.float32)
        images = photos(2)
        np.testing.assert_allclose(_answers(vlm, images)[0], _answers(plain, images)[0], atol=0.05)

        scale, losses = _scaled_steps(vlm, Path(home, "scaled"))
        assert scale >= 2**10
        assert max(losses) < 1
        moved = [weight for name, weight in vlm.model.named_parameters() if "lora_B" in name]
        assert all(weight.abs().max() > 0 for weight in moved), "the scaler skipped all steps"

        model = ResolvedModel("tiny", str(save_tiny_pipeline(Path(home, "old"))))
        found = []
        for device, dtype in (("cuda", "float16"), ("cpu", "float32")):
            renderer = Renderer(model, Sampling(steps=2, guidance=2.0, max_sequence_length=8), device)
            assert renderer.dtype == dtype
            images = renderer.render(renderer.encode_prompts(["a cat"]), [1], (16, 24))
            images += renderer.reconstruct([photo(0, (16, 16))])
            found.append(np.concatenate([np.asarray(image, int).ravel() for image in images]))
        assert np.abs(found[0] - found[1]).mean() < 3


def _scaled_steps(vlm: VLM, folder: Path) -> tuple[float, list[float]]:
    """The scale of the loss after some steps as a recipe makes them, and their losses."""
    add_lora(vlm, LoraOptions(train_connector=True))
    args = TrainArguments(
        output_dir=str(folder),
        report_to="none",
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        warmup_steps=0,
        logging_steps=1,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
    )
    scale_float16(args, vlm)
    trainer = DetectorTrainer(vlm, args, Units(toy_pairs(4), QuestionOptions(questions_per_image=1)))
    trainer.train()
    scaler = trainer.accelerator.scaler
    assert scaler is not None
    return scaler.get_scale(), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def rendering(home: str) -> None:
    """With each way to offload: the same images, one or several at a time."""
    from tests.data.factories import photo, save_tiny_pipeline
    from vlm_detect.generate.options import Sampling
    from vlm_detect.generate.renderer import Renderer
    from vlm_detect.models.registry import ResolvedModel

    model = ResolvedModel("tiny", str(save_tiny_pipeline(Path(home, "sd3"))))
    found = []
    for device, offload in (("cpu", "none"), (KIND, "none"), (KIND, "stages"), (KIND, "group")):
        sampling = Sampling(steps=2, guidance=2.0, max_sequence_length=8, offload=offload, dtype="float32")
        renderer = Renderer(model, sampling, device)
        with counted() as counts:
            prompts = renderer.encode_prompts(["a cat", "a red car"])
            images = renderer.render(prompts, [1, 2], (16, 24)) + renderer.reconstruct([photo(0, (16, 16))])
        assert bool(counts.launches) == (device == KIND)
        found.append(np.concatenate([np.asarray(image, int).ravel() for image in images]))
    for other in found[1:]:
        assert np.abs(other - found[0]).max() <= 1


if __name__ == "__main__":
    for name in sys.argv[2:]:
        try:
            globals()[name](sys.argv[1])
        except BaseException:  # every scenario is a test of its own
            Path(sys.argv[1], f"{name}.failed").write_text(traceback.format_exc())
