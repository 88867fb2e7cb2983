"""The registry: every architecture by its name, the size it is meant for, and the smallest that it takes.

ARCHITECTURES["flux"].build(config)        # -> Trunk
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlm_detect.models.cnn import backbones, networks
from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.models.cnn.networks import Trunk


@dataclass(frozen=True)
class Architecture:
    """`size` is the side in pixels that it was designed for, `smallest` the least at which its maps are not empty."""

    build: Callable[[CnnConfig], Trunk]
    size: int
    smallest: int
    summary: str
    backbone: bool = False  # a network of transformers: takes --weights


def _small(make: Callable[[int], Trunk]) -> Callable[[CnnConfig], Trunk]:
    return lambda config: make(config.image_size)


def _resnet(config: CnnConfig) -> Trunk:
    return backbones.resnet(config.arch, config.backbone_config or {}, config.stem)


ARCHITECTURES: dict[str, Architecture] = {
    "mai": Architecture(_small(networks.mai), 200, 8, "three convolutions, 40,000-120-30 units at 200 px"),
    "flux": Architecture(_small(networks.flux), 512, 33, "five convolutions of 32 to 512 channels, for large images"),
    "flux_small": Architecture(_small(networks.flux_small), 32, 8, "the same widths for images of 32 px"),
    "fakenet": Architecture(_small(networks.fakenet), 224, 8, "five strided convolutions, 3x3 and 5x5 in turn"),
    "fakenet2": Architecture(_small(networks.fakenet2), 32, 8, "three blocks of convolution, ReLU, batch norm, pool"),
    "fakenet3": Architecture(_small(networks.fakenet3), 32, 8, "the same, deeper: two convolutions before each pool"),
    "resnet18": Architecture(_resnet, 224, 16, "ResNet-18", backbone=True),
    "resnet50": Architecture(_resnet, 224, 16, "ResNet-50", backbone=True),
    "npr": Architecture(_resnet, 224, 8, "a small ResNet on neighbouring-pixel residuals", backbone=True),
    "frozen": Architecture(
        lambda config: backbones.frozen(config.backbone_config or {}),
        224,
        16,
        "a frozen vision model (SigLIP, DINOv2, DINOv3) with linear heads",
        backbone=True,
    ),
}
