"""The libraries' verbosity and bars are as they were found, after each use of ours and after an error."""

from __future__ import annotations

import datasets
import diffusers
import pytest
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from tests.test_layers import PACKAGE
from tests.train.toys import save_toy_pairs
from vlm_detect.data.pairs import open_dataset
from vlm_detect.models.registry import load_vlm
from vlm_detect.quiet import no_bars, no_bars_in_logs, quiet

LOGGING = {"transformers": transformers.utils.logging, "diffusers": diffusers.utils.logging}


def state() -> dict[str, object]:
    found: dict[str, object] = {"datasets": datasets.are_progress_bars_disabled(), "hub": are_progress_bars_disabled()}
    for name, logging in LOGGING.items():
        found[name] = logging.get_verbosity(), logging.is_progress_bar_enabled()
    return found


@pytest.fixture(params=["shown", "hidden"])
def before(request):
    """With bars and the default verbosity, and as a program that wants neither leaves the libraries."""
    first = state()
    if request.param == "hidden":
        for logging in LOGGING.values():
            logging.disable_progress_bar()
            logging.set_verbosity(50)
        datasets.disable_progress_bars()
    yield state()
    if request.param == "hidden":
        for name, logging in LOGGING.items():
            logging.enable_progress_bar()
            logging.set_verbosity(first[name][0])
        datasets.enable_progress_bars()


@pytest.mark.parametrize("library", LOGGING)
def test_only_errors_are_logged_inside_and_settings_are_restored_afterwards(library, before):
    with quiet(library):
        assert LOGGING[library].get_verbosity() == 40
        assert not LOGGING[library].is_progress_bar_enabled()
    assert state() == before
    with pytest.raises(ZeroDivisionError), quiet(library):
        raise ZeroDivisionError
    assert state() == before


def test_as_a_decorator_each_call_is_quiet(before):
    @quiet("transformers")
    def verbosity() -> int:
        return LOGGING["transformers"].get_verbosity()

    assert (verbosity(), verbosity()) == (40, 40)
    assert state() == before


def test_the_hubs_progress_bars_stay_off_if_they_were_off():
    disable_progress_bars()
    try:
        with no_bars("transformers"):
            pass
        assert are_progress_bars_disabled()
    finally:
        enable_progress_bars()


def test_progress_bars_are_not_written_to_logs(monkeypatch, before):
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        with no_bars_in_logs("datasets", "transformers"):
            hidden = datasets.are_progress_bars_disabled(), not LOGGING["transformers"].is_progress_bar_enabled()
            assert terminal or hidden == (True, True)
        assert state() == before


def test_loading_a_model_and_a_dataset_restores_all_settings(before, tmp_path):
    save_toy_pairs(tmp_path / "pairs", n_train=2, n_validation=2)
    made = state()  # pyarrow's writer is the test's own
    load_vlm("nano", device="cpu")
    open_dataset(tmp_path / "pairs")
    assert state() == made == before


def test_no_other_file_changes_settings_of_libraries():
    changes = ("set_verbosity", "disable_progress_bar", "enable_progress_bar")
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "quiet.py"]
    assert not [path for path in files if any(change in path.read_text(encoding="utf-8") for change in changes)]
