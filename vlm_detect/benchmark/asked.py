"""What a run asks, and of which model: the same in every process that answers a part of it.

benchmark = asked_items(options)                    # the items of the file or dataset, and those of --explanations
respondent = respondent_of(options, out)            # cheap: nothing is loaded yet
identity = identity_of(options, benchmark, respondent)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.explained_items import with_explanations
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.options import BenchmarkOptions
from vlm_detect.benchmark.respondents import Respondent, endpoint_respondent, respondent_for
from vlm_detect.benchmark.run import settings_of


def asked_items(options: BenchmarkOptions, *, quiet: bool = False) -> Benchmark:
    """The items of `--benchmark`; unless `quiet`, reports on stderr where a dataset has too few images to explain."""
    assert options.benchmark is not None
    benchmark = limited(
        load_benchmark(options.benchmark, split=options.split, skip_bad=options.skip_bad), options.limit
    )
    if not options.explanations:
        return benchmark
    explained = with_explanations(benchmark, options.explanations, seed=options.seed)
    n = len(explained.items) - len(benchmark.items)
    if n < options.explanations and not quiet:
        print(f"--explanations {options.explanations}: there are {n} images to explain", file=sys.stderr)
    return explained


def limited(benchmark: Benchmark, limit: int | None) -> Benchmark:
    return replace(benchmark, items=benchmark.items[:limit]) if limit else benchmark


def respondent_of(options: BenchmarkOptions, out: Path) -> Respondent:
    shared = {
        name: getattr(options, name) for name in ("generate", "batch_size", "max_new_tokens", "explanation_tokens")
    }
    shared["explain"] = options.explanations > 0
    if not options.endpoint:
        return respondent_for(options.model, adapter=options.adapter, expert=options.expert, **shared)
    return endpoint_respondent(
        options.endpoint,
        options.model,
        key_variable=options.api_key_env,
        parallel=options.parallel,
        options=settings_of(out).get("options"),
        **shared,
    )


def identity_of(options: BenchmarkOptions, benchmark: Benchmark, respondent: Respondent) -> dict[str, Any]:
    """What all answers of a run rest on: the model, the benchmark, and the lengths of answers."""
    lengths = {name: getattr(options, name) for name in ("max_new_tokens", "explanation_tokens")}
    return {**respondent.identity, **lengths, "benchmark_sha256": benchmark.sha256}
