"""Verdict and reason in free text, for a photo and its twin; the reference says what was done. For the benchmark.

The verdict question about the image is scored next to the answer; `benchmark.explanations` looks at the reasons.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from vlm_detect.questions.ask import EDIT_EXPLAIN_QUESTION, EXPLAIN_QUESTION
from vlm_detect.questions.blocks import ABOUT_EDITS, item_about, with_edits
from vlm_detect.questions.kind import Block, QuestionKind, Reading, question
from vlm_detect.questions.kinds.explain import explanation
from vlm_detect.questions.prompts import Prompt, labelled_fake, topic_of, verdict_prompts
from vlm_detect.questions.read import first_verdict, parse_explanation
from vlm_detect.records import Item, Pair, Topic


@question("open")
class Open(QuestionKind):
    in_benchmark = True
    default_size = 200
    is_open = True
    states_verdicts = True

    def blocks(self, made: Sequence[Pair], edits: Sequence[Pair], rng: random.Random) -> Iterator[Block]:
        return with_edits(self._asked(made, "generation", rng), self._asked(edits, "edit", rng), rng)

    def _asked(self, pairs: Sequence[Pair], topic: Topic, rng: random.Random) -> Iterator[Block]:
        text, about = (EDIT_EXPLAIN_QUESTION, ABOUT_EDITS) if topic == "edit" else (EXPLAIN_QUESTION, {})
        for pair in rng.sample(list(pairs), len(pairs)):
            yield [
                item_about(source, self.name, text, explanation(source.subject, topic), metadata=about)
                for source in pair
            ]

    def prompts(self, item: Item, makers: Sequence[str] = ()) -> list[Prompt]:
        if item.options:
            return super().prompts(item)
        return [Prompt(item, "", 0, item.question, (), (), None, ()), *verdict_prompts(item)]

    def is_fake(self, item: Item) -> bool | None:
        return None if topic_of(item) == "edit" else labelled_fake(item)

    def says_fake(self, answer: str) -> bool | None:
        return first_verdict(answer)

    def read(self, prompt: Prompt, text: str) -> Reading:
        """The verdict of the answer; True says generated, or altered for questions about edits."""
        if prompt.candidates:
            return super().read(prompt, text)
        topic = topic_of(prompt.item)
        verdict = parse_explanation(text, topic)
        truth = prompt.item.metadata.get("label") == "edited" if topic == "edit" else self.is_fake(prompt.item)
        yes, no = ("Altered", "Unaltered") if topic == "edit" else ("Fake", "Real")
        parsed = None if verdict is None else yes if verdict else no
        return Reading(parsed, verdict is not None and verdict == truth)
