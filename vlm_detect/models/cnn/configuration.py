"""What a saved network has to say of itself to be built again: `config.json` of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedConfig

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CnnConfig(PreTrainedConfig):
    """The network, what it is shown, and what its heads name.

    Attributes:
        arch: a name of `architectures.ARCHITECTURES`.
        image_size: side of the square that it reads, in pixels.
        fit: how an image becomes that square: "crop" (its middle, no pixel recomputed) or "resize".
        view: see `views.py`.
        saturation: of the inverted view.
        heads: {head: class names}; "verdict" decides, "object" is the class of what is seen.
        task: the question that "verdict" answers, of `tasks.TASKS`.
        stem: of a ResNet, see `backbones.STEMS`.
        backbone_config: of a network of transformers; empty for the architecture's own.
        tune: "all", or "head" for features that stay as they were.
        mean: of each channel, for pixels in [0, 1].
        std: the same.
    """

    model_type = "vlm_detect_cnn"

    arch: str = "fakenet2"
    image_size: int = 32
    fit: Literal["crop", "resize"] = "crop"
    view: str = "plain"
    saturation: float = 8.0
    heads: dict[str, list[str]] | None = None
    task: str = "real_fake"
    stem: str = "imagenet"
    backbone_config: dict[str, Any] | None = None
    tune: str = "all"
    mean: list[float] | tuple[float, ...] = HALF
    std: list[float] | tuple[float, ...] = HALF


def is_cnn_run(path: str | Path) -> bool:
    """Whether a folder holds a trained CNN, read from its config.json alone."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return False
    found, _ = CnnConfig.get_config_dict(str(path))
    return found.get("model_type") == CnnConfig.model_type
