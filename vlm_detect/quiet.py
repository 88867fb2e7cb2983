"""Turn warnings and progress bars of libraries off for a while and restore them.

    with quiet("diffusers"): ...                 # errors only, and no bars
    with no_bars("transformers"): ...            # warnings stay
    @quiet("transformers", "diffusers")          # during each call
    def render(...): ...

The libraries keep these settings per process, and a program that uses this package has its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

Library = Literal["transformers", "diffusers", "datasets"]


@contextmanager
def quiet(*libraries: Library) -> Iterator[None]:
    """No progress bars, and no messages except errors."""
    with ExitStack() as stack:
        stack.enter_context(no_bars(*libraries))
        for library in libraries:
            logging = _logging_of(library)
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity_error()
        yield


@contextmanager
def no_bars(*libraries: Library) -> Iterator[None]:
    """No progress bars."""
    with ExitStack() as stack:
        for library in libraries:
            shown, disable, enable = _bars_of(library)
            if shown:
                disable()
                stack.callback(enable)
        yield


@contextmanager
def no_bars_in_logs(*libraries: Library) -> Iterator[None]:
    """No progress bars if stderr is no terminal."""
    with no_bars(*(() if sys.stderr.isatty() else libraries)):
        yield


def _logging_of(library: Library) -> Any:
    return importlib.import_module(f"{library}.utils.logging")


def _bars_of(library: Library) -> tuple[bool, Callable[[], None], Callable[[], None]]:
    """Whether bars are shown, and the functions that turn them off and on."""
    if library == "datasets":
        import datasets

        return not datasets.are_progress_bars_disabled(), datasets.disable_progress_bars, datasets.enable_progress_bars
    logging = _logging_of(library)
    if library == "diffusers":
        return logging.is_progress_bar_enabled(), logging.disable_progress_bar, logging.enable_progress_bar
    # transformers turns the Hub client's bars off and on along with its own.
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

    hub_shown = not are_progress_bars_disabled()

    def enable() -> None:
        logging.enable_progress_bar()
        if not hub_shown:
            disable_progress_bars()

    return logging.is_progress_bar_enabled(), logging.disable_progress_bar, enable
