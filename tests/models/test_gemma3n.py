"""Gemma 3n without timm, which its tower needs: one line, before any weights are asked for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import yaml
from transformers import Gemma3nConfig

from vlm_detect.config import find_config
from vlm_detect.extras import asked_for
from vlm_detect.models.generic import loading


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_missing_package_is_named_before_weights_are_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(find_config("gemma3n_e2b").read_text(encoding="utf-8"))

    def download(loader: Any, *args: Any, **options: Any) -> Any:
        raise AssertionError(f"{loader.__name__} was asked for")

    monkeypatch.setattr(loading, "load_untrusted", download)
    decoder = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 32}
    config = Gemma3nConfig(text_config=decoder)
    with pytest.raises(ImportError) as caught:
        loading.load_generic(values["model"], config=config)
    assert str(asked_for(caught.value)).startswith("needs timm")
