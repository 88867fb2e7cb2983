"""A stand-in for teachers and judges that look at real images: the model's name says how it behaves.

    with looking_teacher() as server:
        # --teacher_endpoint {server.url} --teacher good --judge_endpoint {server.url} --judge looks

The good teacher measures photo and twin by ninths and names what differs, where it differs most; each sample misses
some of it and moves the boxes a little. The judge that looks reads the place and the statement, and measures the one
image that it is shown; no one but the teacher is given the labels.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tests.generate.fake_teacher import FakeTeacher
from tests.infer.fake_endpoint import serving
from vlm_detect.places import PLACES, places_in
from vlm_detect.records import ReasonKind

VISIBLE = 1.5  # a teacher names differences of so many steps of a measure
MISSED = 0.15  # the share of differences that one sample misses
MOVED = 0.03  # by how much a sample moves the sides of a box, in parts of the image
HANG_SHARE = REFUSED_SHARE = 0.1  # of images, by their pixels
EVADED_SHARE = 0.2  # of a judge's questions
LIMITED_SHARE = 0.15  # of a teacher's questions, once each


class Look(NamedTuple):
    """A measure of a ninth, what is said where it is low and high, the value between the two, and a nat's step."""

    low: tuple[ReasonKind, str]
    high: tuple[ReasonKind, str]
    middle: float
    step: float


LOOKS = {
    "detail": Look(
        ("texture", "The surface is smeared and lacks fine detail."),
        ("fine_detail", "Single grains and thin lines stand out."),
        25.0,
        4.0,
    ),
    "saturation": Look(("colour", "The colours are pale."), ("colour", "The colours are strong."), 30.0, 8.0),
    "brightness": Look(("light", "It lies in the dark."), ("light", "It lies in bright light."), 105.0, 16.0),
}
INVENTED: tuple[tuple[ReasonKind, str], ...] = (
    ("anatomy", "The hand has six fingers."),
    ("anatomy", "The eyes look in different directions."),
    ("text", "The letters on the sign are garbled."),
    ("geometry", "The railing runs into the wall."),
    ("light", "The shadow falls towards the lamp."),
    ("reflection", "The mirror shows another room."),
    ("background", "The people behind it melt into each other."),
    ("physics", "The chair floats above the floor."),
)


def ninths(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Each measure of an image (height, width, 3) by ninths, row by row: (9,)."""
    values = pixels.astype(float)
    grey = values.mean(axis=2)
    steps = np.abs(np.diff(grey, axis=0, prepend=grey[:1])) + np.abs(np.diff(grey, axis=1, prepend=grey[:, :1]))
    maps = {"detail": steps, "saturation": values.max(axis=2) - values.min(axis=2), "brightness": grey}
    return {
        name: np.array([part.mean() for band in np.array_split(one, 3) for part in np.array_split(band, 3, axis=1)])
        for name, one in maps.items()
    }


@dataclass(frozen=True)
class Shown:
    """A question to a teacher: the images as shown, the number (from 1) of the twin, and the sample's seed."""

    images: list[np.ndarray]
    twin: int
    seed: int

    @property
    def key(self) -> str:
        """The same for both samples, which show the images in both orders."""
        return "".join(sorted(hashlib.sha256(image.tobytes()).hexdigest() for image in self.images))

    @property
    def rng(self) -> random.Random:
        """Of this sample alone."""
        return random.Random(f"{self.seed}:{self.key}")

    def is_among(self, share: float) -> bool:
        return random.Random(f"share:{self.key}").random() < share

    def differences(self) -> list[dict[str, Any]]:
        """What differs visibly between the twin and its photo, said of either, where it differs most."""
        twin, photo = (ninths(self.images[at - 1]) for at in (self.twin, 3 - self.twin))
        found = []
        for name, look in LOOKS.items():
            apart = (twin[name] - photo[name]) / look.step
            at = int(np.abs(apart).argmax())
            if abs(apart[at]) >= VISIBLE:
                words = (look.high, look.low) if apart[at] > 0 else (look.low, look.high)
                for image, (kind, sentence) in zip((self.twin, 3 - self.twin), words, strict=True):
                    found.append({"image": image, "kind": kind, "sentence": sentence, "box": ninth(at)})
        return found


def ninth(at: int) -> list[float]:
    row, column = divmod(at, 3)
    return [column / 3, row / 3, (column + 1) / 3, (row + 1) / 3]


def said(seen: list[dict[str, Any]]) -> str:
    return json.dumps({"seen": seen})


def good(shown: Shown) -> str:
    rng = shown.rng
    return said([{**one, "box": moved(one["box"], rng)} for one in shown.differences() if rng.random() >= MISSED])


def moved(box: list[float], rng: random.Random) -> list[float]:
    return [round(min(1.0, max(0.0, side + rng.uniform(-MOVED, MOVED))), 3) for side in box]


def invented(shown: Shown, rng: random.Random) -> str:
    faults = rng.sample(INVENTED, 2)
    return said(
        [
            {"image": shown.twin, "kind": kind, "sentence": sentence, "box": ninth(rng.randrange(9))}
            for kind, sentence in faults
        ]
    )


def hallucinates(shown: Shown) -> str:
    """The worst case: both samples invent the same."""
    return invented(shown, random.Random(shown.key))


def disagrees(shown: Shown) -> str:
    return invented(shown, shown.rng)


def whole_image(shown: Shown) -> str:
    return said([{**one, "box": [0.0, 0.0, 1.0, 1.0]} for one in shown.differences()])


def contradicts(shown: Shown) -> str:
    claims = ((shown.twin, "This is a real photo."), (3 - shown.twin, "This image was generated by AI."))
    return said([{"image": at, "kind": "light", "sentence": text, "box": None} for at, text in claims])


def swaps(shown: Shown) -> str:
    return said([{**one, "image": 3 - one["image"]} for one in shown.differences()])


def compares(shown: Shown) -> str:
    return said(
        [{**one, "sentence": f"Unlike in the other image, {one['sentence'].lower()}"} for one in shown.differences()]
    )


def no_json(shown: Shown) -> str:
    return "I am sorry, I cannot tell which of these two images was generated."


def sees_nothing(shown: Shown) -> str:
    return said([])


def mixed(shown: Shown) -> str:
    """Half of the images by the good one, the others by one of the rest."""
    if shown.is_among(0.5):
        return good(shown)
    rest = (hallucinates, disagrees, whole_image, contradicts, no_json, sees_nothing)
    return random.Random(f"mixed:{shown.key}").choice(rest)(shown)


TEACHERS: dict[str, Callable[[Shown], str]] = {
    **{
        one.__name__: one
        for one in (
            good, hallucinates, disagrees, whole_image, contradicts, swaps, compares, no_json, sees_nothing, mixed
        )
    },
    "hangs": good, "refuses": good, "limited": good,
}  # fmt: skip


def looks(pixels: np.ndarray, question: str) -> float:
    """Measures what it is asked about, at the place that it is asked about; even where it has no measure for it."""
    for name, look in LOOKS.items():
        for sign, (_, sentence) in ((-1, look.low), (1, look.high)):
            if sentence in question:
                values = ninths(pixels)[name]
                places = places_in(question.partition("Is this true")[0])
                value = values[PLACES.index(places[0])] if places else values.mean()
                return float(np.clip(sign * (value - look.middle) / look.step, -6, 6))
    return 0.0


def agrees(pixels: np.ndarray, question: str) -> float:
    return 3.0


def wavers(pixels: np.ndarray, question: str) -> float:
    """As the one that looks, and a normal deviate of a nat by image and question."""
    rng = random.Random(hashlib.sha256(pixels.tobytes() + question.encode()).hexdigest())
    return looks(pixels, question) + rng.gauss(0, 1)


def prejudiced(pixels: np.ndarray, question: str) -> float:
    """Believes anything of a smooth image, and nothing of a sharp one."""
    look = LOOKS["detail"]
    return float(np.clip((look.middle - ninths(pixels)["detail"].mean()) / look.step, -6, 6))


def evades(pixels: np.ndarray, question: str) -> float | None:
    """As the one that looks, but for some images, of which it says neither yes nor no."""
    rng = random.Random(hashlib.sha256(pixels.tobytes() + question.encode()).hexdigest())
    return None if rng.random() < EVADED_SHARE else looks(pixels, question)


JUDGES: dict[str, Callable[[np.ndarray, str], float | None]] = {
    **{one.__name__: one for one in (looks, agrees, wavers, prejudiced, evades)},
    "words": looks,  # gives no log-probabilities
}


def judge_named(model: str) -> Callable[[np.ndarray, str], float | None]:
    """A teacher that measures judges by measuring; the others believe themselves."""
    return JUDGES.get(model) or (looks if TEACHERS[model] is good else agrees)


class LookingTeacher(FakeTeacher):
    """`hang_s`: how long the teacher "hangs" takes for some images. From `gone_after` questions on all are refused."""

    hang_s = 30.0
    gone_after: int | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: set[str] = set()

    def refusal(self, request: dict[str, Any], key: str) -> tuple[int, str] | None:
        model, content = request["model"], json.dumps(request["messages"])
        with self.lock:
            self.requests.append(request)
            number, is_new = len(self.requests), content not in self.seen
            self.seen.add(content)
        if model not in TEACHERS and model not in JUDGES:
            return 404, "no such model"
        if self.gone_after is not None and number > self.gone_after:
            return 429, "the quota is used up"
        if model == "limited" and is_new and random.Random(content).random() < LIMITED_SHARE:
            return 429, "too many requests"
        if model == "refuses" and self.is_question(request) and self.shown(request).is_among(REFUSED_SHARE):
            return 400, "the content filter was triggered"
        return None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        model, text = request["model"], request["messages"][0]["content"][-1]["text"]
        if self.is_question(request):
            shown = self.shown(request)
            if model == "hangs" and shown.is_among(HANG_SHARE):
                time.sleep(self.hang_s)
            return self.completion(TEACHERS[model](shown))
        odds = judge_named(model)(self.pictures(request)[0], text)
        found = self.completion("I cannot tell." if odds is None else "Yes" if odds > 0 else "No")
        if request.get("logprobs") and model != "words":
            top = [("I", -0.1)]
            if odds is not None:
                top = [("Yes", -math.log1p(math.exp(-odds))), ("No", -math.log1p(math.exp(odds)))]
            entries = [{"token": token, "logprob": value, "bytes": None} for token, value in top]
            found["choices"][0]["logprobs"] = {"content": [{**entries[0], "top_logprobs": entries}]}
        return found

    def shown(self, request: dict[str, Any]) -> Shown:
        text = request["messages"][0]["content"][-1]["text"]
        return Shown(self.pictures(request), 2 if text.startswith("Image 1 is a photo") else 1, request.get("seed", 0))


@contextmanager
def looking_teacher() -> Iterator[LookingTeacher]:
    with serving(LookingTeacher()) as server:
        yield server
