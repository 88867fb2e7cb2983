"""vlm-detect: finetune small vision-language models to tell AI-generated images from real photos, and to say why.

The package holds what two scripts would share. The programs that use it stand in `data_gen/`, `recipes/` and `eval/`;
`vlm-detect --help` lists the verbs that need no clone.
"""

import logging
import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from vlm_detect.models.registration import register_when_loaded

if TYPE_CHECKING:
    from vlm_detect.infer.detector import Detector as Detector
    from vlm_detect.infer.detector import Verdict as Verdict

try:
    __version__ = version("vlm-detect")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"


register_when_loaded()

# Torch's CPU threads wait for each other by spinning, by default long enough that, where anything else runs on the
# machine, they keep the one they wait for off its core. A short spin costs little alone and saves much in company
# (tests/bench/waiting.py). OpenMP reads this when torch is loaded: programs import vlm_detect before torch.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Where peft imports bitsandbytes on some CPUs, it recommends a package on stderr, which is for our own one line.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    # Detector brings torch and transformers with it: `import vlm_detect` alone stays light.
    if name in ("Detector", "Verdict"):
        from vlm_detect.infer import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
