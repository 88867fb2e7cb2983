"""Peak GPU memory of every sized config in each of its phases, simulated at full size: eval/results/memory.json.

    python tests/bench/memory.py                                  # all configs, minutes on a CPU
    python tests/bench/memory.py --configs moondream_qlora_8gb 24gb

The project's own code runs on fake tensors, which have shapes, dtypes and storages but no content: tower, prefill,
packed scoring, decoding, the answer loss with its backward pass, Stable Diffusion's denoiser, autoencoder and text
encoders. Counted are the bytes of all storages that are alive, in blocks of 512 as CUDA's allocator has them. This is
independent of `vlm_detect.train.memory` and `vlm_detect.infer.batch_size`, which estimate; tests hold those against it.

What a GPU does and a CPU does not is put in its place: fused attention, which keeps no scores; layer norms that
autocast computes in float32; NF4 weights, unpacked for each use. What a layer adds is always the same: language models
and the large denoiser are simulated with `FEW` and with `MORE` layers and extended linearly to all of them, the frozen
towers of moondream and TinyLLaVA with two (`--all_layers true` simulates every layer, which takes several times as
long). Not counted: CUDA's context, kernels' workspaces and fragmentation, for which 1 GB has to be left. Every image
has the most crops that a megapixel gives, every row one question of each kind.
"""

from __future__ import annotations

import contextlib
import gc
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import torch
import yaml
from fake_gpu import Fused, LiveStorages  # tests/bench
from full_size import ALL_LAYERS, LAYERS, build, clip, layers_of, sd3, t5, tower_bytes, vae  # tests/bench
from generic_models import changes_of_models, fake_prepared, fakes, one_prepared  # tests/bench
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel

from vlm_detect.config import CONFIGS, git_commit, parse_config, write_json
from vlm_detect.errors import UserError, run_main
from vlm_detect.infer import batch_size
from vlm_detect.infer.packing import Packed, pad_packed
from vlm_detect.infer.prefixes import decoding_cache, prefill, stack_prefixes
from vlm_detect.models.base import VLM
from vlm_detect.models.continuation import forward
from vlm_detect.models.moondream.modeling import MoondreamModel
from vlm_detect.models.rows import IGNORE, Answered, Row, stack_rows
from vlm_detect.models.tinyllava.family import TinyLlavaVLM
from vlm_detect.train import loss
from vlm_detect.train.lora import add_lora, inputs_left_to_autocast
from vlm_detect.train.options import LoraOptions
from vlm_detect.train.tuning import train_language_model

OUT = Path("eval/results/memory.json")
QUESTIONS = [(24, 4), (44, 4), (130, 4), (24, 60)]  # tokens of a question with its template, and of its answer
CAPTION_TOKENS = 128
PROMPT_TOKENS = 77 + 256  # CLIP's and T5's
FEW, MORE = 3, 6
ENCODED: dict[bool, tuple[float, float]] = {}
SERVED: dict[tuple[str, int], tuple[float, float]] = {}
FREE_BYTES: list[int] = []  # of the simulated card, with the weights on it
KEYS = ("weights", "training", "validation", "captioning", "rendering", "serving")


@dataclass(frozen=True)
class Config:
    configs: list[str] = field(default_factory=list, metadata={"help": "Simulate these alone, and keep the others."})
    all_layers: bool = field(default=False, metadata={"help": "Simulate every layer."})
    out: str = field(default=str(OUT), metadata={"help": "The JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    paths = {path.stem: path for path in [*recipe_configs(), *card_configs()]}
    names = config.configs or list(paths)
    if unknown := [name for name in names if name not in paths]:
        raise UserError(f"--configs {unknown[0]}: there are {', '.join(paths)}")
    if len(names) > 1:
        for name in names:
            in_process_of_its_own(name, config)
        return
    ALL_LAYERS[:] = [config.all_layers]
    gc.freeze()  # each collection then looks at the simulation alone, and not at all imports
    (name,), out = names, Path(config.out)
    peaks = simulate(paths[name])
    print(name, {key: value for key, value in peaks.items() if value is not None}, flush=True)
    about = {"command": "python tests/bench/memory.py", "commit": git_commit(), "device": "fake tensors"}
    found = {row["config"]: row for row in yaml.safe_load(out.read_text())} if out.exists() else {}
    found[name] = {"config": name, "card_gb": card_gb(name), **peaks, **about}
    write_json(out, [found[name] for name in paths if name in found])


def in_process_of_its_own(name: str, config: Config) -> None:
    """Simulate one config: what torch keeps of several simulations' fake tensors can end the process in a crash."""
    flags = ["--configs", name, "--all_layers", str(config.all_layers), "--out", config.out]
    ended = subprocess.run([sys.executable, __file__, *flags], check=False).returncode
    if ended:
        raise UserError(f"{name}: the simulation ended with status {ended}, the configs before it are written")


def recipe_configs() -> list[Path]:
    return sorted((CONFIGS / "recipes").glob("*_*gb.yaml"))


def card_configs() -> list[Path]:
    return sorted((CONFIGS / "generators" / "cards").glob("*gb.yaml"), key=lambda path: card_gb(path.stem))


def card_gb(name: str) -> int:
    return int(name.rpartition("_")[2].removesuffix("gb"))


def simulate(path: Path) -> dict[str, float | None]:
    """GB of each phase; None of one that the config does not have."""
    values = yaml.safe_load(path.read_text())
    with patched(), FakeTensorMode(allow_non_fake_inputs=True), LiveStorages() as live:
        peaks = (
            of_card(values, card_gb(path.stem), live)
            if "generator" in values
            else of_recipe(values, card_gb(path.stem), live)
        )
    return {key: round(peaks[key] / 1e9, 2) if key in peaks else None for key in KEYS}


def of_recipe(values: dict[str, Any], card: int, live: LiveStorages) -> dict[str, float]:
    name = values["model"]
    dtype = torch.float32 if values.get("dtype") == "float32" else torch.bfloat16

    def training(layers: int) -> dict[str, float]:
        gc.collect()
        return train(build(name, dtype, layers, nf4=values.get("quantize") == "nf4"), values, live)

    tower = tower_bytes(name, dtype)
    peaks = {key: size + tower for key, size in extended(training, layers_of(name)).items()}
    peaks["serving"], peaks["captioning"] = served(name, card, live)
    return peaks


def of_card(values: dict[str, Any], card: int, live: LiveStorages) -> dict[str, float]:
    _, captioning = served("vikhyatk/moondream2", card, live)
    weights, rendering = render(values, live)
    return {"weights": weights, "captioning": captioning, "rendering": rendering}


def extended(measure: Callable[[int], dict[str, float]], layers: int) -> dict[str, float]:
    """Bytes of a model of so many layers, from those of two smaller ones."""
    if ALL_LAYERS[0]:
        return measure(layers)
    few, more = measure(FEW), measure(MORE)
    return {key: few[key] + (more[key] - few[key]) * (layers - FEW) / (MORE - FEW) for key in few}


# Phases


def train(vlm: VLM, values: dict[str, Any], live: LiveStorages) -> dict[str, float]:
    """A later micro-step of an accumulated batch: gradients and optimiser states are there. Then a validation."""
    lora = LoraOptions(**{key: value for key, value in values.items() if key in LoraOptions.__dataclass_fields__})
    with contextlib.redirect_stdout(io.StringIO()):
        if values.get("tune") == "full":
            train_language_model(vlm)
        else:
            add_lora(vlm, lora)
    weights = live.now()
    model = vlm.model.train()
    if values.get("gradient_checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.disable_input_require_grads()  # as the trainer does
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    states = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]  # AdamW's
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    live.restart()
    images = 2 * values["per_device_train_batch_size"]
    batch, answers = rows(vlm, images, values["questions_per_image"])
    with inputs_left_to_autocast(model):
        with torch.autocast("cpu", torch.bfloat16):
            embeds = vlm.encode(prepared(vlm, images))
            total = answer_loss(vlm, loss.row_inputs(vlm, embeds, batch), answers)
        del embeds, batch
        total.backward()
    training = live.peak
    del total
    for parameter in trained:
        parameter.grad = None
    model.eval()
    validation = infer(vlm, values.get("per_device_eval_batch_size", 16), live)
    del states
    return {"weights": weights, "training": training, "validation": validation}


def served(name: str, card: int, live: LiveStorages) -> tuple[float, float]:
    """The peaks of verdicts and of captions by a model in bfloat16, of batches that the engine takes on such a card."""
    if (name, card) not in SERVED:
        layers, tower = layers_of(name), tower_bytes(name, torch.bfloat16)

        def weigh(few: int) -> dict[str, float]:
            gc.collect()
            vlm = build(name, torch.bfloat16, few)
            weights = float(live.now())
            del vlm
            return {"weights": weights}

        FREE_BYTES[:] = [int(card * 1e9 - extended(weigh, layers)["weights"] - tower)]

        def infer_both(few: int) -> dict[str, float]:
            gc.collect()
            vlm = build(name, torch.bfloat16, few)
            text = vlm.model.config.get_text_config()
            text.num_hidden_layers = layers  # for the estimate of the real one
            keep = min(2 << 30, batch_size.bytes_to_hold(vlm) or 0)
            scored = max(1, min(16, batch_size.images_that_fit(vlm, reserved=keep) or 1))
            captioned = max(1, min(16, batch_size.images_that_fit(vlm) or 1))
            text.num_hidden_layers = few
            verdicts = infer(vlm, scored, live, keep=keep)
            return {"verdicts": verdicts, "captions": infer(vlm, captioned, live, caption=True)}

        peaks = extended(infer_both, layers)
        SERVED[name, card] = peaks["verdicts"] + tower, peaks["captions"] + tower
    return SERVED[name, card]


def answer_loss(vlm: VLM, inputs: dict[str, Any], answers: int) -> torch.Tensor:
    """As the trainer's, with the number of answer tokens known: fake tensors cannot be counted."""
    hidden = vlm.hidden_states(vlm.model, inputs)
    chosen = hidden[:, :-1].reshape(-1, hidden.shape[-1])[torch.empty(answers, dtype=torch.long)]
    total = hidden.new_zeros((), dtype=torch.float32)
    for some in chosen.split(loss.CHUNK):
        targets = torch.empty(len(some), dtype=torch.long)
        head = vlm.model.get_output_embeddings()
        total = total + checkpoint(loss.cross_entropy, head, some, targets, 0.0, use_reentrant=False)
    return total / answers


@torch.inference_mode()
def infer(vlm: VLM, images: int, live: LiveStorages, *, keep: int = 0, caption: bool = False) -> float:
    """Verdicts or captions of one batch, next to `keep` bytes of earlier prefixes."""
    gc.collect()
    held = torch.empty(keep, dtype=torch.uint8)
    live.restart()
    room = CAPTION_TOKENS + 1 if caption else 0
    prefixes = prefill(vlm, vlm.encode(prepared(vlm, images)), room)
    cache = decoding_cache(prefixes, room) if caption else stack_prefixes(prefixes)
    if caption:
        for tokens in (CAPTION_TOKENS, 1):
            ask(vlm, [[tokens]] * images, cache, None)
    else:
        ask(vlm, [[20, 3, 3, 20, 3, 3]] * images, cache, torch.empty(8, dtype=torch.long)).float().log_softmax(-1)
    del held
    return live.peak


def ask(vlm: VLM, lengths: list[list[int]], cache: Any, logits_at: torch.Tensor | None) -> torch.Tensor:
    packed = []
    for row in lengths:
        packed.append(Packed())
        for length in row:
            packed[-1].add([7] * length)
    with _disable_current_modes():
        parts = pad_packed(packed, cache.get_seq_length(), 0)
    ids, positions, mask = (torch.empty(part.shape, dtype=part.dtype) for part in parts)
    return forward(vlm, ids, positions, mask, cache, logits_at).logits


def render(values: dict[str, Any], live: LiveStorages) -> tuple[float, float]:
    """The most weights that are on the card at once, and the peak."""
    large, batch, side = "large" in values["generator"], values["render_batch"], values.get("render_size", 1024)
    nf4, stages = values.get("quantization") == "nf4", values.get("offload") == "stages"

    def denoise(layers: int) -> dict[str, float]:
        before = live.now()
        denoiser, autoencoder = sd3(layers, large=large, nf4=nf4), vae()
        weights = live.now() - before
        prompts = torch.empty(values.get("shard_size", 64) + 1, PROMPT_TOKENS, 4096, dtype=torch.bfloat16)  # of a shard
        live.restart()
        with torch.inference_mode():
            both = 2 * batch  # with and without the prompt
            latents = torch.empty(both, 16, side // 8, side // 8, dtype=torch.bfloat16)
            text = torch.empty(both, PROMPT_TOKENS, 4096, dtype=torch.bfloat16)
            pooled, steps = torch.empty(both, 2048, dtype=torch.bfloat16), torch.empty(both)
            denoiser(latents, encoder_hidden_states=text, pooled_projections=pooled, timestep=steps, return_dict=False)
            decoded = torch.empty(batch - 1, 3, side, side, dtype=torch.bfloat16)  # decoded one at a time
            torch.cat([decoded, autoencoder.decode(latents[:1], return_dict=False)[0]]).float()
        del prompts
        return {"weights": float(weights), "peak": float(live.peak - before)}

    drawing = extended(denoise, LAYERS["sd3"]) if large else denoise(24)
    of_encoders, encoding = encoded(nf4, live)
    together = 0 if stages else drawing["weights"]  # the encoders leave before the first image
    return max(of_encoders + together, drawing["weights"]), max(encoding + together, drawing["peak"])


def encoded(nf4: bool, live: LiveStorages) -> tuple[float, float]:
    """Weights and peak of the text encoders for one prompt."""
    if nf4 not in ENCODED:
        before = live.now()
        encoders = [clip(768, 12), clip(1280, 32), t5(nf4=nf4)]
        weights = live.now() - before
        live.restart()
        with torch.inference_mode():
            for encoder, length in zip(encoders, (77, 77, 256), strict=True):
                encoder(torch.empty(1, length, dtype=torch.long), output_hidden_states=True)
        ENCODED[nf4] = float(weights), float(live.peak - before)
    return ENCODED[nf4]


# Batches


def prepared(vlm: VLM, images: int) -> Any:
    if not vlm.has_fixed_prefix:
        return fake_prepared(vlm, images)
    if vlm.typical_crops == 1:
        return {"pixel_values": torch.empty(images, 3, 384, 384, dtype=torch.uint8)}
    tilings = [[3, 4]] * images
    return {"pixel_values": torch.empty(images, 13, 3, 378, 378), "tilings": tilings}


def rows(vlm: VLM, images: int, questions: int) -> tuple[dict[str, Any], int]:
    """A batch of one row an image, and the number of its answer tokens."""
    with _disable_current_modes():
        one = None if vlm.has_fixed_prefix else one_prepared(vlm)
        prefix = vlm.prefix_rows([one])[0] if one else vlm.prefix_ids()
    asked = [Answered([7] * q, [9] * a) for q, a in (QUESTIONS * questions)[:questions]]
    made = []
    for image in range(images):
        made.append(Row())
        made[-1].add(image, prefix, asked, vlm.two_way_blocks(prefix))
    with _disable_current_modes():
        batch = stack_rows(made, 0)
        batch["packed"] = True
        host_inputs = vlm.host_inputs([one] * images, batch)
    fake = {**fakes(batch), "host_inputs": fakes(host_inputs)}
    fake["row_images"] = torch.empty(images, dtype=torch.long)
    return fake, sum(label != IGNORE for row in made for label in row.labels)


# What a GPU does and a CPU does not


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """The project's and transformers' code for fake tensors on a CPU that stands for a GPU."""
    plain_norm = nn.functional.layer_norm

    def layer_norm(x: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
        if torch.is_autocast_enabled("cpu"):  # CUDA's autocast has it in float32
            x, weight, bias = x.float(), weight.float(), bias.float()
        return plain_norm(x, shape, weight, bias, eps)

    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
    ) -> tuple[Any, None]:
        return Fused.apply(query, key, value, attention_mask).transpose(1, 2), None

    def embed(self: Any, input_ids: torch.Tensor, image_embeds: Any) -> torch.Tensor:
        if image_embeds is None:
            return self.text.wte(input_ids)
        places = input_ids == self.config.image_token_id
        embeds = self.text.wte(input_ids.masked_fill(places, self.config.bos_token_id))
        return embeds.masked_scatter(places[..., None], image_embeds.to(embeds.dtype))

    def apply(self: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
        for module in self.children():
            module._apply(change)
        for name, parameter in list(self.named_parameters(recurse=False, remove_duplicate=False)):
            changed = change(parameter.detach())
            setattr(self, name, nn.Parameter(changed, requires_grad=parameter.requires_grad))
        for name, buffer in list(self.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(self, name, change(buffer))
        return self

    changes: list[tuple[Any, str, Any]] = [
        (nn.functional, "layer_norm", layer_norm),
        (nn.Module, "_apply", apply),
        (PreTrainedModel, "init_weights", lambda self, *args, **options: None),
        (PreTrainedModel, "initialize_weights", lambda self, *args, **options: None),
        (MoondreamModel, "_embed", embed),
        (TinyLlavaVLM, "prefix_ids", lambda self: [5] * 35 + [self.image_token_id] * 728),
        (TinyLlavaVLM, "eos_token_id", property(lambda self: 0)),
        (batch_size, "free_device_bytes", lambda device: FREE_BYTES[0]),
        *changes_of_models(),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    AttentionInterface.register("sdpa", attention)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


if __name__ == "__main__":
    run_main(main)
