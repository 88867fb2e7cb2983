"""Optional dependencies: checked by the step that needs them, with the command that installs them in the error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec

from vlm_detect.errors import UserError


def how_to_install(extra: str) -> str:
    """The command for an extra of pyproject.toml."""
    return f"pip install 'vlm-detect[{extra}]'"


def require(extra: str, *modules: str, wanted_by: str = "") -> None:
    """UserError if one of `modules` of this extra is not installed; `wanted_by` is the flag that needs it."""
    if missing := [module for module in modules if find_spec(module) is None]:
        needed = f"{wanted_by} needs {', '.join(missing)}" if wanted_by else f"{', '.join(missing)} not installed"
        raise UserError(f"{needed}; run: {how_to_install(extra)}")


# How transformers names the packages that a model needs.
_ASKED_FOR = re.compile(r"requires the (\S+) library but|Missing optional dependencies: ([^.]+)\.")
_NEEDS_TOO = {"timm": "torchvision"}


def asked_for(error: BaseException) -> str | None:
    """The packages that an error of transformers asks for, in words; None where it asks for none."""
    packages = list(dict.fromkeys(_packages(str(error))))
    if not packages:
        return None
    return f"needs {' and '.join(packages)}; run: pip install {' '.join(packages)}"


def _packages(message: str) -> Iterator[str]:
    for required, missing in _ASKED_FOR.findall(message):
        for name in (required or missing).lower().split(", "):
            yield name
            if (other := _NEEDS_TOO.get(name)) and find_spec(other) is None:
                yield other
