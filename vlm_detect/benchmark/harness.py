"""A benchmark as other harnesses ask it: its headline items as plain documents, and what is shown, asked and right.

    asked = asked_items("data/vqa/benchmark.json")      # a benchmark file, or a dataset folder
    document = asked.documents()[0]                      # plain values: {"id", "kind", "question", "ground_truth"}
    asked.picture(document["id"]), asked.judged(document["id"], "Fake.")

Headline items are those of the top-level figures of `summary.json`: closed questions about generation, or about edits
where nothing else is asked. The share of them that is right is `accuracy` under `generate` there. The tasks for
lm-evaluation-harness, lmms-eval and inspect_ai in `eval/tasks` are made of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.score import generated_result, item_image
from vlm_detect.errors import UserError
from vlm_detect.questions.kind import KINDS, makers_in, prompts_of
from vlm_detect.questions.prompts import Prompt, topic_of
from vlm_detect.records import Item, Result


@dataclass(frozen=True)
class AskedItems:
    """The headline items of a benchmark, each with its prompt as written."""

    benchmark: Benchmark
    prompts: dict[str, Prompt]

    @property
    def left_out(self) -> str:
        """What of the benchmark is not asked, in one line; empty where everything is."""
        others = [item for item in self.benchmark.items if item.id not in self.prompts]
        n_open = sum(KINDS[item.kind].is_open for item in others)
        counts = {"open questions": n_open, "questions about edits": len(others) - n_open}
        counts["bad items"] = len(self.benchmark.skipped)
        named = [f"{n} {what}" for what, n in counts.items() if n]
        return f"{self.benchmark.name}: without {', '.join(named)}" if named else ""

    def documents(self) -> list[dict[str, str]]:
        return [
            {"id": id_, "kind": prompt.item.kind, "question": prompt.question, "ground_truth": prompt.item.ground_truth}
            for id_, prompt in self.prompts.items()
        ]

    def picture(self, id_: str) -> Image.Image:
        """The image of an item; two are placed side by side, as in our own scoring."""
        return item_image(self.benchmark, self.prompts[id_].item)

    def judged(self, id_: str, text: str) -> Result:
        """A free answer, read by the strict parser: unparsed is wrong."""
        return generated_result(self.prompts[id_], text.strip())


@lru_cache(maxsize=1)
def asked_items(source: str, *, split: str = "test", skip_bad: bool = False) -> AskedItems:
    """Read once in a process: harnesses ask for one document at a time. Errors are those of `load_benchmark`."""
    benchmark = load_benchmark(source, split=split, skip_bad=skip_bad)
    makers = makers_in(benchmark.items)
    return AskedItems(benchmark, {item.id: prompts_of(item, makers)[0] for item in headline_items(benchmark)})


def headline_items(benchmark: Benchmark) -> list[Item]:
    """The items that `item_scores.headline_scores` takes, without open ones; `UserError` where all are open."""
    closed = [item for item in benchmark.items if not KINDS[item.kind].is_open]
    if not closed:
        raise UserError(
            f"{benchmark.name}: all {len(benchmark.items)} questions are open; give a benchmark with others"
        )
    return [item for item in closed if topic_of(item) == "generation"] or closed
