"""vlm-detect: finetune small vision-language models to detect AI-generated images and to explain the verdicts.

    from vlm_detect import Detector              # verdicts
    import vlm_detect.models                     # our models in transformers' Auto classes

`vlm-detect --help` lists the verbs. Importing this package changes nothing: no environment variable, no logger, no
import hook.
"""

from typing import TYPE_CHECKING, Any

from vlm_detect.version import __version__

__all__ = ["Detector", "Verdict", "__version__"]  # the first two come with __getattr__

if TYPE_CHECKING:
    from vlm_detect.infer.detector import Detector as Detector
    from vlm_detect.infer.detector import Verdict as Verdict


def __getattr__(name: str) -> Any:
    # Detector imports torch and transformers; `import vlm_detect` alone stays fast.
    if name in __all__:
        from vlm_detect.infer import detector

        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
