"""Any benchmark of ours as a task for inspect_ai: free answers, read by the strict parser.

    pip install inspect_ai openai -e .          # in an environment of its own
    inspect eval eval/tasks/vlm_detect_inspect.py -T benchmark=data/vqa/benchmark.json --model openai/gpt-4o
    vlm-detect serve --model runs/moondream_lora & LOCAL_API_KEY=none LOCAL_BASE_URL=http://127.0.0.1:8000/v1 \\
        inspect eval eval/tasks/vlm_detect_inspect.py -T benchmark=data/vqa/benchmark.json --model openai-api/local/NAME

`accuracy` is what `vlm-detect benchmark` calls generated accuracy: over closed questions about generation, or about
edits where nothing else is asked. An unparsed answer is wrong, and counted by `unparsed`.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import TaskState, generate

from vlm_detect.benchmark.harness import AskedItems, asked_items


@task
def vlm_detect_vqa(benchmark: str, split: str = "test", skip_bad: bool = False, max_new_tokens: int = 16) -> Task:
    """The headline items of `benchmark`: a file, or a `split` of a dataset folder."""
    asked = asked_items(benchmark, split=split, skip_bad=skip_bad)
    if asked.left_out:
        print(asked.left_out, file=sys.stderr)
    return Task(
        dataset=MemoryDataset([_sample(asked, document) for document in asked.documents()], name=Path(benchmark).stem),
        solver=generate(),
        scorer=strict(asked),
        config=GenerateConfig(temperature=0.0, max_tokens=max_new_tokens),
    )


@scorer(metrics={"accuracy": [mean()], "unparsed": [mean()]})
def strict(asked: AskedItems) -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        result = asked.judged(str(state.sample_id), state.output.completion)
        value = {"accuracy": float(result.correct), "unparsed": float(result.parsed is None)}
        return Score(value=value, answer=state.output.completion)

    return score


def _sample(asked: AskedItems, document: dict[str, str]) -> Sample:
    """One image; two are placed side by side, as in our own scoring."""
    buffer = io.BytesIO()
    asked.picture(document["id"]).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [ContentImage(image=url), ContentText(text=document["question"])]
    return Sample(id=document["id"], input=[ChatMessageUser(content=content)], target=document["ground_truth"])
