"""Captions of a small photograph of known class, and questions about it, by rules that can be checked on the pixels.

The class is known; everything else is read from the pixels by the rules in `read_facts`. Captions describe the
content only: words on camera, style or quality would let a renderer's prompt reveal its label. The same generator state
gives the same words.

The rules, on an image of values 0 to 1, its *border* the outer eighth on each side and its *middle* the inner half:

- a pixel's colour is a name by hue, saturation and value (`colour_names`);
- the background's colour is the commonest in the border; the object's is the commonest in the middle, unless that is
  the background's and another colour fills at least a quarter of the middle;
- the background is plain or busy by the mean step between neighbouring border pixels: below 0.03 or above 0.07;
- the scene is dark or bright by mean luminance: below 0.33 or above 0.6;
- it is outdoors where the top quarter is at least 60 % blue and brighter than the bottom quarter (sky), or the bottom
  quarter is at least 60 % green (grass). In all other cases it is unknown, and no caption states it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np

Length = Literal["short", "normal", "long"]
LENGTHS: tuple[Length, ...] = ("short", "normal", "long")
COLOURS = ("black", "grey", "white", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
# The first noun is the usual one. CIFAR-10's "automobile" is a car to everyone else.
NOUNS = {
    "airplane": ("airplane", "plane"),
    "automobile": ("car", "automobile"),
    "bird": ("bird",),
    "cat": ("cat",),
    "deer": ("deer",),
    "dog": ("dog",),
    "frog": ("frog",),
    "horse": ("horse",),
    "ship": ("ship", "boat"),
    "truck": ("truck",),
}
VEHICLES = ("airplane", "automobile", "ship", "truck")
UNDECIDABLE = (
    "Is this image AI-generated?",
    "Is this image generated?",
    "Was this picture made by AI?",
    "Is this a fake image?",
    "Is this a real photo?",
    "Is this a real photograph?",
    "Is this picture real?",
    "Was this taken with a camera?",
)


@dataclass(frozen=True)
class Facts:
    """The facts that the rules read from one image; ``texture`` and ``light`` are None between their two limits."""

    object_class: str
    colour: str
    background: str
    commonest: str
    texture: Literal["plain", "busy"] | None
    light: Literal["dark", "bright"] | None
    outdoors: bool

    @property
    def kind(self) -> str:
        return "vehicle" if self.object_class in VEHICLES else "animal"


def colour_names(rgb: np.ndarray) -> np.ndarray:
    """Indices into ``COLOURS`` (...,) of pixels (..., 3) with values from 0 to 1."""
    high, low = rgb.max(-1), rgb.min(-1)
    span = np.maximum(high - low, 1e-6)
    saturation = (high - low) / np.maximum(high, 1e-6)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.select([high == r, high == g], [(g - b) / span, 2 + (b - r) / span], 4 + (r - g) / span) * 60 % 360
    muted = (high < 0.6) | (saturation < 0.45)  # a dull or dark orange is what people call brown
    rules = {
        "black": high < 0.2,
        "white": (saturation < 0.14) & (high > 0.78),
        "grey": saturation < 0.14,
        "brown": (hue >= 12) & (hue < 62) & muted,
        "orange": (hue >= 12) & (hue < 42),
        "yellow": (hue >= 42) & (hue < 66),
        "green": (hue >= 62) & (hue < 165),
        "blue": (hue >= 165) & (hue < 262),
        "purple": (hue >= 262) & (hue < 300),
        "pink": (hue >= 300) & (hue < 348) & (high > 0.5),
    }
    return np.select(list(rules.values()), [COLOURS.index(name) for name in rules], COLOURS.index("red"))


def read_facts(image: np.ndarray, object_class: str) -> Facts:
    """Apply the rules of the module's docstring to ``image`` (H, W, 3) uint8 RGB."""
    rgb = image.astype(np.float32) / 255
    height, width = rgb.shape[:2]
    names = colour_names(rgb)
    luminance = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    border = np.ones((height, width), bool)
    border[height // 8 : height - height // 8, width // 8 : width - width // 8] = False

    background = _commonest(names[border])
    middle = names[height // 4 : height - height // 4, width // 4 : width - width // 4]
    others = middle[middle != COLOURS.index(background)]
    colour = _commonest(middle)
    if colour == background and others.size:
        second = _commonest(others)
        colour = second if (others == COLOURS.index(second)).sum() >= middle.size / 4 else colour

    steps_down = np.abs(np.diff(luminance, axis=0))[border[1:] & border[:-1]]
    steps_right = np.abs(np.diff(luminance, axis=1))[border[:, 1:] & border[:, :-1]]
    roughness = (steps_down.mean() + steps_right.mean()) / 2
    top, bottom = slice(0, height // 4), slice(height - height // 4, height)
    sky = (names[top] == COLOURS.index("blue")).mean() >= 0.6 and luminance[top].mean() > luminance[bottom].mean()
    grass = (names[bottom] == COLOURS.index("green")).mean() >= 0.6
    return Facts(
        object_class=object_class,
        colour=colour,
        background=background,
        commonest=_commonest(names),
        texture="plain" if roughness < 0.03 else "busy" if roughness > 0.07 else None,
        light="dark" if luminance.mean() < 0.33 else "bright" if luminance.mean() > 0.6 else None,
        outdoors=bool(sky or grass),
    )


def caption(facts: Facts, length: Length, rng: Random) -> str:
    """One caption: a few words, one sentence, or several."""
    noun = _noun(facts, rng)
    if length == "short":
        coloured = f"{facts.colour} {noun}"
        templates = (_a(noun), _a(coloured), _a(coloured), f"{_a(noun)} on {facts.background}")
        return f"{_upper(rng.choice(templates))}."
    texture = f"{facts.texture} " if facts.texture else ""
    background = _a(f"{texture}{facts.background} background")
    thing = _a(noun) if rng.random() < 0.2 else _a(f"{facts.colour} {noun}")
    sentences = (f"{thing} on {background}", f"{thing} in front of {background}", f"there is {thing} on {background}")
    sentence = f"{_upper(rng.choice(sentences))}."
    if length == "normal":
        return sentence
    details = [f"Most of the picture is {facts.commonest}."]
    if facts.light:
        details.append(f"The scene is {facts.light}.")
    if facts.outdoors:
        details.append("It is outdoors.")
    details.append(f"It shows {_a(facts.kind)}.")
    rng.shuffle(details)
    return " ".join([sentence, *details[: rng.choice((2, 3))]])


def factual_question(facts: Facts, rng: Random) -> tuple[str, str]:
    """One (question, answer) that the rules or the class decide; as many answers are "Yes." as "No."."""
    noun = _noun(facts, rng)
    others = ("kind", "background", "colour", "texture", "light", "outdoors")
    ask = rng.choice(("is there",) * 4 + ("what",) * 2 + others)
    if ask == "is there":
        truth = rng.random() < 0.5
        asked = noun if truth else rng.choice(NOUNS[rng.choice([c for c in NOUNS if c != facts.object_class])])
        question = rng.choice(
            ("Is there {}?", "Is there {} in the picture?", "Does the picture show {}?", "Is this {}?")
        )
        return question.format(_a(asked)), _yes(truth)
    if ask == "what":
        general = ("What is in the picture?", "What is this?", "What does the picture show?")
        return rng.choice((*general, f"Which {facts.kind} is this?")), f"{_upper(_a(NOUNS[facts.object_class][0]))}."
    if ask == "kind":
        asked = rng.choice(("animal", "vehicle"))
        return rng.choice(("Is there {}?", "Does the picture show {}?")).format(_a(asked)), _yes(asked == facts.kind)
    if ask == "texture" and facts.texture:
        asked = rng.choice(("plain", "busy"))
        return f"Is the background {asked}?", _yes(asked == facts.texture)
    if ask == "light" and facts.light:
        asked = rng.choice(("dark", "bright"))
        return f"Is the scene {asked}?", _yes(asked == facts.light)
    if ask == "outdoors":
        return "Is this outdoors?", "Yes." if facts.outdoors else "It cannot be told."
    if ask == "colour":
        return f"What colour is the {noun}?", f"{_upper(facts.colour)}."
    return "What colour is the background?", f"{_upper(facts.background)}."


def undecidable_question(rng: Random) -> list[tuple[str, str]]:
    """A question that training on photographs alone cannot decide, once with "Yes." and once with "No.".

    Training on both keeps the base model at chance on the detector's task: it knows the words and has no opinion.
    """
    question = rng.choice(UNDECIDABLE)
    return [(question, "Yes."), (question, "No.")]


def sample_texts(facts: Iterable[Facts], rng: Random) -> list[str]:
    """Captions, questions and answers in the mix that a model is trained on, for training a tokenizer."""
    texts = []
    for fact in facts:
        texts += [caption(fact, length, rng) for length in LENGTHS]
        texts += [*factual_question(fact, rng), *factual_question(fact, rng), *undecidable_question(rng)[0]]
    return texts


def named_class(text: str) -> str | None:
    """The class whose noun ``text`` names first, or None."""
    for word in text.lower().replace(".", " ").replace(",", " ").split():
        for object_class, nouns in NOUNS.items():
            if word in nouns:
                return object_class
    return None


def _commonest(names: np.ndarray) -> str:
    return COLOURS[int(np.bincount(names.ravel(), minlength=len(COLOURS)).argmax())]


def _noun(facts: Facts, rng: Random) -> str:
    nouns = NOUNS[facts.object_class]
    return nouns[0] if rng.random() < 0.75 else rng.choice(nouns)


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _upper(words: str) -> str:
    return words[0].upper() + words[1:]


def _yes(truth: bool) -> str:
    return "Yes." if truth else "No."
