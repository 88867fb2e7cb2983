"""Load untrusted models without running their code.

    config = load_untrusted(AutoConfig, "owner/name", revision=...)
    model = build_untrusted(AutoModel, config)

A model folder can refer to its own Python files (`auto_map` in the configuration of the model, tokenizer, processor, or
a part), and transformers then asks on the terminal whether to run them: a `y` from a pipe suffices. Here there is no
prompt: what transformers has a class for is loaded with that class, and everything else is rejected. Every
`from_pretrained` and `from_config` of the package goes through this file (tests/models/test_untrusted.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import dynamic_module_utils

from vlm_detect.errors import UserError

_NEVER = {"trust_remote_code": False}  # overrides the caller


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
            f"{name} needs Python code from its repository, which is never run here: use a model that transformers "
            "(of a pipeline, diffusers) has a class for"
        ) from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
