"""Any benchmark file of ours as a task for inspect_ai: free answers, read by the strict parser.

    pip install inspect_ai openai -e .          # in an environment of its own
    inspect eval eval/tasks/vlm_detect_inspect.py -T benchmark=data/vqa/benchmark.json --model openai/gpt-4o
    vlm-detect serve --model runs/moondream_lora & LOCAL_API_KEY=none LOCAL_BASE_URL=http://127.0.0.1:8000/v1 \\
        inspect eval eval/tasks/vlm_detect_inspect.py -T benchmark=data/vqa/benchmark.json --model openai-api/local/NAME

`accuracy` is what `vlm-detect benchmark` calls generated accuracy over all closed items; an unparsed answer is wrong,
and counted by `unparsed`.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import TaskState, generate

from vlm_detect.benchmark.items import load_benchmark, open_image, side_by_side
from vlm_detect.benchmark.score import generated_result
from vlm_detect.questions.kind import KINDS, makers_in, prompts_of
from vlm_detect.questions.prompts import Prompt


@task
def vlm_detect_vqa(benchmark: str, skip_bad: bool = False, max_new_tokens: int = 16) -> Task:
    """The closed items of the benchmark file `benchmark`."""
    items = load_benchmark(benchmark, skip_bad=skip_bad).items
    closed = [item for item in items if not KINDS[item.kind].is_open]
    names = makers_in(closed)
    prompts = {item.id: prompts_of(item, names)[0] for item in closed}
    return Task(
        dataset=MemoryDataset([_sample(prompt) for prompt in prompts.values()], name=Path(benchmark).stem),
        solver=generate(),
        scorer=strict(prompts),
        config=GenerateConfig(temperature=0.0, max_tokens=max_new_tokens),
    )


@scorer(metrics={"accuracy": [mean()], "unparsed": [mean()]})
def strict(prompts: dict[str, Prompt]) -> Scorer:
    async def score(state: TaskState, target: Target) -> Score:
        result = generated_result(prompts[str(state.sample_id)], state.output.completion.strip())
        value = {"accuracy": float(result.correct), "unparsed": float(result.parsed is None)}
        return Score(value=value, answer=state.output.completion)

    return score


def _sample(prompt: Prompt) -> Sample:
    """One image; two are placed side by side, as in our own scoring."""
    opened = [open_image(path) for path in prompt.item.images]
    picture = opened[0] if len(opened) == 1 else side_by_side(*opened)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    content = [ContentImage(image=url), ContentText(text=prompt.question)]
    return Sample(id=prompt.item.id, input=[ChatMessageUser(content=content)], target=prompt.item.ground_truth)
