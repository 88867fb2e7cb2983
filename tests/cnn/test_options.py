"""The words that the flags list are those that the code knows; the flags are read without importing it."""

from __future__ import annotations

from typing import get_args

from vlm_detect.cnn.batches import AUGMENTATIONS
from vlm_detect.cnn.options import CnnDataOptions, NetworkOptions, Task
from vlm_detect.cnn.tasks import TASKS
from vlm_detect.flags import flags_of
from vlm_detect.models.cnn.architectures import ARCHITECTURES
from vlm_detect.models.cnn.backbones import STEMS
from vlm_detect.models.cnn.squares import Fit
from vlm_detect.models.cnn.views import View


def test_the_flags_list_all_choices():
    network = {flag.name: flag for flag in flags_of(NetworkOptions)}
    data = {flag.name: flag for flag in flags_of(CnnDataOptions)}
    words = network["arch"].metadata["help"].replace(":", ",").replace("or ", "").split(", ")
    assert words[: len(ARCHITECTURES)] == list(ARCHITECTURES)
    assert network["stem"].choices == list(STEMS)
    assert network["fit"].choices == list(get_args(Fit))
    assert network["view"].choices == list(get_args(View))
    assert data["augment"].choices == list(AUGMENTATIONS)
    assert list(get_args(Task)) == list(TASKS)
