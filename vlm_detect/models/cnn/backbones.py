"""The larger networks, all of them transformers' own: ResNets, the residual ResNet, and any vision model by its id.

A ResNet's stem is chosen for the images' size (`STEMS`); a vision model keeps its weights and gives the mean of its
patch tokens, on which a linear head is trained.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, ResNetConfig, ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from vlm_detect.errors import UserError, first_line
from vlm_detect.models.cnn.architectures import architecture
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.networks import Trunk, pooled
from vlm_detect.models.untrusted import build_untrusted, load_untrusted

# stride of the 3x3 stem without a pool; None: ImageNet's 7x7 of stride 2 with a pool behind it
STEMS: dict[str, int | None] = {"imagenet": None, "small": 1, "small_stride2": 2}
RESNETS = {
    "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet50": {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
    "npr": {"depths": [2, 2], "hidden_sizes": [64, 128], "layer_type": "basic"},
}


class ResNetMaps(nn.Module):
    """The last feature maps of a ResNet; with `residual`, of each pixel's difference from its 2x2 block's first."""

    def __init__(self, config: ResNetConfig, stem: str, *, residual: bool = False) -> None:
        super().__init__()
        self.resnet = ResNetModel(config)
        self.residual = residual
        if (stride := STEMS[stem]) is not None:
            self.resnet.embedder.embedder = ResNetConvLayer(3, config.embedding_size, kernel_size=3, stride=stride)
            self.resnet.embedder.pooler = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        if self.residual:
            pixels = neighbour_residual(pixels)
        return self.resnet(pixels).last_hidden_state


def neighbour_residual(pixels: Tensor) -> Tensor:
    """Each pixel less the first of its 2x2 block, times 2/3; a last odd row or column is cut off.

    Upsampling inside a generator leaves its mark in these differences (NPR, arXiv 2312.10461).
    """
    even = pixels[..., : pixels.shape[-2] // 2 * 2, : pixels.shape[-1] // 2 * 2]
    first = even[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)
    return (even - first) * (2 / 3)


@architecture("npr", size=224, smallest=8, summary="a small ResNet on neighbouring-pixel residuals", backbone=True)
@architecture("resnet50", size=224, smallest=16, summary="ResNet-50", backbone=True)
@architecture("resnet18", size=224, smallest=16, summary="ResNet-18", backbone=True)
def resnet(config: CnnConfig) -> Trunk:
    """The configuration's `backbone_config` is that of transformers' ResNet; where it is empty, the architecture's."""
    made = ResNetConfig(**(config.backbone_config or {"embedding_size": 64, **RESNETS[config.arch]}))
    return Trunk(ResNetMaps(made, config.stem, residual=config.arch == "npr"), pooled(), made.hidden_sizes[-1])


# These interpolate their position embeddings to another image size only on request.
_INTERPOLATE_ON_REQUEST = ("siglip_vision_model", "clip_vision_model", "vit")


class PatchTokens(nn.Module):
    """A vision transformer's patch tokens in their places: (B, D, h, w). Class and register tokens are left out."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        made = AutoConfig.for_model(**config)
        self.backbone = build_untrusted(AutoModel, made)
        self.patch: int = made.patch_size
        self.options = {"interpolate_pos_encoding": True} if made.model_type in _INTERPOLATE_ON_REQUEST else {}

    def forward(self, pixels: Tensor) -> Tensor:
        tokens_bnd = self.backbone(pixel_values=pixels, **self.options).last_hidden_state
        height, width = (side // self.patch for side in pixels.shape[-2:])
        patches = tokens_bnd[:, -height * width :]
        return patches.transpose(1, 2).unflatten(2, (height, width))


@architecture(
    "frozen",
    size=224,
    smallest=16,
    summary="a frozen vision model (SigLIP, DINOv2, DINOv3) with linear heads",
    backbone=True,
)
def frozen(config: CnnConfig) -> Trunk:
    backbone = config.backbone_config or {}
    return Trunk(PatchTokens(backbone), pooled(), backbone["hidden_size"])


def backbone_config(id_: str) -> dict[str, Any]:
    """The configuration of the vision model `id_` (a folder or Hub id); of a two-tower model, of its vision tower."""
    try:
        config = load_untrusted(AutoConfig, id_)
    except (OSError, ValueError) as error:
        raise UserError(f"--weights {id_}: not a model of transformers ({first_line(error)})") from error
    vision = config.to_dict().get("vision_config")
    return dict(vision) if vision else config.to_dict()
