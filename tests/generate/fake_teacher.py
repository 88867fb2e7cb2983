"""A stand-in for a teacher and a judge behind an endpoint: what it says of a pair follows from the pair's number.

The number is the blue of a photo's first pixel, and of its twin's. Twins have a red square, photos a green one; the
judge answers yes to a sentence that names a colour which is there.
"""

from __future__ import annotations

import base64
import io
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from tests.infer.fake_endpoint import FakeEndpoint, serving

SIDE = 48
BOX = [0.5, 0.0, 0.75, 0.25]  # of the square
RED, GREEN = (250, 0), (0, 250)  # red and green of the squares

Seen = list[dict[str, Any]]


def picture(number: int, *, twin: bool) -> Image.Image:
    pixels = np.full((SIDE, SIDE, 3), 60, np.uint8)
    pixels[..., 2] = number
    left, top, right, bottom = (round(part * SIDE) for part in BOX)
    pixels[top:bottom, left:right, :2] = RED if twin else GREEN
    return Image.fromarray(pixels)


def of_twin(at: int, sentence: str = "A red square floats at the top", kind: str = "physics", box: Any = BOX) -> dict:
    return {"image": at, "kind": kind, "sentence": sentence, "box": box}


def say(seen: Any) -> str:
    return json.dumps({"seen": seen})


# number: what is said, given the twin's place (1 or 2) and whether it is the first draw
SAYINGS: dict[int, Callable[[int, bool], str]] = {
    0: lambda twin, _: say([of_twin(twin)]),
    1: lambda twin, first: say([of_twin(twin, kind="physics" if first else "light")]),
    2: lambda twin, _: "I am sorry, I cannot help with that.",
    3: lambda twin, _: say([]),
    4: lambda twin, _: say([of_twin(twin, "It is a real photo of a red square")]),
    5: lambda twin, _: say([of_twin(twin, box=[0.0, 0.0, 0.9, 0.9])]),
    6: lambda twin, _: say([of_twin(twin, "A grey wall is behind it all")]),  # true of both
    7: lambda twin, _: say([of_twin(twin, kind="magic")]),
    8: lambda twin, _: say([of_twin(twin, "Unlike in the other image, the square is red")]),
    9: lambda twin, _: f"Here is what I see:\n```json\n{say([of_twin(twin, box=None)])}\n```\nI hope this helps.",
    10: lambda twin, first: say([of_twin(twin), of_twin(3 - twin, "A green square lies on the wall", "light", None)]),
    11: lambda twin, first: say([of_twin(twin, box=BOX if first else [0.0, 0.7, 0.2, 1.0])]),
    12: lambda twin, _: say([of_twin(twin, "A yellow square floats at the top")]),  # true of neither
    13: lambda twin, _: say([of_twin(7)]),
    14: lambda twin, _: say([of_twin(twin, "Red")]),
    15: lambda twin, _: say([of_twin(twin, box=[0.9, 0.2, 0.1, 0.3])]),
    16: lambda twin, _: json.dumps({"differences": []}),
    17: lambda twin, first: say([of_twin(twin)]) if first else say([]),
    18: lambda twin, _: "<refuse>",
    19: lambda twin, _: "<hang>",
}
# What comes of each pair's twin: "" for a reason that is kept.
OUTCOMES = {
    0: "", 1: "draws_differ", 2: "no_json", 3: "sees_nothing", 4: "contradicts_label", 5: "box_too_large",
    6: "not_denied", 7: "unknown_kind", 8: "names_another_image", 9: "", 10: "", 11: "draws_differ", 12: "not_denied",
    13: "no_such_image", 14: "no_sentence", 15: "no_box", 16: "another_json", 17: "draws_differ", 18: "refused",
    19: "timed_out",
}  # fmt: skip


class FakeTeacher(FakeEndpoint):
    """`hang_s` is how long it takes to answer about pair 19."""

    hang_s = 6.0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no news."""

    def refusal(self, request: dict[str, Any], key: str) -> tuple[int, str] | None:
        found = super().refusal(request, key)
        if found is None and self.is_question(request) and self.number(request) == 18:
            return 400, "the content filter was triggered"
        return found

    @staticmethod
    def is_question(request: dict[str, Any]) -> bool:
        """Whether it is put to the teacher; else to the judge, or a test of what the endpoint takes."""
        return "Answer with JSON" in request["messages"][0]["content"][-1]["text"]

    @staticmethod
    def pictures(request: dict[str, Any]) -> list[np.ndarray]:
        parts = [part["image_url"]["url"] for part in request["messages"][0]["content"][:-1]]
        opened = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in parts]
        return [np.asarray(image.convert("RGB")) for image in opened]

    def number(self, request: dict[str, Any]) -> int:
        return int(self.pictures(request)[0][0, 0, 2])

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        text = request["messages"][0]["content"][-1]["text"]
        if self.is_question(request):
            return self.completion(self.said(request, text))
        yes = any(self.shows(self.pictures(request)[0], word) for word in ("red", "green", "grey") if word in text)
        return self.completion("Yes" if yes else "No", request)

    def said(self, request: dict[str, Any], text: str) -> str:
        shown, number = self.pictures(request), self.number(request)
        if number == 19:
            time.sleep(self.hang_s)
        twin = 1 + [self.shows(one, "red") for one in shown].index(True) if self.has_red(shown) else 1
        # The labels are given with the images, in the order in which they are shown.
        if len(shown) == 2:
            assert text.startswith("Image 1 is a photo") == (twin == 2)
        first = twin == 2 if len(shown) == 2 else text.startswith("Image 1 is")
        return SAYINGS[number](twin, first)

    @classmethod
    def has_red(cls, shown: list[np.ndarray]) -> bool:
        return any(cls.shows(one, "red") for one in shown)

    @staticmethod
    def shows(pixels: np.ndarray, colour: str) -> bool:
        if colour == "grey":
            return True
        wanted = RED if colour == "red" else GREEN
        return bool((pixels[..., :2] == wanted).all(axis=2).any())

    def completion(self, said: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice["message"] = {"role": "assistant", "content": said}
        if self.logprobs and request and request.get("logprobs"):
            rest = "No" if said == "Yes" else "Yes"
            top = [(said, math.log(0.9)), (rest, math.log(0.1))]
            entries = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
            choice["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
        return {"id": "1", "object": "chat.completion", "created": 0, "model": "fake-vlm", "choices": [choice]}


@contextmanager
def fake_teacher(**options: Any) -> Iterator[FakeTeacher]:
    with serving(FakeTeacher(**options)) as server:
        yield server
