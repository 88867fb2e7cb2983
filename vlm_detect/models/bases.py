"""Find the base model of an adapter, even if it has moved.

    base_of("runs/moondream_lora")      # a Hub id, a name such as nano, or the path of an existing folder

A base that was a folder is never searched on the Hub, where anyone may own the name of a relative path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

from vlm_detect.config import read_run_json
from vlm_detect.errors import UserError

_CONFIGS = ("config.json", "adapter_config.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def recorded_base(name: str, known: Collection[str] = ()) -> str:
    """The base as recorded in an adapter: a folder by its absolute path, which stays valid if the adapter moves."""
    return str(Path(name).resolve()) if name not in known and Path(name).is_dir() else name


def base_of(adapter: str | Path, known: Collection[str] = ()) -> str:
    """The ID of the model that `adapter` was trained on; `known` are names that are neither a folder nor a Hub id.

    A relative path is resolved from the working directory, else from the adapter's parent folders.

    Raises:
        UserError: if no base is recorded, or it was a folder that does not exist.
    """
    try:
        config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{adapter}: adapter_config.json is damaged ({error}): use another checkpoint of the run"
        ) from error
    if not isinstance(base, str) or not base:
        raise UserError(f"{adapter}: adapter_config.json has no base model; {base_remedy(adapter)}")
    if base in known or Path(base).is_dir():
        return base
    places = [Path.cwd(), *Path(adapter).resolve().parents]
    if not Path(base).is_absolute():
        for place in places:
            if (place / base).is_dir():
                return str(place / base)
    is_path = "/" in base or "\\" in base  # a single word is for who knows the names of models
    if is_path and (not _HUB_ID.fullmatch(base) or any((place / base).parent.is_dir() for place in places)):
        raise UserError(
            f"{adapter}: its base model was the folder {base}, which does not exist; {base_remedy(adapter)}"
        )
    return base


def base_remedy(adapter: str | Path) -> str:
    return f"give its new path with --model BASE --adapter {adapter}"


def head_base(folder: str | Path) -> str | None:
    """The model of a folder that holds a head for it and no weights (`vlm-detect fit-head ID`); else None."""
    path = Path(folder)
    if not (path / "head.safetensors").is_file() or any((path / name).is_file() for name in _CONFIGS):
        return None
    record = read_run_json(path)
    return str(record["model"]) if record and record.get("model") else None
