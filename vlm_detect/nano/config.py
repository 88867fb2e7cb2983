"""Configuration of `recipes/nano_pretrain.py`: one frozen dataclass per stage, each a section of the YAML file.

renderer: {steps: 9000, ...}          # in the YAML
--renderer.steps 9000                 # overrides it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vlm_detect.errors import UsageError

Stage = Literal["vae", "judge", "renderer", "tokenizer", "captioner", "tinyllava"]


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Length, learning rate and optimiser of a stage."""

    steps: int
    batch: int
    lr: float
    warmup: int = field(default=100, metadata={"help": "Steps until the full learning rate."})
    decay: float = field(
        default=0.25, metadata={"help": "Fraction of the run, at its end, in which the learning rate falls to zero."}
    )
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = field(default=1.0, metadata={"help": "Largest norm of the gradient."})
    muon: bool = field(
        default=False,
        metadata={
            "help": "Update the matrices of linear layers by Muon, everything else by AdamW, all at the rate `lr`."
        },
    )
    precision: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "Precision of the layers' computation."}
    )
    ema: float = field(
        default=0.0,
        metadata={
            "help": "Decay of the moving average of the weights that the stage returns; 0 returns the last weights."
        },
    )
    log_every: int = 50
    save_every: int = 500


@dataclass(frozen=True, kw_only=True)
class VaeConfig(Optimisation):
    """The autoencoder: `channels` has one width per resolution: three widths give the factor 4."""

    channels: tuple[int, ...]
    edge_weight: float = 0.5
    kl_weight: float = 0.005


@dataclass(frozen=True, kw_only=True)
class RendererConfig(Optimisation):
    """Sizes of the transformer and the text encoders, and the sampler's defaults that the card states."""

    layers: int = 5
    heads: int = 5
    head_dim: int = 32
    patch_size: int = 2
    clip_width: int = 64
    clip_layers: int = 2
    clip_tokens: int = 16
    t5_layers: int = 1
    t5_tokens: int = 12
    unconditional: float = field(default=0.1, metadata={"help": "Fraction of the samples without a caption."})
    shift: float = field(
        default=1.0,
        metadata={
            "help": "The scheduler's shift of its times towards noise: SD 3 uses 3 at 1024 px, where noise hides less."
        },
    )
    sampling_steps: int = 20
    guidance_scale: float = 3.0


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Optimisation):
    """The judge: width of its first layer, and the number of renders that it classifies."""

    width: int = 32
    renders: int = 1000


@dataclass(frozen=True, kw_only=True)
class TowerConfig(Optimisation):
    """The image tower's warm-up."""

    distillation: float = field(
        default=0.5, metadata={"help": "Weight of the judge's soft labels relative to the label."}
    )
    places: float = field(default=0.0, metadata={"help": "Weight of predicting the judge's features from each patch."})


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig(Optimisation):
    """Sizes of the model, and its training on text."""

    vocabulary: int = 1300
    vision_width: int = 128
    vision_layers: int = 5
    vision_heads: int = 4
    text_width: int = 128
    text_layers: int = 4
    text_heads: int = field(default=2, metadata={"help": "The official code requires heads of 64."})
    questions: int = field(default=2, metadata={"help": "Factual questions per image, in addition to its caption."})
    undecidable: float = field(
        default=0.5, metadata={"help": "Fraction of the images that also get an undecidable question."}
    )
    heads_weight: float = field(
        default=0.5, metadata={"help": "Weight of the tower's class head, which is trained along with the text."}
    )
    enlarged: float = field(
        default=0.1,
        metadata={
            "help": "Fraction of the batches with enlarged photographs, which the processor cuts into several crops."
        },
    )


@dataclass(frozen=True)
class NanoConfig:
    """What to train, from which data, and where to write it."""

    stages: list[Stage] = field(default_factory=list, metadata={"help": "Stages to run, in this order."})
    data: str | None = field(
        default=None,
        metadata={"help": "CIFAKE folder or CIFAR-10 Hub id. Default: $VLM_DETECT_DATA/cifake, else the Hub."},
    )
    output_dir: str = field(default="runs/nano", metadata={"help": "Checkpoints, logs and the exported weights."})
    figures_dir: str | None = field(
        default=None, metadata={"help": "Folder of the measured figures. Default: output_dir."}
    )
    install: bool = field(default=False, metadata={"help": "Copy the exported weights into the package."})
    init: str | None = field(
        default=None,
        metadata={
            "help": "Continue from the exported weights in this folder (with sd35/, moondream/), or `nano` for the "
            "installed ones. Default: random weights."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seeds weights, batches and captions."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ... Default: a GPU where there is one."})
    threads: int | None = field(default=None, metadata={"help": "CPU threads. Default: torch's choice."})
    vae: VaeConfig | None = None
    renderer: RendererConfig | None = None
    judge: JudgeConfig | None = None
    tower: TowerConfig | None = None
    captioner: CaptionerConfig | None = None
    tinyllava: CaptionerConfig | None = None


def section(config: NanoConfig, name: str) -> Any:
    """The settings of a stage; UsageError where no section of the YAML has them."""
    found = getattr(config, name)
    if found is None:
        raise UsageError(f"section {name} is missing: give --config NAME (nano_sd35, ...), or --{name}.steps and so on")
    return found
