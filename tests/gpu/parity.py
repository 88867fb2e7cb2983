"""Every fast path against its plain one on a device, and the model against outputs of the official code.

    python tests/gpu/parity.py --out eval/results/gpu/parity.json             # on a GPU
    python tests/gpu/parity.py --device cpu                                   # what of it runs on a CPU

Each check is a largest difference and the limit it must keep; a check beyond its limit makes the exit status 1. The
golden files and the random models are small: this is about being right, not about speed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measuring import Machine, Parts, noise, record, write
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import is_flash_attn_2_available

from tests.factories import tiny_vlm
from vlm_detect.config import parse_config
from vlm_detect.errors import UserError, run_main
from vlm_detect.images.stored import StoredImage
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.reference import generate_plain, score_plain
from vlm_detect.models.moondream import MoondreamForConditionalGeneration, MoondreamProcessor
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.loss import answer_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "moondream_tiny"
PICTURES = ["square_small", "wide", "tall_odd"]
Check = tuple[str, float, float]  # name, largest difference, limit


def main(argv: list[str]) -> None:
    (machine,) = parse_config([Machine], argv, doc=__doc__)
    machine.check()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    records: list[dict[str, Any]] = []
    parts = Parts()
    for part, checks in parts_of(machine).items():
        with parts.part(part):
            for name, difference, limit in checks:
                print(f"{'ok ' if difference <= limit else 'BAD'} {name}: {difference:.2e} (limit {limit:.0e})")
                figures = {"check": name, "difference": difference, "limit": limit}
                records.append(record(machine, "parity", argv, **figures))
                write(machine, records)
    parts.check()
    if bad := [figures["check"] for figures in records if not figures["difference"] <= figures["limit"]]:
        raise UserError(f"{len(bad)} of {len(records)} checks are beyond their limit: {', '.join(bad)}")


def parts_of(machine: Machine) -> dict[str, Iterator[Check]]:
    parts = {
        f"golden, {dtype}, {attention}": golden(machine, dtype, attention)
        for dtype in (torch.float32, torch.bfloat16)
        for attention in attentions(machine, dtype)
    }
    parts |= {"compiled": compiled(machine), "fast paths": fast_paths(machine)}
    return parts | ({"quantised": quantised(machine)} if machine.device == "cuda" else {})


# The official code's outputs


def golden(machine: Machine, dtype: torch.dtype, attention: str) -> Iterator[Check]:
    meta = json.loads((GOLDEN / "meta.json").read_text())
    outputs = load_file(GOLDEN / "outputs.safetensors", device=machine.device)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(GOLDEN / "config.json", folder)
        shutil.copy(GOLDEN / "weights.safetensors", Path(folder, "model.safetensors"))
        model = MoondreamForConditionalGeneration.from_pretrained(folder).to(machine.device).eval()
        processor = MoondreamProcessor.from_pretrained(folder)
    model.set_attn_implementation(attention)

    def logits_difference() -> float:
        worst = 0.0
        for name in PICTURES:
            ids = meta["images"][name]["query_prompt_ids"]
            inputs = processor(images=[Image.open(GOLDEN / f"{name}.png")], prompt_ids=[ids]).to(machine.device)
            with torch.no_grad():
                logits = model.to(dtype)(**inputs).logits[0, meta["prefix_len"] :].float()
            worst = max(worst, float((logits - outputs[f"{name}.query.prompt_logits"]).abs().max()))
        return worst

    def wrong_ids() -> int:
        wrong = 0
        for name in PICTURES:
            expected = meta["images"][name]
            inputs = processor(
                images=[Image.open(GOLDEN / f"{name}.png")], prompt_ids=[expected["query_prompt_ids"]]
            ).to(machine.device)
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            wrong += ids.tolist() != expected["query_greedy_ids"]
        return wrong

    if dtype == torch.bfloat16:
        # The golden logits are of the order of 3; bfloat16 keeps eight bits.
        yield f"golden logits, bfloat16, {attention}", logits_difference(), 1e-1
        return
    yield f"golden logits, float32, {attention}", logits_difference(), 1e-3
    if attention != "flex_attention":  # which recompiles for each length
        yield f"golden greedy ids, float32, {attention}: wrong sequences", float(wrong_ids()), 0.0


def attentions(machine: Machine, dtype: torch.dtype) -> list[str]:
    if machine.device == "cpu":
        return ["eager", "sdpa"]
    flash = dtype == torch.bfloat16 and is_flash_attn_2_available()
    return ["eager", "sdpa", "flex_attention", *["flash_attention_2"] * flash]


# Our own fast paths


def compiled(machine: Machine) -> Iterator[Check]:
    vlm = tiny_vlm()
    vlm.model.to(machine.device)
    inputs = vlm.processor(images=[noise(24), noise(12)], text=["a", "b?"]).to(machine.device)
    with torch.no_grad():
        expected = vlm.model(**inputs).logits
        for block in vlm.model.model.text.blocks:
            block.compile(fullgraph=True, backend="inductor" if machine.device == "cuda" else "aot_eager")
        yield "compiled layers, float32", float((vlm.model(**inputs).logits - expected).abs().max()), 1e-4


def fast_paths(machine: Machine) -> Iterator[Check]:
    vlm = tiny_vlm()
    vlm.model.to(machine.device).eval()
    images = [noise(24, seed=1), noise(12, seed=2)]
    asks = [[Ask("Is it?", ("Yes.", "No.")), Ask("Which one?", ("A", "the other one"))]] * 2
    scored = Engine(vlm).score(images, asks)
    worst = max(
        abs(candidate.logprob - score_plain(vlm, image, ask.question, answer).logprob)
        for image, some, per_image in zip(images, asks, scored, strict=True)
        for ask, candidates in zip(some, per_image, strict=True)
        for answer, candidate in zip(ask.candidates, candidates, strict=True)
    )
    yield "engine's log-probabilities, float32", worst, 1e-4
    prompts = [[vlm.question_ids("a"), vlm.question_ids("bb?")]] * 2
    answers = Engine(vlm).continue_prompts(images, prompts, 8)
    plain = [[generate_plain(vlm, i, p, 8) for p in some] for i, some in zip(images, prompts, strict=True)]
    wrong = sum(a != b for one, two in zip(answers, plain, strict=True) for a, b in zip(one, two, strict=True))
    yield "engine's greedy answers: wrong", float(wrong), 0.0

    asked = [Question("yes_no", "Is it?", "Yes."), Question("yes_no", "Is it real?", "No.")]
    units = [[Example(stored(image), asked, "real")] for image in images]
    packed, unpacked = (losses(vlm, units, pack=pack) for pack in (True, False))
    yield "packed loss, float32", abs(packed[0] - unpacked[0]), 1e-4
    yield "packed gradients, float32", float((packed[1] - unpacked[1]).abs().max()), 1e-4
    cached = losses(vlm, units, pack=True, cached=True)
    yield "loss on cached features, float32", abs(cached[0] - packed[0]), 1e-4


def losses(vlm: Any, units: list[list[Example]], *, pack: bool, cached: bool = False) -> tuple[float, torch.Tensor]:
    """The loss and its gradient at the last layer's attention."""
    batch = Collator(vlm, pack=pack)(units)
    moved: dict[str, Any] = {
        name: value.to(vlm.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
    moved["prepared"] = {
        name: value if name == "tilings" else value.to(vlm.device) for name, value in batch["prepared"].items()
    }
    if cached:
        with torch.no_grad():
            moved["read"] = vlm.read(moved.pop("prepared"))
    vlm.model.zero_grad()
    loss = answer_loss(vlm, vlm.model, moved)
    loss.backward()
    return float(loss.detach()), vlm.model.model.text.blocks[-1].attn.qkv.weight.grad.clone()


def stored(image: Image.Image) -> StoredImage:
    with tempfile.SpooledTemporaryFile() as buffer:
        image.save(buffer, "PNG")
        buffer.seek(0)
        return StoredImage(buffer.read())


def quantised(machine: Machine) -> Iterator[Check]:
    """NF4 runs, and its logits stay near: the share of their spread that is lost."""
    from training import quantise

    vlm = tiny_vlm()
    vlm.model.to(machine.device, torch.bfloat16).eval()
    inputs = vlm.processor(images=[noise(24)], text=["Is it?"]).to(machine.device)
    with torch.no_grad():
        expected = vlm.model(**inputs).logits.float()
        quantise(vlm)
        lost = (vlm.model(**inputs).logits.float() - expected).std() / expected.std()
    yield "NF4, lost share of the logits' spread", float(lost), 0.5


if __name__ == "__main__":
    run_main(main)
