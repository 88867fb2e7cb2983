"""The nano family: models of a few megabytes with exactly the real architectures, for trial runs, teaching and tests.

``nano_path("moondream")`` and its siblings are folders that the real models' ``from_pretrained`` loads.
"""

from pathlib import Path
from typing import Literal, get_args

from vlm_detect._moved import add_aliases
from vlm_detect.errors import UserError

NanoName = Literal["moondream", "sd35", "tinyllava"]


def nano_path(name: str) -> Path:
    """The folder of one nano model's weights inside the package."""
    if name not in get_args(NanoName):
        raise UserError(f"nano model {name!r}: unknown; choose from {', '.join(get_args(NanoName))}")
    path = Path(__file__).parent / name
    if not path.is_dir():
        raise UserError(f"nano model {name!r}: no weights in {path}; make them with recipes/nano_pretrain.py")
    return path


add_aliases(__name__)

__all__ = ["NanoName", "nano_path"]
