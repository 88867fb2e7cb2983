"""The training loop of all stages of the nano family: resumable, with a moving average of the weights.

``train`` takes all of its randomness from a generator seeded by (seed, step), so a resumed run sees exactly the batches
that an uninterrupted one would have seen. The learning rate warms up, stays constant and falls linearly to zero over
the last part of the run; the constant part does not depend on the end, so ``steps`` may change when a run is resumed.
It supports one process and one device, which suffices for models of this size.

Two options speed up training. ``precision: bfloat16`` computes under autocast with float32 weights. ``muon: true``
updates the matrices by Muon (torch.optim.Muon, which orthogonalises each update), which learns more from every sample
than AdamW does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vlm_detect.nano.config import Optimisation


def learning_rate(step: int, recipe: Optimisation) -> float:
    """Warm up, stay constant, then fall linearly to zero at ``recipe.steps``."""
    rise = (step + 1) / max(1, recipe.warmup)
    fall = (recipe.steps - step) / max(1.0, recipe.decay * recipe.steps)
    return recipe.lr * min(1.0, rise, fall)


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[torch.Generator], dict[str, Tensor]],
    recipe: Optimisation,
    *,
    folder: Path,
    seed: int,
) -> dict[str, float]:
    """Train ``model`` to ``recipe.steps`` and leave the averaged weights in it; returns the figures for its card.

    Args:
        name: names the checkpoint ``folder/name.pt`` and the log ``folder/name.jsonl``.
        loss_of: given the step's generator (on the CPU), samples a batch, moves it to the model's device and returns
            ``{"loss": ..., other: ...}``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.pt"
    optimizers = _optimizers(model, recipe)
    weights = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in weights]
    step, samples, seconds = 0, 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=weights[0].device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average, step, samples, seconds = (state[key] for key in ("average", "step", "samples", "seconds"))
        print(f"{name}: resumed at step {step} of {recipe.steps}", flush=True)

    def save() -> None:
        state = {"model": model.state_dict(), "average": average}
        state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        torch.save(state | {"step": step, "samples": samples, "seconds": seconds}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)  # a killed run never leaves an incomplete checkpoint

    model.train()
    sums: dict[str, Tensor] = {}
    since, steps_since = time.perf_counter(), 0
    while step < recipe.steps:
        with _computing_in(recipe.precision, weights[0].device):
            losses = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step))
        model.zero_grad()
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(weights, recipe.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            optimizer.step()
        step, steps_since, samples = step + 1, steps_since + 1, samples + recipe.batch
        # early on, the average has to forget the random start faster than `ema` alone allows
        decay = min(recipe.ema, step / (step + 10))
        get_ema_multi_avg_fn(decay)(average, [p.detach() for p in weights], step)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0) + value.detach()  # read only when logged, so that no step waits for the GPU
        if step % recipe.log_every == 0 or step == recipe.steps:
            now = time.perf_counter()
            seconds, rate = seconds + now - since, steps_since / (now - since)
            means = {key: value.item() / steps_since for key, value in sums.items()}
            _log(folder / f"{name}.jsonl", name, step, recipe, means, rate)
            sums, since, steps_since = {}, now, 0
        if step % recipe.save_every == 0 or step == recipe.steps:
            save()
    for weight, averaged in zip(weights, average, strict=True):
        weight.data.copy_(averaged)
    model.eval()
    return {"steps": step, "samples": samples, "seconds": round(seconds)}


@contextmanager
def _computing_in(precision: str, device: torch.device) -> Iterator[None]:
    if precision == "float32":
        yield
        return
    # fused attention is slow in bfloat16 on CPUs
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16), attention:
        yield


def _optimizers(model: nn.Module, recipe: Optimisation) -> list[torch.optim.Optimizer]:
    """AdamW without decay of biases and gains of norms, preceded by Muon if the recipe uses it."""
    by_muon = set()
    if recipe.muon:  # a vocabulary has too many rows, most of them too rarely used, to be orthogonalised
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        by_muon = {id(linear.weight) for name, linear in linears.items() if not name.endswith("lm_head")}
    weights = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in weights if id(p) in by_muon]
    others = [p for p in weights if id(p) not in by_muon]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:  # "match_rms_adamw" scales each update so that AdamW's learning rate and decay fit
        decay = recipe.weight_decay
        optimizers.append(torch.optim.Muon(matrices, recipe.lr, decay, adjust_lr_fn="match_rms_adamw"))
    return [*optimizers, torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)]


def _log(path: Path, name: str, step: int, recipe: Optimisation, means: dict[str, float], rate: float) -> None:
    left_min = (recipe.steps - step) / rate / 60
    record: dict[str, Any] = {"step": step, **{k: round(v, 5) for k, v in means.items()}}
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record | {"samples_per_s": round(rate * recipe.batch, 1)}) + "\n")
    losses = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
    print(
        f"{name} {step}/{recipe.steps}  {losses}  {rate * recipe.batch:.0f} samples/s  {left_min:.1f} min left",
        flush=True,
    )
