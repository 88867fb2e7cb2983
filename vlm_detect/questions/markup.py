r"""Strip mark-up from an answer.

    bare("**Answer:** B</s>")                # "Answer: B"
    bare("<think>Six fingers.</think>Yes.")  # "Yes."
    marked(r"Six fingers, so \boxed{B}")     # Marked(parts=["B"], rest="Six fingers, so", sure=True)
    untagged("<image>\nIs it real?")        # "Is it real?": the same of a question

Mark-up does not change the meaning and is removed by rule: Markdown, HTML, LaTeX, special tokens, quotes. Thoughts and
struck-out words are no part of an answer and are removed with their content. A box (`\boxed{}`, `<answer>`, `[[ ]]`)
marks the answer.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_KEPT = 3_000  # characters at either end of an answer without its thoughts, which bounds the time of these expressions
_FLAGS = re.IGNORECASE | re.DOTALL
# Curly quotes and typographic dashes become plain ones; invisible characters are removed.
_CHARACTERS = str.maketrans(
    {**dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‘’‚‛", "'"), **dict.fromkeys("‐‑−", "-"), "。": ".", "、": ","}
    | dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\ufe0f\u00ad", "")
    | dict.fromkeys("✅✔☑✓👍", " ")
)
_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning|scratchpad)>.*?(?:</\1>|\Z)", _FLAGS)
_THOUGHT_BEFORE = re.compile(r"\A.*</(?:think|thinking|thought|reasoning|scratchpad)>", _FLAGS)  # opened by the prompt
_STRUCK_OUT = re.compile(r"~~.+?~~|<(s|del|strike)>.+?</\1>", _FLAGS)
_LATEX = re.compile(r"\\+(?:text\w*|math\w*|emph|underline|operatorname)\s*\{([^{}]*)\}")
_MATHS = re.compile(r"\$+|\\+[()\[\],;! ]")
_LETTER_TAG = re.compile(r"<([biu])>(.*?)</\1>", _FLAGS)  # an opening one alone may be the answer: <B>
_TAG = re.compile(
    r"</?(?:em|strong|p|br|span|div|code|mark|h[1-6]|center|font|li|ul|ol|small|big|pre|tt|html|body"
    r"|answer|final_answer|final|response|result|choice|verdict)\b[^<>]*>",
    _FLAGS,
)
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?s>|</?(?:bos|eos|pad|unk|(?:start|end)_of_\w+)>|\[/?INST\]", _FLAGS)
_FENCE = re.compile(r"^[ \t]*```\w*[ \t]*$|```", re.MULTILINE)
# Headings, quotations, bullets and numbers at the start of a line.
_LINE_MARK = re.compile(r"^(?:[ \t]*(?:#{1,6}|>+|[-*+•·‣]|\d+[.)])[ \t]+)+", re.MULTILINE)
_EMPHASIS = re.compile(r"[*`\"]+|(?<!\w)'+|'+(?!\w)")
_BOX = re.compile(
    r"\\+(?:boxed|fbox)\s*\{(?P<box>[^{}]*)\}"
    r"|<(?P<tag>answer|final_answer|final|response|result|choice|verdict)>(?P<element>.*?)</(?P=tag)>"
    r"|\[\[(?P<brackets>[^\[\]]*)\]\]",
    _FLAGS,
)
_OTHERWISE_BEFORE = re.compile(r"(?:\b(?:not|never|nor|neither|or)|n't|[/|])[\s:$]*\Z", re.IGNORECASE)
_OTHERWISE_BEHIND = re.compile(r"[\s$]*(?:[/|&?]|\bor\b|\bis\s+(?:not|wrong|incorrect)\b)", re.IGNORECASE)
# Image placeholders of other programs; ours inserts the image itself.
_IMAGE = r"<\|?(?:image|img)[ _-]?\d*\|?>"
_IMAGE_TAG = re.compile(rf"\s*<image>\s*|\A(?:\s*{_IMAGE})+\s*|\s*(?:{_IMAGE}\s*)+\Z", re.IGNORECASE)


class Marked(NamedTuple):
    """The text in boxes, the text outside, and whether no box is denied or one of several choices."""

    parts: list[str]
    rest: str
    sure: bool


def bare(text: str) -> str:
    """`text` without mark-up; lines and punctuation are kept."""
    return _without_marks(_without_thoughts(text))


def untagged(question: str) -> str:
    """A question without image tags; one without any is unchanged."""
    found = _IMAGE_TAG.sub("\n", question)
    return question if found == question else found.strip()


def marked(text: str) -> Marked:
    """The boxes of `text` and the surrounding text, both without mark-up."""
    text = _without_thoughts(text)
    boxes = list(_BOX.finditer(text))
    sure = not any(
        _OTHERWISE_BEFORE.search(text[: b.start()]) or _OTHERWISE_BEHIND.match(text[b.end() :]) for b in boxes
    )
    parts = [box["box"] or box["element"] or box["brackets"] or "" for box in boxes]
    return Marked([_without_marks(part) for part in parts], _without_marks(_BOX.sub(" ", text)), sure)


def _without_thoughts(text: str) -> str:
    """Remove what is no part of the answer, and unwrap LaTeX font commands, so that boxes can be found."""
    text = unicodedata.normalize("NFKC", text).translate(_CHARACTERS)
    text = _THOUGHT_BEFORE.sub("", _THOUGHT.sub(" ", text))
    if len(text) > 2 * _KEPT:
        text = f"{text[:_KEPT]}\n{text[-_KEPT:]}"
    text = _STRUCK_OUT.sub(" ", text)
    text = text.replace("**", "").replace("__", "")
    while (unwrapped := _LATEX.sub(r"\1", text)) != text:
        text = unwrapped
    return text


def _without_marks(text: str) -> str:
    text = _LETTER_TAG.sub(r"\2", text)
    for mark in (_SPECIAL_TOKEN, _TAG, _MATHS, _FENCE):
        text = mark.sub(" ", text)
    text = _LINE_MARK.sub("", text)
    return _EMPHASIS.sub("", text).replace("_", " ").replace("{", " ").replace("}", " ").strip()
