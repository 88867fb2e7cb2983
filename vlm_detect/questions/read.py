"""The strict parser of generated answers: what counts as an answer, and what does not.

    parse_choice("(a)", "ABCD")                       # "A"
    parse_answer("Fake.", ("Real", "Fake"))           # 1
    parse_answer("It looks unrealistic.", ("Real", "Fake"))   # None: no whole word of either side

An answer is read only where it is plain. Anything else is None, which callers count as wrong and report as a rate:
guessing at random there, dropping such answers, or matching substrings ("real" inside "unrealistic") all make a
score that the model did not earn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from vlm_detect.questions.ask import Topic

# Whole phrases that state a verdict: True says generated, False says real. Negated ones are read as wholes.
_VERDICTS = {
    **dict.fromkeys(
        ("fake", "generated", "ai-generated", "ai generated", "artificial", "artificially generated"), True
    ),
    **dict.fromkeys(("synthetic", "not real", "not a real", "not genuine", "not authentic"), True),
    **dict.fromkeys(("real", "genuine", "authentic", "not fake", "not a fake"), False),
    **dict.fromkeys(("not generated", "not ai-generated", "not artificial", "not artificially generated"), False),
}
# The same about local edits: True says altered.
_ALTERATIONS = {
    **dict.fromkeys(("altered", "edited", "manipulated", "tampered with", "modified", "retouched", "doctored"), True),
    **dict.fromkeys(("not altered", "not edited", "not manipulated", "not tampered with", "not modified"), False),
    **dict.fromkeys(("not retouched", "not doctored", "unaltered", "unedited", "untouched"), False),
    **dict.fromkeys(("no part of it was changed", "no part of it was altered", "free of alterations"), False),
}


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    """Longest first; no word character or hyphen on either side: "unrealistic" and "real-looking" state nothing."""
    longest_first = sorted(map(re.escape, phrases), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(longest_first)})(?![\w-])")


_VERDICT = _any_of(_VERDICTS)
_ALTERATION = _any_of(_ALTERATIONS)
# Where a longer answer puts its conclusion, if it names one.
_CONCLUSION = re.compile(r"\b(?:judge?ment|verdict|conclusion|final answer)\s*(?::|is\b)\s*([^\n]+)", re.IGNORECASE)
# Behind a letter A: a sentence goes on in which it was an article.
_GOES_ON = r"[ \t]+(?!(?:and|as|because|for|is|or|since)\b)\w"
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|\w+n't)\b")


def parse_answer(text: str, candidates: Sequence[str]) -> int | None:
    """The index of the candidate that `text` states, or None where it states none or more than one.

    Candidates that are verdicts (Real, Fake) are read by their synonyms; any others (Yes/No, True/False, names) must
    open the answer: "Yes, it is." states "Yes.", while "I would say yes" does not.
    """
    plain = [_plain(candidate) for candidate in candidates]
    said = _plain(text)
    if said in plain:
        return plain.index(said)
    if set(plain) == {"real", "fake"}:
        verdict = parse_verdict(text)
        return None if verdict is None else plain.index("fake" if verdict else "real")
    lines = [_plain(line) for line in text.strip().splitlines()]
    stated = {line for line in lines if line in plain}
    alone = lines[0] if stated and stated == {lines[0]} else None
    opens = [
        i
        for i, candidate in enumerate(plain)
        if candidate and (candidate == alone or re.match(rf"{re.escape(candidate)}[.,;:!]", said))
    ]
    return opens[0] if len(opens) == 1 else None


def parse_verdict(text: str) -> bool | None:
    """True where `text` says that the image is generated, False where it says real, None where neither is plain."""
    return _state(text, _VERDICTS, _VERDICT)


def parse_explanation(text: str, topic: Topic = "generation") -> bool | None:
    """The verdict of a longer free answer: its named conclusion, else its first sentence, else the whole of it.

    True says generated, or altered where the `topic` is edits. What follows the verdict may well speak of both sides.
    """
    phrases, pattern = (_ALTERATIONS, _ALTERATION) if topic == "edit" else (_VERDICTS, _VERDICT)
    conclusions = _CONCLUSION.findall(text)
    for part in (*conclusions[-1:], *sentences(text)[:1], text):
        if (state := _state(part, phrases, pattern)) is not None:
            return state
    return None


def sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def _state(text: str, phrases: Mapping[str, bool], pattern: re.Pattern[str]) -> bool | None:
    said = " ".join(text.lower().split())
    states = {phrases[phrase] for phrase in pattern.findall(said)}
    # A negation of anything but the verdict itself could turn the sentence round.
    if len(states) != 1 or _NEGATION.search(pattern.sub(" ", said)):
        return None
    return states.pop()


def first_verdict(text: str) -> bool | None:
    """The verdict that an option opens with, or None where it has no verdict word.

    Options read "The image is real because ...": what follows the verdict may hold words of either side.
    """
    match = _VERDICT.search(" ".join(text.lower().split()))
    return _VERDICTS[match[0]] if match else None


def parse_choice(text: str, letters: Sequence[str], options: Sequence[str] = ()) -> str | None:
    """The letter that `text` chooses, or None: "B", "b.", "(B)", "B: because ...", "Option B", "The answer is B".

    The text of an option, written out alone, chooses its letter. "A dog" chooses nothing: a letter that goes on as a
    sentence does without a mark or a new line is an article, behind "the answer is" as well. Two different letters
    choose nothing.
    """
    said = text.strip()
    texts = [_plain(option) for option in options]
    if texts.count(_plain(said)) == 1:
        return letters[texts.index(_plain(said))]
    letter = f"[{''.join(letters)}{''.join(letters).lower()}]"
    found = set()
    if match := re.match(rf"[\s\"'*(\[]*({letter})[\"'*]*(?:\s*$|[ \t]*\n|[)\].:,;](?=\s|$|[\"'*]))", said):
        found.add(match[1].upper())
    between = r"(?i:\s+is)?\s*:?\s*\(?"
    for word, article in (("option|choice|letter", "a"), ("answer", "[Aa]")):
        named = rf"\b(?i:{word}){between}(?!{article}{_GOES_ON})({letter})\b(?!')"
        found |= {match.upper() for match in re.findall(named, said)}
    found |= {match.upper() for match in re.findall(rf"(?<!\w)\(({letter})\)", said)}
    # "A or B", "A, B": further bare capitals that stand as options of their own.
    if found:
        found |= set(re.findall(rf"(?<![\w'])([{''.join(letters[1:])}])(?=\s*(?:$|[).:,;]|or\b|and\b))", said))
        found |= set(re.findall(rf"(?<![\w'])({letters[0]})(?=\s*(?:$|[).:,;]))", said))
    return found.pop() if len(found) == 1 else None


def _plain(text: str) -> str:
    """Lower case, single spaces, without the marks around."""
    return " ".join(text.lower().split()).strip(" .,;:!?\"'*()[]")
