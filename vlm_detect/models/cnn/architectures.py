"""The registry of CNNs: constructor, intended image size, and smallest image size.

@architecture("tiny", size=32, smallest=8, summary="two convolutions")
def tiny(config: CnnConfig) -> Trunk: ...

ARCHITECTURES["flux"].build(config)        # -> Trunk
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_detect.models.cnn.configuration import CnnConfig
from vlm_detect.plugins import Registry

if TYPE_CHECKING:
    from vlm_detect.models.cnn.networks import Trunk

Build = Callable[[CnnConfig], "Trunk"]


@dataclass(frozen=True)
class Architecture:
    """A way to build a network.

    Args:
        size: the intended side in pixels.
        smallest: the smallest side with non-empty feature maps.
        summary: what it is, in a few words.
        backbone: a network of transformers, which accepts --weights.
    """

    build: Build
    size: int
    smallest: int
    summary: str
    backbone: bool = False


ARCHITECTURES: Registry[Architecture] = Registry(
    "cnn", ["vlm_detect.models.cnn.networks", "vlm_detect.models.cnn.backbones"]
)


def architecture(
    name: str, *, size: int, smallest: int, summary: str, backbone: bool = False
) -> Callable[[Build], Build]:
    """Register a function that builds a network; the arguments are those of `Architecture`."""

    def register(build: Build) -> Build:
        made = Architecture(build, size, smallest, summary, backbone)
        ARCHITECTURES.add(name, made, build)
        return build

    return register
