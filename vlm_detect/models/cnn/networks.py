"""The small networks, as their authors describe them: maps of features, then a neck that the heads sit on.

Each is a `Trunk`; what stands last in the papers (one output, the verdict) is a head of `model.CnnForDetection`, so
that any network takes any task.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from vlm_detect.models.cnn.architectures import architecture
from vlm_detect.models.cnn.configuration import CnnConfig


class Trunk(nn.Module):
    """`maps` turns pixels (B, 3, H, W) into features in their places (B, C, h, w), `neck` those into (B, width).

    Heat maps are taken between the two.
    """

    def __init__(self, maps: nn.Module, neck: nn.Module, width: int) -> None:
        super().__init__()
        self.maps, self.neck, self.width = maps, neck, width

    def forward(self, pixels: Tensor) -> Tensor:
        return self.neck(self.maps(pixels))


def pooled(neck: nn.Module | None = None) -> nn.Module:
    """The mean over places, and what follows it: (B, C, h, w) -> (B, C') ."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *([neck] if neck else []))


@architecture("mai", size=200, smallest=8, summary="three convolutions, 40,000-120-30 units at 200 px")
def mai(config: CnnConfig) -> Trunk:
    """Three blocks of 16, 32 and 64 channels, then 120 and 30 units; at 200 pixels 40,000 numbers reach the first."""
    blocks: list[nn.Module] = []
    for before, after in pairwise([3, 16, 32, 64]):
        blocks += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
    places = (config.image_size // 8) ** 2
    neck = nn.Sequential(nn.Flatten(), nn.Linear(64 * places, 120), nn.ReLU(), nn.Linear(120, 30), nn.ReLU())
    return Trunk(nn.Sequential(*blocks), neck, 30)


@architecture("flux", size=512, smallest=33, summary="five convolutions of 32 to 512 channels, for large images")
def flux(config: CnnConfig) -> Trunk:
    """Five convolutions of 32 to 512 channels, the first of stride 2 and padding 3, then 1024 and 256 units."""
    maps = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(256, 512, 3, padding=1), nn.ReLU()),
    )
    return Trunk(maps, pooled(_flux_neck()), 256)


@architecture("flux_small", size=32, smallest=8, summary="the same widths for images of 32 px")
def flux_small(config: CnnConfig) -> Trunk:
    """The same five widths and the same neck for images of 32 pixels: nothing is strided away before it was looked at.

    All kernels are 3x3, a pool follows each of the first three, and batch norms let it learn in a few epochs.
    """
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise([3, 32, 64, 128, 256, 512])):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        if place < 3:
            layers.append(nn.MaxPool2d(2))
    return Trunk(nn.Sequential(*layers), pooled(_flux_neck()), 256)


@architecture("fakenet", size=224, smallest=8, summary="five strided convolutions, 3x3 and 5x5 in turn")
def fakenet(config: CnnConfig) -> Trunk:
    """Five strided convolutions, 3x3 and 5x5 in turn, then 128 units."""
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise([3, 64, 128, 256, 256, 256])):
        kernel = 5 if place % 2 else 3
        layers += [nn.Conv2d(before, after, kernel, stride=2, padding=kernel // 2), nn.ReLU()]
    return Trunk(nn.Sequential(*layers), pooled(_fakenet_neck()), 128)


@architecture("fakenet2", size=32, smallest=8, summary="three blocks of convolution, ReLU, batch norm, pool")
def fakenet2(config: CnnConfig) -> Trunk:
    """Three blocks of convolution, ReLU, batch norm and pool, of 64, 128 and 256 channels, then 128 units."""
    layers: list[nn.Module] = []
    for before, after in pairwise([3, 64, 128, 256]):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(after), nn.MaxPool2d(2)]
    return Trunk(nn.Sequential(*layers), pooled(_fakenet_neck()), 128)


@architecture("fakenet3", size=32, smallest=8, summary="the same, deeper: two convolutions before each pool")
def fakenet3(config: CnnConfig) -> Trunk:
    """A deeper fakenet2: two 3x3 convolutions each of 64, 128 and 256 channels before each pool."""
    layers: list[nn.Module] = []
    before = 3
    for channels in (64, 128, 256):
        for _ in range(2):
            layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return Trunk(nn.Sequential(*layers), pooled(_fakenet_neck()), 128)


def _flux_neck() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(512, 1024), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(1024, 256), nn.ReLU(), nn.Dropout(0.5)),
    )


def _fakenet_neck() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.5))
