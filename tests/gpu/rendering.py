"""Stable Diffusion 3.5 large at full size with random weights: images/s, MFU and memory, against the plain loop.

    python tests/gpu/rendering.py --out eval/results/gpu/rendering.json       # on a GPU, about six minutes
    python tests/gpu/rendering.py --device cpu --size small --repeats 1       # the same code in seconds

Ways: the shard as data_gen/render.py runs it; the same with the denoiser compiled; turbo's 4 steps without guidance;
VAE twins; the card cut to 24 GB, where the plain loop is diffusers' model offload, which brings the encoders back for
every prompt; and NF4, for its memory. Text encoders are of real size as well; their tokens come from the nano's
tokenizers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    BitsAndBytesConfig,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from measuring import Machine, Parts, matmul_ceiling, peak_gb, record, reset_peak, synchronise, write
from render import Job, Work, flops_of  # tests/bench
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main
from vlm_detect.generate.options import Sampling
from vlm_detect.generate.renderer import Renderer
from vlm_detect.models.nano import nano_path

WAYS = ("shard", "compile", "turbo", "vae", "24gb", "nf4")


@dataclass(frozen=True)
class Rendering(Machine):
    ways: list[str] = field(default_factory=lambda: list(WAYS), metadata={"help": f"Of {', '.join(WAYS)}."})
    images: int = 8
    plain_images: int = 2
    batch: int = 4
    steps: int = 28
    side: int = 1024


def main(argv: list[str]) -> None:
    (machine,) = parse_config([Rendering], argv, doc=__doc__)
    machine.check()
    if machine.size == "small":
        machine = replace(machine, images=2, plain_images=1, batch=2, steps=2, side=64)
    sampling = Sampling(steps=machine.steps, guidance=4.5, max_sequence_length=256 if machine.size == "full" else 16)
    records: list[dict[str, Any]] = []
    ceiling = matmul_ceiling(machine)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = random_pipeline(machine)
        bench = Bench(machine, Path(folder), pipeline, ceiling, argv, records)
        parts = Parts()
        if "shard" in machine.ways:
            with parts.part("shard"):
                bench.run("caption", sampling)
        if "turbo" in machine.ways:
            with parts.part("turbo"):
                bench.run("turbo", replace(sampling, steps=4, guidance=1.0))
        if "vae" in machine.ways:
            with parts.part("vae"):
                bench.run("vae", sampling, kind="vae")
        if "24gb" in machine.ways:
            with parts.part("24gb"):
                bench.run("24gb", replace(sampling, offload="stages"), limit_gb=24)
        if "compile" in machine.ways and machine.device == "cuda":
            with parts.part("compile"):
                bench.run("compile", replace(sampling, compile=True), against_plain=False)
        if "nf4" in machine.ways and machine.device == "cuda":
            with parts.part("nf4"):
                pipeline.transformer = four_bits(pipeline.transformer, Path(folder) / "transformer")
                bench.run("nf4", sampling, against_plain=False)
        parts.check()


class Bench:
    """One pipeline, measured in several ways; each record is written as soon as it is there."""

    def __init__(
        self, machine: Rendering, folder: Path, pipeline: Any, ceiling: float, argv: list[str], records: list[Any]
    ) -> None:
        self.machine, self.folder, self.pipeline, self.ceiling = machine, folder, pipeline, ceiling
        self.argv, self.records = argv, records

    def run(
        self,
        name: str,
        sampling: Sampling,
        *,
        kind: str = "caption",
        limit_gb: float | None = None,
        against_plain: bool = True,
    ) -> None:
        machine = self.machine
        figures: dict[str, Any] = {"bench": "render", "way": name, "steps": sampling.steps, "batch": machine.batch}
        self._limit(limit_gb)
        plain = None
        if against_plain:
            plain = self._plain(sampling, kind, offload=limit_gb is not None)
            figures["plain_images_per_s"] = round(1 / plain, 4)
        renderer = Renderer.from_pipeline(self.pipeline, sampling, machine.device)
        job = Job(self.folder / name, renderer, machine.images, machine.batch, machine.side)
        work = Work(job, kind)
        if name == "compile":
            work()  # minutes of compiling are not the rate
        reset_peak(machine)
        seconds = seconds_once(work, machine) / machine.images
        figures |= {"images_per_s": round(1 / seconds, 4), "peak_gb": peak_gb(machine)}
        if plain:
            figures["ratio"] = round(plain / seconds, 3)
        if kind == "caption" and name != "nf4":
            flops = self._flops(sampling)
            figures |= {
                "pflop_per_image": round(flops / 1e15, 3),
                "mfu_of_ceiling": round(flops / seconds / self.ceiling, 3),
            }
        figures["matmul_tflops"] = round(self.ceiling / 1e12, 1)
        self._limit(None)
        print(figures, flush=True)
        self.records.append(record(machine, "rendering", self.argv, **figures, images=machine.images))
        write(machine, self.records)

    def _plain(self, sampling: Sampling, kind: str, *, offload: bool) -> float:
        """Seconds an image of the plain loop."""
        machine = self.machine
        if offload and machine.device == "cuda":
            self.pipeline.to("cpu")
            self.pipeline.enable_model_cpu_offload()
        else:
            self.pipeline.to(machine.device)
        renderer = Renderer.__new__(Renderer)  # the pipeline as it is: nothing is moved
        renderer.pipeline, renderer.sampling, renderer.device = self.pipeline, sampling, torch.device(machine.device)
        self.pipeline.set_progress_bar_config(disable=True)
        job = Job(
            self.folder / f"plain-{sampling.steps}-{kind}-{offload}", renderer, machine.plain_images, 1, machine.side
        )
        way = job.plain_vae if kind == "vae" else job.plain_loop
        try:
            way(1)
            return seconds_once(way, machine) / machine.plain_images
        finally:
            if offload and machine.device == "cuda":
                self.pipeline.remove_all_hooks()
                self.pipeline.to("cpu")

    def _flops(self, sampling: Sampling) -> float:
        """Of the denoiser for an image, counted on meta tensors."""
        with torch.device("meta"):
            transformer = SD3Transformer2DModel.from_config(self.pipeline.transformer.config)
            latent = self.machine.side // self.pipeline.vae_scale_factor
            tokens = 77 + sampling.max_sequence_length
            config = transformer.config
            inputs = {
                "hidden_states": torch.empty(1, config.in_channels, latent, latent),
                "encoder_hidden_states": torch.empty(1, tokens, config.joint_attention_dim),
                "pooled_projections": torch.empty(1, config.pooled_projection_dim),
                "timestep": torch.empty(1),
            }
        passes = sampling.steps * (2 if sampling.guidance > 1 else 1)
        return float(flops_of(lambda: transformer(**inputs)) * passes)

    def _limit(self, gb: float | None) -> None:
        if self.machine.device == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gb * 1e9 / total) if gb else 1.0)


def seconds_once(work: Callable[[], Any], machine: Machine) -> float:
    """Wall seconds of one call: a minute of the same step over and over needs no median."""
    synchronise(machine)
    started = time.perf_counter()
    work()
    synchronise(machine)
    return time.perf_counter() - started


def random_pipeline(machine: Machine) -> StableDiffusion3Pipeline:
    """SD 3.5 large as its published configs have it, or a small one of the same parts."""
    full = machine.size == "full"
    width, t5_width = (1280, 4096) if full else (32, 64)
    nano = nano_path("sd35")
    torch.manual_seed(0)
    with torch.device(machine.device):
        transformer = SD3Transformer2DModel(
            sample_size=128 if full else 8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=38 if full else 2,
            attention_head_dim=64 if full else 16,
            num_attention_heads=38 if full else 4,
            joint_attention_dim=t5_width,
            caption_projection_dim=2432 if full else 64,
            pooled_projection_dim=768 + width if full else 2 * width,
            pos_embed_max_size=192 if full else 16,
            qk_norm="rms_norm",
        ).to(machine.dtype)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512) if full else (8, 8, 8, 8),
            layers_per_block=2 if full else 1,
            latent_channels=16,
            norm_num_groups=32 if full else 4,
            sample_size=1024 if full else 64,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).to(machine.dtype)
        clip_l = _clip(768 if full else width, 12 if full else 1, "quick_gelu").to(machine.dtype)
        clip_g = _clip(width, 32 if full else 1, "gelu").to(machine.dtype)
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=32128,
                d_model=t5_width,
                d_kv=64 if full else 16,
                d_ff=10240 if full else 64,
                num_layers=24 if full else 1,
                num_heads=64 if full else 4,
                feed_forward_proj="gated-gelu",
            )
        ).to(machine.dtype)
    tokenizer = CLIPTokenizer.from_pretrained(nano / "tokenizer", model_max_length=77)
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=clip_l.eval(),
        tokenizer=tokenizer,
        text_encoder_2=clip_g.eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=t5.eval(),
        tokenizer_3=T5Tokenizer.from_pretrained(nano / "tokenizer_3", model_max_length=256),
    )


def _clip(width: int, layers: int, activation: str) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            hidden_act=activation,
        )
    )


def four_bits(transformer: SD3Transformer2DModel, folder: Path) -> SD3Transformer2DModel:
    """The denoiser in NF4: bitsandbytes quantises what it loads, so it goes over the disk."""
    transformer.save_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=transformer.dtype
    )
    return SD3Transformer2DModel.from_pretrained(folder, quantization_config=quantization, dtype=transformer.dtype)


if __name__ == "__main__":
    run_main(main)
