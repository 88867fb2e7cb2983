"""Blind baselines: the accuracy that a benchmark's text allows without looking at any image.

    text_baselines(items)      # {"chance": 0.25, "longest": 0.81, "shortest": 0.0, "commonest_letter": 0.3, ...}

A model's score is meaningful only above the highest of these. Ties between options share the point. `longest`,
`shortest` and `commonest_letter` are over the items with options, `commonest_answer` over the others; `chance` and
`bag_of_words` are over all items.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from vlm_detect.questions.kind import KINDS, makers_in, prompts_of
from vlm_detect.questions.prompts import Prompt, is_instructed, row_of, topic_of
from vlm_detect.records import Item

_FOLDS = 5


def text_baselines(items: Sequence[Item]) -> dict[str, float]:
    """Every blind baseline that applies to `items`, each an accuracy."""
    makers = makers_in(items)
    prompts = [prompts_of(item, makers)[0] for item in items]
    prompts = [prompt for prompt in prompts if prompt.right is not None]
    choices = [prompt for prompt in prompts if prompt.lettered]
    others = [prompt for prompt in prompts if not prompt.lettered]
    found: dict[str, float] = {}
    if prompts:
        found["chance"] = float(np.mean([1 / len(prompt.candidates) for prompt in prompts]))
    if choices:
        found["longest"] = _picks(choices, len)
        found["shortest"] = _picks(choices, lambda option: -len(option))
        found["commonest_letter"] = _commonest(choices)
    if others:
        found["commonest_answer"] = _commonest(others)
    if len({prompt.item.group for prompt in prompts}) > 1:
        found["bag_of_words"] = bag_of_words(prompts)
    return {name: round(value, 6) for name, value in found.items()}


def headline_baselines(items: Sequence[Item]) -> dict[str, float]:
    """The blind baselines of a summary's top-level metrics: over the closed items about generation, if there are
    any."""
    closed = [item for item in items if not KINDS[item.kind].is_open] or list(items)
    return text_baselines([item for item in closed if topic_of(item) == "generation"] or closed)


def baselines_by_kind(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """`text_baselines` of each kind of item, items about edits separately: the chance level of a mixture applies to
    none of its parts."""
    rows: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        rows[row_of(item.kind, topic_of(item), instructed=is_instructed(item))].append(item)
    return {row: text_baselines(rows[row]) for row in sorted(rows)}


def bag_of_words(prompts: Sequence[Prompt]) -> float:
    """Accuracy of a classifier on words and word pairs, cross-validated by group.

    It scores each answer from the question and the answer's text and picks the likeliest, without position, length or
    image. It needs at least two groups.
    """
    groups = np.unique([prompt.item.group for prompt in prompts], return_inverse=True)[1]
    texts = [[_text(prompt, option) for option in prompt.options] for prompt in prompts]
    right = np.array([prompt.right for prompt in prompts])
    folds = min(_FOLDS, len(set(groups.tolist())))
    points = 0.0
    for train, test in GroupKFold(folds).split(texts, groups=groups):
        counted = Counter((text, bool(place == right[i])) for i in train for place, text in enumerate(texts[i]))
        words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", min_df=2, max_features=20_000, binary=True)
        try:
            words.fit([text for i in train for text in texts[i]])
        except ValueError:  # no word occurs twice: the words are uninformative
            points += sum(1 / len(texts[i]) for i in test)
            continue
        # Equal rows are merged into one with their total weight.
        model = LogisticRegression(C=0.3, max_iter=300)
        rows, weights = zip(*counted.items(), strict=True)
        model.fit(words.transform([text for text, _ in rows]), [is_right for _, is_right in rows], weights)
        known = sorted({text for i in test for text in texts[i]})
        score_of = dict(zip(known, model.decision_function(words.transform(known)).round(9), strict=True))
        for i in test:
            points += _shared_point(np.array([score_of[text] for text in texts[i]]), int(right[i]))
    return points / len(prompts)


def _text(prompt: Prompt, option: str) -> str:
    """Words of the option, each also joined with the question, so that the weight of "Yes." can depend on the
    question."""
    asked = " ".join(prompt.question.split()) if not prompt.lettered else ""
    return (
        f"{option.lower()} {'_'.join(asked.lower().split())}=={option.lower().strip('. ')}" if asked else option.lower()
    )


def _picks(prompts: Sequence[Prompt], value: Callable[[str], float]) -> float:
    scores = [np.array([value(option) for option in prompt.options]) for prompt in prompts]
    return float(np.mean([_shared_point(s, p.right or 0) for s, p in zip(scores, prompts, strict=True)]))


def _shared_point(scores: np.ndarray, right: int) -> float:
    best = scores == scores.max()
    return float(best[right] / best.sum())


def _commonest(prompts: Sequence[Prompt]) -> float:
    """Always give the most frequent right answer of each set of candidates."""
    answers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for prompt in prompts:
        answers[prompt.candidates][prompt.candidates[prompt.right or 0]] += 1
    return sum(counted.most_common(1)[0][1] for counted in answers.values()) / len(prompts)
