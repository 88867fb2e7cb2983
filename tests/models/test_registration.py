"""`import vlm_detect.models` puts our models into transformers' Auto classes, whatever is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
from transformers import AutoConfig, AutoModelForImageTextToText
from vlm_detect.models.nano import nano_path

for name, family in (("moondream", "Moondream"), ("tinyllava", "TinyLlava")):
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(nano_path(name)))
    assert type(model).__name__ == family + "ForConditionalGeneration", type(model)
"""


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(imports, marks=() if number == 0 else pytest.mark.slow)
        for number, imports in enumerate(
            (
                "from diffusers import StableDiffusion3Pipeline; import vlm_detect.models",
                "import vlm_detect.models; from diffusers import StableDiffusion3Pipeline",
                "from transformers import AutoModelForImageTextToText; import vlm_detect.models",
                "import vlm_detect.models.nano",
            )
        )
    ],
)
def test_either_order_of_imports(imports: str) -> None:
    # A process of its own: in this one everything is imported already.
    run = subprocess.run([sys.executable, "-c", imports + CHECK], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
