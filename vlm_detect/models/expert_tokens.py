"""Expert tokens: what a CNN sees of an image, as N learned tokens behind the image prefix of a language model.

    vlm = attach(vlm, TokenExpert.load("runs/cnn", n_tokens=4, dropout=0.2))      # then `add_lora` trains the projector
    vlm = attach_saved(vlm, "runs/moondream_lora")                                # before its adapter is loaded

    [BOS][image ... image][expert 1 ... expert N][question][answer]

The means over places of the CNN's last feature maps (C,) become N tokens of the language model's width by a projector,
which is trained with the LoRA and saved in its adapter; `expert_tokens.json` names the CNN, which is not trained.

What attends to what: an expert token sees the image prefix and the expert tokens before it, and what follows sees all
of them. The prefix sees none of them, even where it is bidirectional (moondream): its positions and its KV cache are
those of the model without tokens. Positions of a question begin N later.

A CNN is surest of the images that it was trained on, and a projector trained on the same images learns to believe it.
So the tokens come from maps before the CNN's dense layers, not from its verdict; features are dropped at random, and
for some images all of them, so that the language model keeps learning from its own tower.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from vlm_detect.config import file_sha256, write_json
from vlm_detect.errors import UserError
from vlm_detect.models.base import VLM
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.experts import WEIGHTS, load_expert
from vlm_detect.models.cnn.model import CnnForDetection
from vlm_detect.models.cnn.squares import squares_of
from vlm_detect.models.generic.llava import LlavaVLM
from vlm_detect.models.moondream.family import MoondreamVLM
from vlm_detect.models.parts import EXPERT_TOKENS
from vlm_detect.models.rows import CAUSAL
from vlm_detect.models.tinyllava.family import TinyLlavaVLM
from vlm_detect.schema import check_schema, with_schema

FILE = "expert_tokens.json"
_MOST_TOKENS = 1024  # that are believed of a file; the flag allows fewer


@dataclass(frozen=True)
class Source:
    """What the projector of a run was trained on: a CNN's run, the sha256 of its weights, and the number of tokens."""

    path: str
    sha256: str
    n_tokens: int
    dropout: float = 0.0

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / FILE, with_schema("expert_tokens", asdict(self)))

    @classmethod
    def load(cls, folder: str | Path) -> Source | None:
        """That of a run directory or checkpoint; None where it has no expert tokens."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            check_schema("expert_tokens", record, path)
            found = cls(
                str(record["path"]), str(record["sha256"]), int(record["n_tokens"]), float(record.get("dropout", 0))
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} does not describe expert tokens ({error}): restore it from a copy") from error
        if not (1 <= found.n_tokens <= _MOST_TOKENS and 0 <= found.dropout < 1):
            raise UserError(
                f"{path}: {found.n_tokens} tokens and a dropout of {found.dropout:g}; possible are 1 to {_MOST_TOKENS} "
                "tokens and a dropout from 0 to below 1: restore it from a copy"
            )
        return found


@dataclass(frozen=True)
class TokenExpert:
    """The CNN behind expert tokens; `network` is None in worker processes, which only prepare its pixels."""

    source: Source
    config: CnnConfig
    network: CnnForDetection | None

    @classmethod
    def load(cls, run: str | Path, *, n_tokens: int, dropout: float, device: torch.device | str = "cpu") -> TokenExpert:
        """`UserError` where the run is no CNN's, or one that was trained for another task."""
        expert = load_expert(run, device)
        source = Source(expert.path, expert.sha256, n_tokens, dropout)
        return cls(source, expert.detector.config, expert.detector.model)

    @classmethod
    def load_saved(cls, folder: str | Path, source: Source, device: torch.device) -> TokenExpert:
        """The CNN that `folder` names; `UserError` where it is missing, or has changed since."""
        weights = Path(source.path) / WEIGHTS
        if not weights.is_file():
            raise UserError(
                f"{Path(folder) / FILE} names the CNN {source.path}, which is missing: put it back, or correct `path` "
                "in that file"
            )
        if file_sha256(weights) != source.sha256:
            raise UserError(
                f"{weights} is not the CNN that the expert tokens of {folder} were trained on: its checksum differs "
                f"from {FILE}; put that one back, or train again"
            )
        return cls.load(source.path, n_tokens=source.n_tokens, dropout=source.dropout, device=device)

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(B, 3, S, S) uint8: each image's square, as in the CNN's training."""
        squares = squares_of(images, self.config.image_size, self.config.fit)
        return torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The mean of each of the last feature maps, (B, C) float32, computed without autocast."""
        assert self.network is not None
        device = self.network.device
        with torch.autocast(device.type, enabled=False):
            maps_bchw = self.network.trunk.maps(self.network.prepare(pixels.to(device)))
        return maps_bchw.float().mean((-2, -1))


class Projector(nn.Module):
    """Features (B, C) to tokens (B, N, D).

    At first every token is `start` (D,), whatever the features are. In training each token drops features of its own,
    and some images have tokens that say nothing; `dropout` is the fraction of both.
    """

    def __init__(self, n_features: int, n_tokens: int, start: torch.Tensor, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_features, elementwise_affine=False)
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.zeros(n_tokens, n_features, len(start)))
        self.bias = nn.Parameter(start.detach().clone().float().repeat(n_tokens, 1))

    def forward(self, features_bc: torch.Tensor) -> torch.Tensor:
        normed_bnc = self.norm(features_bc)[:, None].expand(-1, len(self.weight), -1)
        if self.training:
            says_something = torch.rand(len(normed_bnc), 1, 1, device=normed_bnc.device) >= self.dropout.p
            normed_bnc = normed_bnc * says_something
        return torch.einsum("bnc,ncd->bnd", self.dropout(normed_bnc), self.weight) + self.bias


class WithExpertTokens(VLM):
    """Mixed into a family with a fixed prefix: its prefix is followed by the tokens of `expert`."""

    expert: TokenExpert
    trained_whole = (EXPERT_TOKENS,)

    @property
    def n_tokens(self) -> int:
        return self.expert.source.n_tokens

    def prepare(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        return {**super().prepare(images), "expert_pixels": self.expert.pixels(images)}  # type: ignore[safe-super]

    def collate(self, prepared: Sequence[Any]) -> Any:
        pixels = torch.cat([image["expert_pixels"] for image in prepared])
        return {**super().collate(prepared), "expert_pixels": pixels}

    def encode(self, prepared: dict[str, Any]) -> torch.Tensor:
        return self.join(self.read(prepared))

    def read(self, prepared: dict[str, Any]) -> dict[str, torch.Tensor]:
        pixels = prepared["expert_pixels"]
        rest = {name: part for name, part in prepared.items() if name != "expert_pixels"}
        embeds = super().encode(rest)  # type: ignore[safe-super]
        return {"image_embeds": embeds, "expert_features": self.expert.features(pixels)}

    def join(self, read: Mapping[str, torch.Tensor]) -> torch.Tensor:
        image_embeds = read["image_embeds"]
        projector: Any = getattr(self.model, EXPERT_TOKENS)  # which peft passes on from the model that it wraps
        tokens = projector(read["expert_features"].to(image_embeds.device))
        return torch.cat([image_embeds, tokens.to(image_embeds.dtype)], dim=1)

    @property
    def read_by(self) -> dict[str, str]:
        return {"expert": self.expert.source.sha256}

    def prefix_ids(self) -> list[int]:
        image = super().prefix_ids()  # type: ignore[safe-super]
        return [*image, *image[-1:] * self.n_tokens]

    def two_way_blocks(self, prefix: Sequence[int]) -> list[int]:
        image, tokens = prefix[: -self.n_tokens], prefix[-self.n_tokens :]
        return [*super().two_way_blocks(image), *[CAUSAL] * len(tokens)]

    def without_weights(self) -> VLM:
        reader: Any = super().without_weights()
        reader.expert = replace(self.expert, network=None)
        return reader

    def save_extra(self, folder: str | Path) -> None:
        self.expert.source.save(folder)


class MoondreamWithExpert(WithExpertTokens, MoondreamVLM):
    """moondream with expert tokens."""


class LlavaWithExpert(WithExpertTokens, LlavaVLM):
    """LLaVA with expert tokens."""


class TinyLlavaWithExpert(WithExpertTokens, TinyLlavaVLM):
    """TinyLLaVA with expert tokens."""


_FAMILIES: dict[type[VLM], type[WithExpertTokens]] = {
    MoondreamVLM: MoondreamWithExpert,
    LlavaVLM: LlavaWithExpert,
    TinyLlavaVLM: TinyLlavaWithExpert,
}


def attach(vlm: VLM, expert: TokenExpert) -> WithExpertTokens:
    """The model with expert tokens and a new projector; `UserError` for a family without them."""
    if (family := _FAMILIES.get(type(vlm))) is None:
        raise UserError(
            f"--expert_tokens: {vlm.name} cannot have them; models of moondream's and LLaVA's families can, without "
            "tokens of another expert"
        )
    start = vlm.model.get_input_embeddings().weight[vlm.eos_token_id]
    blank = torch.zeros(1, 3, expert.config.image_size, expert.config.image_size, dtype=torch.uint8)
    n_features = expert.features(blank).shape[1]
    projector = Projector(n_features, expert.source.n_tokens, start, expert.source.dropout)
    vlm.model.add_module(EXPERT_TOKENS, projector.to(vlm.device))
    made = family(vlm.model, vlm.processor, vlm.name, vlm.revision)
    made.expert = expert
    return made


def attach_saved(vlm: VLM, folder: str | Path) -> VLM:
    """The base model of the run or checkpoint in `folder` with its expert tokens, if it has any.

    The projector's weights are part of the adapter, which is loaded afterwards. `UserError` where the CNN is missing or
    another one.
    """
    source = Source.load(folder)
    return vlm if source is None else attach(vlm, TokenExpert.load_saved(folder, source, vlm.device))
