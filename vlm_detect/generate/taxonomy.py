"""Classify a free sentence by keywords: its kind, whether it supports a label, and the reason in a verdict.

    kind_of("The left hand has six fingers.")                                 # "anatomy"
    speaks_for("The left hand has six fingers.", "generated")                 # True; of "A hand holds a cup." False
    reason_in("It is fake because the snake has no head.")                    # "The snake has no head."

Keywords are tried in the order below: a sentence about the shadow of a hand is about light. A sentence without any of
them has no kind and is dropped.
"""

from __future__ import annotations

import re

from vlm_detect.questions.read import parse_explanation
from vlm_detect.records import Label, ReasonKind

_WORDS: dict[ReasonKind, str] = {
    "reflection": r"reflect\w*|mirror\w*",
    "light": r"light(?:ing|s|ed|ened)?|shad(?:ow|ows|ing|ed)|illuminat\w*|highlights?|glare|glow\w*|exposure",
    "text": r"text(?!ur)\w*|letters?|lettering|words?|writing|signs?|signage|symbols?|logos?|captions?|numbers?",
    "anatomy": r"hands?|fingers?|fac(?:e|es|ial)|eyes?|ears?|teeth|mouths?|noses?|limbs?|arms?|legs?|feet|foot|paws?|"
    r"heads?|necks?|hair|skin|bod(?:y|ies)|anatom\w*|tails?|wings?|fur|feathers?|beaks?|proportions?",
    "repetition": r"repeat\w*|repetit\w*|duplicat\w*|copies|identical",
    "texture": r"textur\w*|smooth\w*|surfaces?|patterns?|plastic\w*|waxy|grain(?:y|s)?",
    "colour": r"colou?r\w*|saturat\w*|hues?|tones?|tint\w*|vivid|vibrant",
    "noise": r"nois[ey]\w*",
    "edges": r"edges?|outlines?|contours?|halos?|boundar\w*|blur\w*|sharp\w*|crisp\w*|focus\w*",
    "geometry": r"perspectives?|geometr\w*|symmetr\w*|asymmetr\w*|lines?|shapes?|shaped|structur\w*|angles?|aligned|"
    r"alignment|distort\w*|warp\w*|deform\w*|merg\w*|misshapen|scale",
    "background": r"backgrounds?|scenery|surroundings?|horizon|depth of field",
    "physics": r"physic\w*|gravity|float\w*|impossible|implausible|logic\w*|support\w*|defies|(?:un)?realistic\w*",
    "fine_detail": r"details?|detailed|intricate",
    "compression": r"compress\w*|artefacts?|artifacts?|pixelat\w*",
}
_PATTERNS = {kind: re.compile(rf"\b(?:{words})\b") for kind, words in _WORDS.items()}
_FAULT = re.compile(
    r"\b(?:un(?:natural|usual|realistic|clear|intelligible|readable|settling|proportion)\w*|odd\w*|weird\w*|strange\w*|"
    r"mis(?:match|shap|align|plac|spell)\w*|distort\w*|deform\w*|malform\w*|warp\w*|melt\w*|merg\w*|blend\w*|fus(?:ed|es)|"
    r"irregular\w*|inconsisten\w*|incoherent\w*|incorrect\w*|wrong\w*|nonsens\w*|gibberish|garbled|scrambled|illegible|"
    r"impossible|implausible|contradict\w*|disproportion\w*|abnormal\w*|creepy|surreal|eerie|exaggerat\w*|artificial\w*|"
    r"plastic\w*|waxy|blurr\w*|smear\w*|lack\w*|miss(?:ing|es)|without|no|not|\w+n't|extra|too|overly|excessive\w*|"
    r"six|seven|broken|floats?|floating|glitch\w*|flaw\w*|artefacts?|artifacts?|repeat\w*|duplicat\w*|fad(?:e|es|ing)|"
    r"changes?|instead of|but|although)\b"
)
_NATURAL = re.compile(
    r"\b(?:natural\w*|realistic\w*|consisten\w*|authentic\w*|genuine\w*|correct\w*|accurate\w*|coheren\w*|imperfect\w*|"
    r"uneven|subtle|expected|true to life|lifelike|plausible|typical\w*|varied|variation\w*|detail(?:s|ed)?|intricate|"
    r"sharp\w*|legible|readable|proportion(?:s|ate|al)?|no (?:\w+ )?(?:distortion|artifact|artefact|sign)\w*)\b"
)
_TRAILING = re.compile(
    r",\s*(?:\w+ly\s+|further\s+|which\s+)?(?:suggest|indicat|imply|impli|point|reveal|mak|show|prov|confirm)\w*\b[^,]*$"
)
_BECAUSE = re.compile(r"\b(?:because|since|given that|due to the fact that)\s+(?=\w)", re.IGNORECASE)


def kind_of(sentence: str) -> ReasonKind | None:
    """The first kind with a keyword in the sentence."""
    lowered = sentence.lower()
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(lowered)), None)


def speaks_for(sentence: str, label: Label) -> bool:
    """Whether it states a fault (for generated or edited), or that something is correct (for real).

    A description of the content supports neither.
    """
    lowered = sentence.lower()
    has_fault = bool(_FAULT.search(lowered))
    return has_fault if label != "real" else bool(_NATURAL.search(lowered)) and not has_fault


def reason_in(sentence: str) -> str:
    """The sentence without its verdict: the part after "because", or before "suggesting"."""
    before, because, behind = _split(sentence)
    if because and parse_explanation(before) is not None:
        sentence = behind[:1].upper() + behind[1:]
    trailing = _TRAILING.search(sentence)
    if trailing and parse_explanation(trailing.group()) is not None:
        sentence = f"{sentence[: trailing.start()]}."
    return sentence


def _split(sentence: str) -> tuple[str, str, str]:
    found = _BECAUSE.search(sentence)
    if not found:
        return sentence, "", ""
    return sentence[: found.start()], found.group(), sentence[found.end() :]
