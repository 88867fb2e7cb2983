"""Loading what others wrote, without running any of it.

    config = load_untrusted(AutoConfig, "owner/name", revision=...)
    model = build_untrusted(AutoModel, config)

A model folder can name Python files of its own (`auto_map` in its configuration, its tokenizer's, its processor's, or
in that of a part), and transformers then asks on the terminal whether to run them: a `y` from a pipe does. Here nobody
is asked: what transformers has a class for is loaded by that class, and everything else is refused.
Every `from_pretrained` and `from_config` of the package goes through this file (tests/models/test_untrusted.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import dynamic_module_utils

from vlm_detect.errors import UserError

_NEVER = {"trust_remote_code": False}  # whatever the caller says


def load_untrusted(loader: Any, path_or_id: Any, *args: Any, **options: Any) -> Any:
    """`loader.from_pretrained(path_or_id, ...)`; `UserError` where that needs code of the repository."""
    with no_foreign_code(path_or_id):
        return loader.from_pretrained(path_or_id, *args, **(options | _NEVER))


def build_untrusted(loader: Any, config: Any, **options: Any) -> Any:
    """`loader.from_config(config, ...)`; `UserError` where that needs code of the configuration's repository."""
    with no_foreign_code(getattr(config, "name_or_path", "") or "the configuration"):
        return loader.from_config(config, **(options | _NEVER))


@contextmanager
def no_foreign_code(name: Any) -> Iterator[None]:
    """For constructors that load parts of `name` themselves, and pass no `trust_remote_code` on to them.

    transformers asks for as many seconds as its constant says, and refuses at once where that is 0.
    """
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(
            f"{name} needs Python code of its own repository, which is never run here: give a model that transformers "
            "(of a pipeline, diffusers) has a class for"
        ) from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
