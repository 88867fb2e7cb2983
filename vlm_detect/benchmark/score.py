"""Score a model on the prompts of a benchmark: by log-probability of complete answers, and by free generation.

    for results in score(benchmark, engine, done=set()):      # one list of results per batch of images
        writer.write(results)

All prompts about an image go to the engine together, so that it is encoded and prefilled once. By log-probability an
item is asked in both polarities and all rotations; by generation once, as written. An open question is answered by
generation, and the verdict question about its image is scored as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from vlm_detect.ahead import ahead
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.items import side_by_side
from vlm_detect.benchmark.results import Key
from vlm_detect.errors import UserError
from vlm_detect.questions.kind import KINDS, generator_of, is_fake, makers_in, prompts_of
from vlm_detect.questions.prompts import Prompt, is_instructed, topic_of
from vlm_detect.records import Item, Result
from vlm_detect.stats.metrics import logit

if TYPE_CHECKING:
    from vlm_detect.infer.engine import Ask


class ScoringEngine(Protocol):
    """The part of `vlm_detect.infer.engine.Engine` that is used here."""

    def score(self, images: Sequence[Image.Image], asks: Sequence[Sequence[Ask]]) -> list[list[list[Any]]]: ...

    def generate(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], max_new_tokens: int = 16
    ) -> list[list[str]]: ...


class OtherWitnesses(Protocol):
    """What of `vlm_detect.infer.witnesses.Witnesses` is used here."""

    @property
    def fusion(self) -> Any: ...
    def others(self, images: Sequence[Image.Image]) -> Sequence[Any]: ...


EVERY_IMAGE = slice(None)
_Asked = list[tuple[Prompt, str]]  # the prompts about one image, each with its scoring


class _Ask(Protocol):
    def __call__(self, question: str, candidates: tuple[str, ...]) -> Any: ...


def plan(benchmark: Benchmark, *, logprob: bool = True, generate: bool = True, explain: bool = False) -> list[_Asked]:
    """The (prompt, scoring) of every answer that the benchmark needs, one list per image (or pair of images).

    With `explain` open questions are answered in free words even where `generate` is off.
    """
    makers = makers_in(benchmark.items)
    by_image: dict[tuple[str, ...], _Asked] = defaultdict(list)
    for item in benchmark.items:
        prompts = prompts_of(item, makers)
        if logprob:
            by_image[item.images] += [(prompt, "logprob") for prompt in prompts if prompt.candidates]
        if generate or (explain and KINDS[item.kind].is_open):
            by_image[item.images].append((prompts[0], "generate"))
    return list(by_image.values())


def key_of(prompt: Prompt, scoring: str) -> Key:
    return (prompt.item.id, scoring, prompt.polarity, prompt.rotation)


def score(
    benchmark: Benchmark,
    engine: ScoringEngine,
    *,
    ask: _Ask,
    done: Collection[Key] = (),
    shard: slice = EVERY_IMAGE,
    batch_size: int = 8,
    logprob: bool = True,
    generate: bool = True,
    explain: bool = False,
    max_new_tokens: int = 16,
    explanation_tokens: int = 96,
    image_of: Callable[[Item], Image.Image] | None = None,
    witnesses: OtherWitnesses | None = None,
    refusal: Callable[[tuple[int, int]], str | None] = lambda size: None,
    prepare_ahead: Callable[[Sequence[Image.Image]], None] = lambda images: None,
) -> Iterator[list[Result]]:
    """Yield the results batch by batch, without the keys in `done`.

    Args:
        ask: builds the engine's requests, `vlm_detect.infer.engine.Ask`.
        shard: the images of `plan` that this process is asked about.
        batch_size: images encoded together.
        logprob: score by log-probability.
        generate: score by free generation.
        explain: answer open questions even where `generate` is off.
        max_new_tokens: length of a free answer.
        explanation_tokens: length of an answer to an open question.
        image_of: in place of the item's own image, for blind baselines (a blank one, another item's).
        witnesses: of a run that has more than its language model; they speak in yes/no and real/fake verdicts.
        refusal: why the model does not read an image of this (width, height); such prompts are `refused` with it.
        prepare_ahead: called with the images of the next batch while one is computed.
    """
    open_item = image_of or (lambda item: item_image(benchmark, item))
    work = left_to_do(plan(benchmark, logprob=logprob, generate=generate, explain=explain), done, shard)
    batches = [work[start : start + batch_size] for start in range(0, len(work), batch_size)]

    def decoded(batch: Sequence[_Asked]) -> list[tuple[Image.Image, _Asked]]:
        found = [(open_item(asked[0][0].item), asked) for asked in batch]
        prepare_ahead([image for image, _ in found])
        return found

    for opened in ahead(decoded, batches, threads=1):
        refusals = [refusal(image.size) for image, _ in opened]
        results = [
            _result(prompt, how, answer="", parsed=None, correct=False, refused=reason)
            for (_, asked), reason in zip(opened, refusals, strict=True)
            if reason
            for prompt, how in asked
        ]
        read = [one for one, reason in zip(opened, refusals, strict=True) if not reason]
        images, batch = [image for image, _ in read], [asked for _, asked in read]
        scored = list(_scored(engine, ask, images, batch))
        results += _fused(scored, witnesses, images, batch) if witnesses is not None and scored else scored
        for is_open, tokens in ((False, max_new_tokens), (True, explanation_tokens)):
            results += _generated(engine, images, batch, tokens, is_open=is_open)
        yield results


def left_to_do(plan: Sequence[_Asked], done: Collection[Key], shard: slice) -> list[_Asked]:
    """This process's share of the images, each with its prompts that are not in `done`."""
    shares = ([asked for asked in image if key_of(*asked) not in done] for image in plan[shard])
    return [share for share in shares if share]


def _scored(
    engine: ScoringEngine, ask: _Ask, images: Sequence[Image.Image], batch: Sequence[_Asked]
) -> Iterator[Result]:
    chosen = _chosen(images, batch, lambda prompt, how: how == "logprob")
    if not chosen:
        return
    asks = [[ask(question=prompt.question, candidates=prompt.candidates) for prompt in ps] for _, ps in chosen]
    for (_, prompts), answers in zip(chosen, engine.score([image for image, _ in chosen], asks), strict=True):
        for prompt, candidates in zip(prompts, answers, strict=True):
            yield scored_result(prompt, [c.logprob for c in candidates], [c.n_tokens for c in candidates])


def _fused(
    results: Sequence[Result], witnesses: OtherWitnesses, images: Sequence[Image.Image], batch: Sequence[_Asked]
) -> list[Result]:
    """The same results, verdicts on single images with what the other witnesses say and what all say together."""
    place = {prompt.item.id: i for i, asked in enumerate(batch) for prompt, _ in asked}
    asked_of = sorted({place[result.id] for result in results if is_fusable(result)})
    said = dict(zip(asked_of, witnesses.others([images[i] for i in asked_of]), strict=True))
    found = []
    for result in results:
        if is_fusable(result) and result.p_fake is not None:
            odds = dict(said[place[result.id]].odds)
            fused = float(witnesses.fusion.log_odds({"language_model": logit(result.p_fake), **odds}))
            result = replace(result, witness_odds=odds, fused_odds=fused)
        found.append(result)
    return found


def is_fusable(result: Result) -> bool:
    """Whether it is a verdict on whether one image is generated, by log-probability."""
    kind = KINDS[result.kind]
    is_verdict = bool(result.polarity) and result.p_fake is not None and not kind.chooses
    return is_verdict and result.topic == "generation" and kind.n_images == 1


def _generated(
    engine: ScoringEngine, images: Sequence[Image.Image], batch: Sequence[_Asked], max_new_tokens: int, *, is_open: bool
) -> Iterator[Result]:
    chosen = _chosen(
        images, batch, lambda prompt, how: how == "generate" and is_open == KINDS[prompt.item.kind].is_open
    )
    if not chosen:
        return
    questions = [[prompt.question for prompt in prompts] for _, prompts in chosen]
    texts = engine.generate([image for image, _ in chosen], questions, max_new_tokens)
    for (_, prompts), answers in zip(chosen, texts, strict=True):
        for prompt, text in zip(prompts, answers, strict=True):
            yield generated_result(prompt, text)


def _chosen(
    images: Sequence[Image.Image], batch: Sequence[_Asked], wanted: Callable[[Prompt, str], bool]
) -> list[tuple[Image.Image, list[Prompt]]]:
    """The images with selected prompts, and those prompts."""
    prompts = [[prompt for prompt, how in asked if wanted(prompt, how)] for asked in batch]
    return [(image, some) for image, some in zip(images, prompts, strict=True) if some]


def item_image(benchmark: Benchmark, item: Item) -> Image.Image:
    images = [benchmark.image(ref) for ref in item.images]
    return images[0] if len(images) == 1 else side_by_side(images[0], images[1])


def scored_result(prompt: Prompt, logprobs: Sequence[float], n_tokens: Sequence[int]) -> Result:
    """The answer is the candidate with the highest summed log-probability; `UserError` where it is non-finite."""
    if not np.isfinite(np.max(logprobs)):  # NaN counts as the maximum
        raise UserError(
            f"item {prompt.item.id}: the model's log-probabilities are {list(logprobs)}; its weights are broken, or "
            "overflow in their dtype"
        )
    chosen = int(np.argmax(logprobs))
    answer = prompt.candidates[chosen]
    return _result(
        prompt,
        "logprob",
        answer=answer,
        parsed=answer,
        correct=chosen == prompt.right,
        p_fake=fake_probability(logprobs, prompt.fake),
        logprobs=[float(value) for value in logprobs],
        n_tokens=[int(n) for n in n_tokens],
    )


def generated_result(prompt: Prompt, text: str) -> Result:
    """A free answer as its kind reads it: unparsed is wrong."""
    found = KINDS[prompt.item.kind].read(prompt, text)
    return _result(prompt, "generate", answer=text, parsed=found.parsed, correct=found.correct)


def fake_probability(logprobs: Sequence[float], fake: Sequence[bool | None]) -> float | None:
    """Softmax over the candidates, summed over those that mean "generated"; None where none states a verdict.

    If some candidates state a verdict, those without one are excluded from the softmax.
    """
    stated = [(value, says) for value, says in zip(logprobs, fake, strict=True) if says is not None]
    if len({says for _, says in stated}) < 2:
        return None
    probabilities = softmax([value for value, _ in stated])
    return float(sum(p for p, (_, says) in zip(probabilities, stated, strict=True) if says))


def softmax(values: Sequence[float]) -> np.ndarray:
    shifted = np.exp(np.asarray(values, dtype=float) - np.max(values))
    return shifted / shifted.sum()


def _result(
    prompt: Prompt,
    scoring: Any,
    *,
    answer: str,
    parsed: str | None,
    correct: bool,
    p_fake: float | None = None,
    logprobs: list[float] | None = None,
    n_tokens: list[int] | None = None,
    refused: str = "",
) -> Result:
    item = prompt.item
    return Result(
        id=item.id,
        kind=item.kind,
        scoring=scoring,
        polarity=prompt.polarity,
        rotation=prompt.rotation,
        question=prompt.question,
        options=list(prompt.options),
        ground_truth=prompt.ground_truth,
        answer=answer,
        parsed=parsed,
        correct=correct,
        p_fake=p_fake,
        logprobs=logprobs,
        n_tokens=n_tokens,
        is_fake=is_fake(item),
        group=item.group,
        generator=generator_of(item),
        object_class=str(item.metadata.get("object_category") or item.metadata.get("object_class") or ""),
        topic=topic_of(item),
        instructed=is_instructed(item),
        refused=refused,
    )
