"""Optional dependencies: checked by the step that needs them, with the command that installs them in the error."""

from __future__ import annotations

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
