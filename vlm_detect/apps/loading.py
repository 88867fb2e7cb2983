"""The model of a verb that judges: looked up, announced and loaded.

detector = load_detector("runs/moondream_lora")
"""

from __future__ import annotations

import sys

from vlm_detect.infer.detector import Detector
from vlm_detect.models.registry import check_reachable, resolve_id


def load_detector(model: str, adapter: str | None = None, expert: str | None = None) -> Detector:
    """The detector, and on stderr that it is being loaded: it takes seconds to minutes in which nothing else is seen.

    A name that leads nowhere is an error before that.
    """
    resolved = resolve_id(model)
    check_reachable(resolved)
    print(f"loading {adapter or resolved.name} ...", file=sys.stderr, flush=True)
    return Detector(resolved.name, adapter=adapter, expert=expert)
