"""A conversation about one image, in the terminal.

    vlm-detect chat --model runs/moondream_lora photo.jpg                                  # a conversation
    vlm-detect chat --model runs/moondream_lora photo.jpg "Is this image AI-generated?"    # one answer

One answer goes to stdout and nothing else does, so that it can be piped; the verdict above a conversation says whether
it is calibrated.
"""

from __future__ import annotations

import sys

from ..infer.detector import Detector, Verdict


def answer_once(detector: Detector, image: str, question: str) -> None:
    print(detector.ask(image, question))


def converse(detector: Detector, image: str) -> None:
    """Print the verdict, then answer line after line until an empty one or the end of input."""
    verdict = detector(image)
    print(describe(verdict, image))
    interactive = sys.stdin.isatty()
    if interactive:
        print("Ask about the image; an empty line ends.")
    while True:
        try:
            question = input("> " if interactive else "").strip()
        except EOFError:
            return
        if not question:
            return
        print(verdict.ask(question))


def describe(verdict: Verdict, image: str) -> str:
    """One line: the verdict, its probability, and what stands behind it."""
    note = "calibrated on validation images" if verdict.calibrated else "not calibrated"
    return f"{image}: {verdict.label}, p_fake {verdict.p_fake:.2f} ({note}; {verdict.model})"
