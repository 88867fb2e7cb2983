"""The strict parser of generated answers.

    parse_choice("The correct answer is **B**.", "ABCD")       # "B"
    parse_answer("Yes - it has six fingers", ("Yes.", "No."))  # 0
    parse_answer("Yes, no, maybe", ("Yes.", "No."))            # None: more than one answer
    parse_answer("It looks unrealistic.", ("Real", "Fake"))    # None: no complete word of either side

Strictness is about meaning, not typography: mark-up (`markup.py`) and the words that introduce an answer ("The final
answer is") are stripped by rule, and the rest has to be unambiguous. Anything else is None, which callers count as
wrong and report as a rate: random guessing, dropping such answers, or matching substrings ("real" inside "unrealistic")
would give a score that the model did not earn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from vlm_detect.questions.markup import bare, marked
from vlm_detect.records import Topic

# Complete phrases that state a verdict: True says generated, False says real. They include negated ones.
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
# The start of the conclusion of a longer answer.
_CONCLUSION = re.compile(r"\b(?:judge?ment|verdict|conclusion|final answer)\s*(?::|is\b)\s*([^\n]+)", re.IGNORECASE)
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|\w+n't)\b")
_QUESTION = re.compile(r"(?:\A|(?<=[.!?\n]))[^.!?\n]*\?+")

# Introductions of an answer: "Therefore, the final answer is", "Verdict:", "My answer would be".
_NOUN = (
    r"(?:answer|response|reply|verdict|conclusion|judge?ment|decision|prediction|classification|label|result|output)"
)
_SURELY = r"(?:(?:most likely|likely|probably|clearly|definitely|certainly|simply|indeed)\s+)?"
_IS = rf"\s*(?:(?:is|was|would be|should be|must be)\b\s*:?|[:=]|->|→|\s[-–—]+\s)\s*{_SURELY}"
_INTRODUCTION = re.compile(
    rf"\b(?:(?:the|my|our)\s+)?(?:(?:final|correct|right|best|short)\s+)*{_NOUN}"
    rf"(?:\s+to\s+(?:the|this|your)\s+question)?{_IS}|(?:\A|\n)\s*a:\s",
    re.IGNORECASE,
)
_DENIED_INTRODUCTION = re.compile(rf"\b{_NOUN}\s*(?:is|was|:)\s*not\b", re.IGNORECASE)
# Words at the start of a clause that do not change its meaning.
_LEAD = re.compile(
    r"\A(?:(?:so|thus|therefore|hence|overall|finally|in conclusion|in summary|ok|okay|sure|well|hm+"
    r"|but|and|or|then|actually|rather|wait|sorry|i mean)\b\s*)+"
)
_I_THINK = re.compile(r"(?:i (?:think|believe|would say|guess)|i'd say)(?: that)?\s*(?=\x01)")
# Evasive answers, and words that withdraw an answer.
_MAYBE = (
    r"(?:maybe|perhaps|possibly|neither|both|either|unknown|(?:(?:it is|it's|i am|i'm) )?(?:unsure|unclear|uncertain"
    r"|hard to (?:say|tell)|not (?:(?:entirely|completely|really|quite) )?(?:sure|certain|clear))"
    r"|i (?:do not|don't) know|i (?:cannot|can't) (?:say|tell))"
)
_TAKES_BACK = {"yes": r"(?:nope|nah|not)", "no": r"(?:yeah|yep|yup)", "true": r"(?:not|untrue)", "false": "not"}
# A clause and the mark that ends it; a hyphen within a word ends none.
_CLAUSE = re.compile(r"(.*?)([.,;:!?()\[\]\n/|&—–]|(?<!\S)-+(?!\S)|\Z)", re.DOTALL)
_ABOUT_IT = r"(?:it|this|that|the|there|because|since|as)\b.*"  # "No signs" is no answer, "No it is not" is one


def parse_answer(text: str, candidates: Sequence[str]) -> int | None:
    """The index of the candidate that `text` states, or None if it states none or more than one.

    Candidates that are verdicts (Real, Fake) are read by their synonyms. Any others (Yes/No, True/False, names) must
    open the answer or be introduced as it: "Yes, it is." and "The answer is yes." state "Yes.", "I would say yes" does
    not.
    """
    names = [_plain(bare(candidate)) for candidate in candidates]
    boxed = marked(text)
    if not boxed.sure:
        return None
    if set(names) == {"real", "fake"}:
        verdicts = {_short_verdict(part) for part in boxed.parts or [boxed.rest]}
        stated = {None if verdict is None else names.index("fake" if verdict else "real") for verdict in verdicts}
    else:
        stated = _stated(boxed.rest, names)
        for part in boxed.parts:
            stated |= _stated(part, names) or {None}
    return stated.pop() if len(stated) == 1 else None


def _short_verdict(text: str) -> bool | None:
    """The verdict of a short answer: "not fake" says real, "the answer is not fake" states none."""
    said = _QUESTION.sub(" ", text)
    doubted = any(
        _DOUBTED.search(_CLAUSE_START.sub("", said[: word.start()])) for word in _VERDICT.finditer(said.lower())
    )
    return None if doubted or _says_maybe(said) or _DENIED_INTRODUCTION.search(said) else parse_verdict(said)


def _says_maybe(text: str) -> bool:
    """Whether a separate clause leaves the answer open."""
    return any(re.fullmatch(_MAYBE, _LEAD.sub("", clause.strip(" '"))) for clause, _ in _CLAUSE.findall(text.lower()))


def _stated(text: str, names: Sequence[str]) -> set[int | None]:
    """The places of those `names` (lower case) that an answer gives; None stands for any other answer.

    Empty if the answer neither opens with one nor introduces one. If it does, every other separate clause counts as
    well: "Yes. No.", "Yes, or rather maybe".
    """
    said = _INTRODUCTION.sub(" \x01 ", text.lower())
    for place, name in sorted(enumerate(names), key=lambda numbered: -len(numbered[1])):
        if name and names.count(name) == 1:
            said = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", f"\x02{place}\x02", said)
    stated: set[int | None] = set()
    others: set[int | None] = {None} if _says_maybe(said) else set()
    opens, clauses = True, []
    for clause, mark in _CLAUSE.findall(said):
        words = _LEAD.sub("", _I_THINK.sub("", " ".join(clause.split()).strip(" '")), count=1)
        introduced = words.startswith("\x01")
        words = words.strip("\x01 '")
        match = re.fullmatch(rf"\x02(\d+)\x02(?:\s+({_ABOUT_IT}))?", words)
        if match and (not match[2] or names[int(match[1])] in _TAKES_BACK):
            (stated if (opens or introduced) and mark != "?" else others).add(int(match[1]))
        clauses.append(words)
        opens = opens and (not words or mark == "?")
    for i in range(len(names)):
        takes_back = _TAKES_BACK.get(names[i]) if i in stated else None
        if takes_back and any(re.fullmatch(takes_back, words) for words in clauses):
            others.add(None)
    return stated and stated | others


def parse_verdict(text: str) -> bool | None:
    """True if `text` says that the image is generated, False if it says real, None if it is ambiguous."""
    return _state(text, _VERDICTS, _VERDICT)


def parse_explanation(text: str, topic: Topic = "generation") -> bool | None:
    """The verdict of a longer free answer: its named conclusion, else its first sentence, else all of it.

    True says generated, or altered for `topic` "edit". The text after the verdict may mention both sides.
    """
    phrases, pattern = (_ALTERATIONS, _ALTERATION) if topic == "edit" else (_VERDICTS, _VERDICT)
    text = bare(text)
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
    # Any other negation could reverse the meaning of the sentence.
    if len(states) != 1 or _NEGATION.search(pattern.sub(" ", said)):
        return None
    return states.pop()


def first_verdict(text: str) -> bool | None:
    """The verdict that an option opens with, or None without a verdict word.

    Options read "The image is real because ...": the rest may contain words of either side.
    """
    match = _VERDICT.search(" ".join(text.lower().split()))
    return _VERDICTS[match[0]] if match else None


# Between a noun and its letter: "Option B", "The answer is (B)"; and "B is correct", "I choose B".
_IS_LETTER = rf"(?i:{_IS}|\s*:?\s*)(?i:(?:option|choice|letter)\s+)?[(\[<]?"
_IS_RIGHT = r"[)\]]?\s+(?i:is|seems|would be)\s+(?i:the\s+)?(?i:correct|right|best|most|true|answer)\b"
_CHOOSE = (
    r"\b(?i:choose|chose|select|pick|go with|going with|opt for|it is|it's|it must be)\s+"
    r"(?i:option\s+|letter\s+|answer\s+)?[(\[]?"
)
# After a letter A: the rest of a sentence, so that it was an article.
_GOES_ON = r"[ \t]+(?!(?:and|as|because|for|is|or|since)\b)\w"
# In the clause before an answer: it is denied, or not asserted.
_DENIED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|\w+n't|without|than|instead of|except|unlike)\b", re.IGNORECASE
)
_DOUBTED = re.compile(rf"\b(?:if|whether|unless|might|could|may|{_MAYBE})\b", re.IGNORECASE)
_IS_WRONG = re.compile(
    r"[)\]]?\s+(?:is|was|seems|would be|can)?\s*(?:not\b|n't|never\b|cannot\b|wrong\b|incorrect\b|false\b)|n't"
)
_CLAUSE_START = re.compile(r".*(?:[.,;:!?\n—–]|\b(?:but|however|so|therefore|thus|hence)\b)", re.DOTALL | re.IGNORECASE)


def parse_choice(text: str, letters: Sequence[str], options: Sequence[str] = ()) -> str | None:
    """The letter that `text` chooses, or None: "B", "b.", "(B)", "B: because ...", "Option B", "The answer is B".

    The text of an option alone chooses its letter. "A dog" chooses nothing: a letter that continues as a sentence,
    without a punctuation mark or a new line, is an article, also after "the answer is". Two different letters choose
    nothing, nor does one that is denied ("not B") or doubted ("maybe B", "B?").
    """
    texts = [_plain(bare(option)) for option in options]
    boxed = marked(text)
    if not boxed.sure:
        return None
    if not boxed.parts:
        chosen = _chosen(boxed.rest, letters, texts)
    else:  # the thoughts before it may mention other letters
        chosen = {letter for part in boxed.parts for letter in _chosen(part, letters, texts) or {""}}
        chosen |= _named(boxed.rest, letters, "answer", article="[Aa]")
    return chosen.pop() or None if len(chosen) == 1 else None


def _chosen(text: str, letters: Sequence[str], texts: Sequence[str]) -> set[str]:
    """The letters that a text without mark-up states; an empty one represents "maybe" and the like."""
    for whole in (text, _INTRODUCTION.sub("", text, count=1)):
        if texts.count(_plain(whole)) == 1:
            return {letters[texts.index(_plain(whole))]}
    said = _QUESTION.sub(" ", text).strip()
    upper = "".join(letters)
    letter = f"[{upper}{upper.lower()}]"
    found = set()
    opening = rf"[\s(\[<]*({letter})(?:\s*\Z|[ \t]*\n|[)\]>.:,;!]+(?=\s|\Z)|\s*[—–]|\s+-+(?=\s|\Z)|\s*(?=\())"
    if match := re.match(opening, said):
        rest = _plain(said[match.end() :])
        found.add("" if re.match(r"(?:is\s+)?(?:wrong|incorrect)\b", rest) else match[1].upper())
        if texts.count(rest) == 1:  # "B: a photo", although that is the text of A
            found.add(letters[texts.index(rest)])
    elif (match := re.match(rf"({letter})\s+", said)) and (
        texts and _plain(said[match.end() :]) == texts[letters.index(match[1].upper())]
    ):
        found.add(match[1].upper())
    found |= _named(said, letters, "option|choice|letter|alternative", article="a")
    found |= _named(said, letters, "answer", article="[Aa]")
    for pattern in (
        rf"(?<!\w)\(({letter})\)",
        rf"(?<![\w'-])([{upper}]){_IS_RIGHT}",
        rf"{_CHOOSE}(?!A{_GOES_ON})([{upper}])\b(?!')",
    ):
        found |= _stating(pattern, said)
    # "A or B", "A, B": further single capitals are options as well.
    if found:
        found |= _stating(rf"(?<![\w'])([{''.join(letters[1:])}])(?=\s*(?:\Z|[).:,;]|or\b|and\b))", said, sure=False)
        found |= _stating(rf"(?<![\w'])({letters[0]})(?=\s*(?:\Z|[).:,;]))", said, sure=False)
        if _says_maybe(said):
            found.add("")
    return found


def _named(text: str, letters: Sequence[str], nouns: str, *, article: str) -> set[str]:
    """The letters after one of `nouns`, without those that match `article` and begin a sentence."""
    letter = f"[{''.join(letters)}{''.join(letters).lower()}]"
    return _stating(rf"\b(?i:{nouns}){_IS_LETTER}(?!{article}{_GOES_ON})({letter})\b(?!['’]|-\w)", text)


def _stating(pattern: str, text: str, *, sure: bool = True) -> set[str]:
    """The letters (group 1) at which `pattern` matches and that are not denied or, if `sure`, doubted there."""
    found = set()
    for match in re.finditer(pattern, text):
        before = _CLAUSE_START.sub("", text[: match.start(1)])
        if _DENIED.search(before) or _IS_WRONG.match(text, match.end(1)):
            continue
        if not (sure and _DOUBTED.search(before)):
            found.add(match[1].upper())
    return found


def _plain(text: str) -> str:
    """Lower case, single spaces, without surrounding punctuation."""
    return " ".join(text.lower().split()).strip(" .,;:!\"'*()[]")
