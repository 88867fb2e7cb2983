"""What answers a benchmark: a model through the engine, a model behind an endpoint, or an image classifier.

    respondent = respondent_for(model="runs/moondream_lora")       # cheap: nothing is loaded yet
    answer = respondent.start()                                    # loads, or connects
    for results in answer(benchmark, done=set(), shard=slice(0, None, 2)): ...

`run.answer_all` takes any of them, so that all results are comparable.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.classifier import classify
from vlm_detect.benchmark.results import Key
from vlm_detect.benchmark.score import ScoringEngine, score
from vlm_detect.config import file_sha256
from vlm_detect.errors import UserError
from vlm_detect.infer.endpoint import Endpoint
from vlm_detect.infer.engine import Ask, Engine
from vlm_detect.infer.fusion import Fusion
from vlm_detect.infer.witnesses import Witnesses
from vlm_detect.machine import best_device
from vlm_detect.models.cnn.configuration import is_cnn_run
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.nano import nano_path
from vlm_detect.models.registry import adapter_base, load_vlm, without_adapter
from vlm_detect.records import Item, Result
from vlm_detect.stats.calibration import Calibration

_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "config.json", "head.safetensors", "fusion.json")


class Answer(Protocol):
    def __call__(
        self,
        benchmark: Benchmark,
        *,
        done: Collection[Key] = (),
        shard: slice = ...,
        image_of: Callable[[Item], Image.Image] | None = None,
    ) -> Iterator[list[Result]]: ...


@dataclass(frozen=True)
class Respondent:
    """`logprob` and `generate` are the supported scorings; `identity` distinguishes its answers from others.

    With `explain` it answers open questions even where `generate` is off. `engine` gives what is asked, loaded once;
    `base` is the same model without its adapter. Both are None where there is none.
    """

    start: Callable[[], Answer]
    identity: dict[str, Any]
    logprob: bool = True
    generate: bool = True
    explain: bool = False
    engine: Callable[[], ScoringEngine] | None = None
    base: Respondent | None = None
    note: str = ""  # caveats for readers of its metrics
    calibration: Calibration | None = None
    weights: Mapping[str, float] | None = None  # of the witnesses of a run that has several


def respondent_for(
    model: str,
    *,
    adapter: str | None = None,
    generate: bool = True,
    explain: bool = False,
    batch_size: int = 8,
    max_new_tokens: int = 16,
    explanation_tokens: int = 96,
    expert: str | None = None,
) -> Respondent:
    """A local model: a vision-language model by its ID, or the run directory of a CNN."""
    identity = model_identity(model, adapter)
    run = Path(adapter or model)
    calibration = Calibration.load(run)
    if is_cnn_run(model):
        if expert:
            raise UserError(f"--expert {expert}: {model} is a CNN, which judges alone")
        return Respondent(
            lambda: partial(classify, classifier=CnnDetector.load(model, best_device()), batch_size=64),
            identity,
            generate=False,
            note="An image classifier, which reads no question. Multiple choice is answered by the likelier class; the "
            "reasons of one class tie and share the point.",
            calibration=calibration,
        )

    if expert:
        identity["expert_sha256"] = model_identity(expert, None)["weights_sha256"]
    fusion = Fusion.load(run)
    asked = partial(
        score,
        ask=Ask,
        generate=generate,
        explain=explain,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        explanation_tokens=explanation_tokens,
    )

    @functools.cache
    def engine() -> Engine:
        return Engine(load_vlm(model, adapter=adapter), batch_images=batch_size)

    def asking(engine: Engine, *, logprob: bool = True, witnesses: Witnesses | None = None) -> Answer:
        return partial(
            asked,
            engine=engine,
            refusal=engine.vlm.refusal,
            prepare_ahead=engine.prepare_ahead,
            logprob=logprob,
            witnesses=witnesses,
        )

    def start() -> Answer:
        witnesses = Witnesses.load(run, engine(), expert)
        return asking(engine(), witnesses=witnesses if witnesses.is_fused else None)

    def start_base(base: str) -> Answer:
        vlm = without_adapter(engine().vlm) or load_vlm(base)
        return asking(Engine(vlm, batch_images=batch_size), logprob=False)

    base = base_model(model, adapter)
    return Respondent(
        start,
        identity,
        generate=generate,
        explain=explain,
        engine=engine,
        base=Respondent(lambda: start_base(base), {}, logprob=False, generate=generate, explain=explain)
        if base
        else None,
        calibration=calibration,
        weights={one.name: one.weight for one in fusion.witnesses} if fusion else None,
    )


def base_model(model: str, adapter: str | None) -> str | None:
    """What an adapter was put on; None of a model without one."""
    if adapter:
        return model
    return adapter_base(model) if (Path(model) / "adapter_config.json").is_file() else None


def endpoint_respondent(
    url: str,
    model: str,
    *,
    key_variable: str,
    parallel: int = 8,
    generate: bool = True,
    explain: bool = False,
    batch_size: int = 8,
    max_new_tokens: int = 16,
    explanation_tokens: int = 96,
    options: dict[str, Any] | None = None,
) -> Respondent:
    """A model behind an OpenAI-compatible endpoint; `options` as found by an earlier run; otherwise the endpoint is
    probed."""
    endpoint = Endpoint(
        url,
        model,
        api_key=os.environ.get(key_variable),
        parallel=parallel,
        max_new_tokens=max_new_tokens,
        options=options,
    )
    if not (endpoint.gives_logprobs or generate or explain):
        raise UserError(f"{url} gives no log-probabilities: score free answers, without --generate false")
    return Respondent(
        lambda: partial(
            score,
            engine=endpoint,
            ask=Ask,
            logprob=endpoint.gives_logprobs,
            generate=generate,
            explain=explain,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            explanation_tokens=explanation_tokens,
        ),
        {"model": model, "endpoint": url, "options": endpoint.options},
        logprob=endpoint.gives_logprobs,
        generate=generate,
        explain=explain,
        engine=(lambda: endpoint) if endpoint.gives_logprobs else None,
        note="Scored through an endpoint: log-probabilities are those of an answer's first token."
        if endpoint.gives_logprobs
        else "Scored through an endpoint without log-probabilities: only free answers are scored.",
    )


def model_identity(model: str, adapter: str | None) -> dict[str, Any]:
    """The identity of a model: its name and, for a local folder or a nano model, the hash of its weights."""
    folders = {model: nano_path("moondream") if model == "nano" else Path(model)}
    folders |= {adapter: Path(adapter)} if adapter else {}
    hashes = {
        f"{said}/{name}": file_sha256(folder / name)
        for said, folder in folders.items()
        for name in _WEIGHTS
        if (folder / name).is_file()
    }
    return {"model": model, "adapter": adapter, "weights_sha256": hashes}
