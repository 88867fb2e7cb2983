"""Read the flags of transformers' TrainingArguments from their source, as importing them takes seconds.

For `--help` only. Parsing imports the class itself, so that the accepted flags never depend on this file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlm_detect.flags import Flag

_GROUP = "transformers' TrainingArguments"


def trainer_flags() -> Iterator[Flag]:
    """Name, default and help of each field; empty where transformers is not installed or has another layout."""
    found = find_spec("transformers")
    for folder in found.submodule_search_locations or [] if found else []:
        tree = ast.parse((Path(folder) / "training_args.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments":
                yield from filter(None, map(_flag, node.body))


def _flag(statement: ast.stmt) -> Flag | None:
    """The flag of `name: type = field(default=..., metadata={"help": ...})`."""
    if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.value, ast.Call):
        return None
    options = {keyword.arg: _literal(keyword.value) for keyword in statement.value.keywords}
    if options.get("init") is False:
        return None
    name, metadata = ast.unparse(statement.target), options.get("metadata") or {}
    hint = bool if ast.unparse(statement.annotation).startswith("bool") else str
    return Flag(name, hint, options.get("default"), {"help": metadata.get("help", "")}, _GROUP)


def _literal(value: ast.expr) -> Any:
    """The value of a literal, else None."""
    try:
        return ast.literal_eval(value)
    except ValueError:
        return None
