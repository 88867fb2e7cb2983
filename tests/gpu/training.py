"""LoRA steps of moondream2 and TinyLLaVA: images/s, tokens/s, peak memory, model FLOPs against the matmul ceiling.

    python tests/gpu/training.py --out eval/results/gpu/training.json         # on a GPU, about three minutes
    python tests/gpu/training.py --family tinyllava --out eval/results/gpu/training_tinyllava.json
    python tests/gpu/training.py --short True --out FILE.json                 # the settings of `SHORT` alone
    python tests/gpu/training.py --device cpu --size small --repeats 1        # the same code in seconds

Samples are an image's prefix and a question with its answer in 50 tokens; moondream's make 780 together. The plain loop
compared with it is the upstream finetuning script: one sample a step, the tower in every step, a dense
mask, logits at all positions. Model FLOPs are the arithmetic that a step needs (tests/bench/flops.py); what
checkpointing computes again counts as nothing. Each record names the kernels that took the most time.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from measuring import (
    Machine,
    Parts,
    hottest,
    matmul_ceiling,
    noise,
    peak_gb,
    prepared,
    random_moondream,
    random_tinyllava,
    record,
    reset_peak,
    seconds_of,
    write,
)

from flops import lora_step_flops, siglip_flops, text_flops, tower_flops  # isort: skip  tests/bench, found by measuring

from vlm_detect.config import parse_config
from vlm_detect.errors import UserError, run_main
from vlm_detect.images.stored import StoredImage
from vlm_detect.models.base import VLM
from vlm_detect.records import Question
from vlm_detect.train.collate import Collator
from vlm_detect.train.examples import Example
from vlm_detect.train.lora import add_lora
from vlm_detect.train.loss import answer_loss
from vlm_detect.train.options import LoraOptions

ASKED_TOKENS = 50  # a question with its answer and the template
ANSWER = "Yes."


@dataclass(frozen=True)
class Setting:
    """One way of running the step."""

    crops: int = 10
    cached: bool = False  # embeddings of the frozen tower come from the cache
    questions: int = 1  # an image, packed behind its prefix
    images: int = 8  # a step
    checkpointing: bool = False
    compiled: bool = False
    nf4: bool = False
    plain: bool = False  # the upstream loop: one sample, tower, dense mask, all logits


SETTINGS = [
    Setting(plain=True, images=1),
    *(Setting(crops=crops) for crops in (1, 5, 10)),
    *(Setting(cached=True, questions=questions) for questions in (1, 4, 8)),
    Setting(cached=True, images=32),
    Setting(crops=10, questions=8),
    Setting(cached=True, checkpointing=True),
    Setting(cached=True, compiled=True),
    Setting(cached=True, images=32, compiled=True),
    Setting(cached=True, nf4=True),
]

# The upstream loop, the tower live and cached: what the targets are stated for.
SHORT = [Setting(plain=True, images=1), Setting(), Setting(cached=True, questions=8), Setting(cached=True, images=32)]

SETTINGS_TINYLLAVA = [
    Setting(plain=True, crops=1, images=1),
    Setting(crops=1),
    *(Setting(crops=1, cached=True, questions=questions) for questions in (1, 8)),
]
FAMILIES = {"moondream": (random_moondream, SETTINGS), "tinyllava": (random_tinyllava, SETTINGS_TINYLLAVA)}


@dataclass(frozen=True)
class Training(Machine):
    family: str = field(default="moondream", metadata={"help": f"One of {', '.join(FAMILIES)}."})
    short: bool = field(default=False, metadata={"help": "moondream's four settings that the targets are stated for."})

    def check(self) -> None:
        super().check()
        if self.short and self.family != "moondream":
            raise UserError(f"--short True --family {self.family}: the short settings are moondream's")
        if self.family not in FAMILIES:
            raise UserError(f"--family {self.family}: choose from {', '.join(FAMILIES)}")


def main(argv: list[str]) -> None:
    (machine,) = parse_config([Training], argv, doc=__doc__)
    machine.check()
    ceiling = matmul_ceiling(machine)
    print(f"{machine.name}: matmul {ceiling / 1e12:.1f} TFLOP/s in {machine.dtype}")
    records: list[dict[str, Any]] = []
    plain: dict[str, float] | None = None
    parts = Parts()
    for setting in SHORT if machine.short else FAMILIES[machine.family][1]:
        if machine.device == "cpu" and (setting.compiled or setting.nf4):
            continue  # inductor and bitsandbytes are tested on the CPU elsewhere (tests/models/test_moondream_tuning)
        with parts.part(str(setting)):
            figures = measure(setting, machine, ceiling)
            plain = figures if setting.plain else plain
            if plain:
                figures["images_ratio"] = figures["images_per_s"] / plain["images_per_s"]
                figures["questions_ratio"] = figures["questions_per_s"] / plain["questions_per_s"]
            rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
            about = {"family": machine.family, "setting": vars(setting)}
            records.append(record(machine, "training", argv, **about, **rounded))
            print(f"{setting}\n    { {name: value for name, value in rounded.items() if name != 'hottest'} }")
            write(machine, records)  # after each: what was measured outlives a run that is cut off
    parts.check()


def measure(setting: Setting, machine: Training, ceiling: float) -> dict[str, Any]:
    torch.compiler.reset()  # what was compiled before holds its model
    gc.collect()
    reset_peak(machine)
    vlm: VLM = FAMILIES[machine.family][0](machine)
    if setting.nf4:
        quantise(vlm)
    add_lora(vlm, LoraOptions())
    vlm.model.train()
    if setting.checkpointing:
        vlm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        vlm.model.enable_input_require_grads()
    if setting.compiled:
        for block in vlm.model.get_base_model().model.text.blocks:
            block.compile()
    optimizer = torch.optim.AdamW([p for p in vlm.model.parameters() if p.requires_grad], lr=1e-4)
    step = (plain_step if setting.plain else our_step)(vlm, setting, optimizer)
    seconds = seconds_of(step, machine)
    flops = model_flops(vlm, setting)
    tokens = setting.images * (len(vlm.prefix_ids()) + setting.questions * ASKED_TOKENS)
    return {
        "step_seconds": seconds,
        "images_per_s": setting.images / seconds,
        "questions_per_s": setting.images * setting.questions / seconds,
        "tokens_per_s": tokens / seconds,
        "peak_gb": peak_gb(machine),
        "mfu": flops / seconds / ceiling,
        "step_tflop": flops / 1e12,
        "matmul_tflop_per_s": ceiling / 1e12,
        "hottest": hottest(step, machine),
    }


def our_step(vlm: VLM, setting: Setting, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A step as the trainer makes it, from a collated batch on."""
    asked = [Question("yes_no", filler(vlm), ANSWER)] * setting.questions
    units = [[Example(png(index), asked, "real")] for index in range(setting.images)]
    batch = Collator(vlm, pack=True)(units)
    batch = {name: value.to(vlm.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    batch["prepared"] = prepared(vlm, setting.crops, setting.images)
    if setting.cached:
        with torch.no_grad():
            batch["read"] = vlm.read(batch.pop("prepared"))

    def step() -> None:
        answer_loss(vlm, vlm.model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(vlm: VLM, setting: Setting, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One sample through the model's own forward, which makes a dense mask and logits at every position."""
    prompt, answer = vlm.question_ids(filler(vlm)), vlm.answer_ids(ANSWER)
    ids = torch.tensor([[*vlm.prefix_ids(), *prompt, *answer]], device=vlm.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **prepared(vlm, setting.crops, 1)}
    labels = torch.full_like(ids, -100)
    labels[:, -len(answer) :] = ids[:, -len(answer) :]

    def step() -> None:
        vlm.model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def filler(vlm: VLM) -> str:
    """A question of the length that makes it, with template and answer, `ASKED_TOKENS` tokens."""
    answer, question = len(vlm.answer_ids(ANSWER)), ""
    while len(vlm.question_ids(question)) + answer < ASKED_TOKENS:
        question += "?!"[len(question) % 2]  # a token each
    return question


def png(seed: int) -> StoredImage:
    """A picture for the collator; the step gets noise of the wanted crops in its place."""
    buffer = io.BytesIO()
    noise(8, seed).save(buffer, "PNG")
    return StoredImage(buffer.getvalue())


def quantise(vlm: VLM) -> None:
    """NF4 in place, as a loaded checkpoint would be: every linear layer but the head and the region's."""
    import bitsandbytes as bnb

    for parent in list(vlm.model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                quantised = bnb.nn.Linear4bit(
                    layer.in_features, layer.out_features, compute_dtype=torch.bfloat16, quant_type="nf4"
                )
                quantised.load_state_dict(layer.state_dict())
                setattr(parent, name, quantised.to(layer.weight.device))
    torch.cuda.empty_cache()


def model_flops(vlm: VLM, setting: Setting) -> float:
    """Tower forward, decoder forward and backward through frozen weights, logits at the answers' positions."""
    config = vlm.model.config
    prefix, answer = len(vlm.prefix_ids()), len(vlm.answer_ids(ANSWER))
    tower = tower_flops(config, setting.crops) if vlm.typical_crops > 1 else siglip_flops(config)
    tower = 0.0 if setting.cached else tower
    asked = 2 * text_flops(config, ASKED_TOKENS, prefix + ASKED_TOKENS, answer)
    return setting.images * (tower + lora_step_flops(config, prefix) + setting.questions * asked)


if __name__ == "__main__":
    run_main(main)
