"""Optional dependencies: asked for by the step that needs them, with the command that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from vlm_detect.errors import UserError


def require(extra: str, *modules: str) -> None:
    """`UserError` where one of `modules` is not installed; `extra` is the extra of pyproject.toml that brings it."""
    if missing := [module for module in modules if find_spec(module) is None]:
        raise UserError(f"{', '.join(missing)} not installed; run: pip install 'vlm-detect[{extra}]'")
