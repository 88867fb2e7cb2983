import math
from pathlib import Path

import pytest

from tests.benchmark.fakes import FakeAsk, FakeEngine, choice_row, verdict_rows, write_benchmark
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.explanations import explanations, read_explanations
from vlm_detect.benchmark.item_scores import item_scores
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.results import ResultWriter, merge, read_results
from vlm_detect.benchmark.run import without_refused
from vlm_detect.benchmark.score import fake_probability, key_of, plan, score
from vlm_detect.benchmark.summary import calibrated_figures, summarise
from vlm_detect.errors import UserError
from vlm_detect.stats.calibration import Calibration


def _red(image) -> bool:
    return image.getpixel((0, 0)) == (255, 0, 0)


def oracle(image, question, candidates):
    """Knows that red is generated, whatever way it is asked."""
    if candidates[0] in ("Real", "Fake"):
        return [0.0 if (c == "Fake") == _red(image) else -4.0 for c in candidates]
    lines = {line[0]: line for line in question.splitlines() if line[1:2] == ":"}
    return [0.0 if "hand" in lines[letter] else -4.0 for letter in candidates]


def always_first(image, question, candidates):
    return [0.0, *[-3.0] * (len(candidates) - 1)]


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    rows = [*verdict_rows(tmp_path), choice_row(tmp_path)]
    return load_benchmark(write_benchmark(tmp_path, rows))


def run(benchmark: Benchmark, engine: FakeEngine, **options):
    return [result for batch in score(benchmark, engine, ask=FakeAsk, **options) for result in batch]


def test_oracle_is_right_everywhere(benchmark: Benchmark) -> None:
    engine = FakeEngine(
        oracle, lambda image, question: "C." if "A:" in question else "fake" if _red(image) else "Real."
    )
    results = run(benchmark, engine, batch_size=2)
    assert len(results) == 4 * 2 + 4 + 5  # polarities, rotations, free answers
    assert len({result.key for result in results}) == len(results)
    assert engine.images_seen == 5  # each image goes to the engine once
    summary = summarise(results)
    assert summary["n"] == 5
    assert summary["groups"] == 5
    assert summary["accuracy"] == summary["prompt_accuracy"] == summary["auroc"] == 1
    assert summary["polarity_consistency"] == summary["rotation_consistency"] == 1
    assert summary["generate"]["accuracy"] == 1
    assert summary["generate"]["unparsed"] == 0
    assert summary["by_generator"]["real"]["n"] == summary["by_generator"]["big_gan"]["n"] == 2
    assert summary["by_kind"]["multiple_choice"]["choice_verdict_accuracy"] == 1


def test_a_bias_towards_a_letter_earns_nothing(benchmark: Benchmark) -> None:
    results = run(benchmark, FakeEngine(always_first, lambda image, question: "A dog"))
    choice = [result for result in results if result.kind == "multiple_choice" and result.scoring == "logprob"]
    assert [result.answer for result in choice] == ["A"] * 4
    assert sum(result.correct for result in choice) == 1
    summary = summarise(results)
    assert summary["letter_rates"] == {"A": 1.0}
    assert summary["rotation_consistency"] == 0
    assert summary["by_kind"]["true_false"]["balanced_accuracy"] == 0.5
    assert summary["generate"]["unparsed"] == 5
    assert summary["generate"]["accuracy"] == 0
    assert summary["generate"]["balanced_accuracy"] == 0  # unparsed is wrong
    assert summary["generate"]["auroc"] is None


def test_p_fake_is_the_mean_of_both_polarities(benchmark: Benchmark) -> None:
    def rule(image, question, candidates):
        # log-odds of Fake: 1 as written, 3 the other way round
        return [0.0, 3.0 if "Fake or Real" in question else 1.0] if candidates[0] == "Real" else [0.0] * 4

    scores = item_scores(run(benchmark, FakeEngine(rule), generate=False), "logprob")
    expected = (1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(-3))) / 2
    assert scores[0].p_fake == pytest.approx(expected)
    assert scores[-1].p_fake == pytest.approx(0.5)


def test_probability_of_a_verdict_over_options() -> None:
    assert fake_probability([0.0, math.log(3)], (True, False)) == pytest.approx(0.25)
    assert fake_probability([0.0] * 4, (True, True, True, False)) == pytest.approx(0.75)
    assert fake_probability([0.0, 0.0, 9.0], (True, False, None)) == pytest.approx(0.5)
    assert fake_probability([0.0, 1.0], (None, None)) is None


def test_an_open_item_without_ground_truth_does_not_end_the_run(tmp_path: Path) -> None:
    row = {"id": "o", "kind": "open", "image": "choice.png", "question": "Describe it.", "ground_truth": "A red field."}
    choice_row(tmp_path)  # for its image
    benchmark = load_benchmark(write_benchmark(tmp_path, [row]))
    engine = FakeEngine(lambda image, question, candidates: [0.0, -1.0], lambda image, question: "Fake. It is red.")
    results = run(benchmark, engine)
    summary = summarise(results, resamples=20)
    assert (summary["accuracy"], summary["generate"]["accuracy"]) == (0, 0)
    found = explanations(read_explanations(benchmark.items, results), resamples=20)
    assert found is not None
    assert (found["verdict_accuracy"], found["agreement"]["n"]) == (None, 1)


def test_a_calibrated_verdict_uses_the_threshold(benchmark: Benchmark) -> None:
    """As the detector says it: at the threshold itself an image is real, in every figure."""
    results = run(benchmark, FakeEngine(lambda image, question, candidates: [0.0] * len(candidates)), generate=False)
    found = calibrated_figures(item_scores(results, "logprob"), Calibration(n=9, threshold=0.5), resamples=20)
    assert found is not None
    assert (found["tpr"], found["tnr"], found["accuracy"]) == (0, 1, found["balanced_accuracy"])
    doubtful = calibrated_figures(item_scores(results, "logprob"), Calibration(n=9, reliable=False), resamples=20)
    assert doubtful is not None
    assert (found["reliable"], doubtful["reliable"]) == (True, False)


def test_right_verdict_for_the_wrong_reason(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_benchmark(tmp_path, [choice_row(tmp_path, ground_truth="D")]))
    summary = summarise(
        run(benchmark, FakeEngine(oracle), generate=False)
    )  # the oracle says "hand", the truth is "text"
    assert summary["accuracy"] == 0
    assert summary["choice_verdict_accuracy"] == 1
    assert summary["right_verdict_wrong_reason"] == 1


def test_shards_and_resuming_leave_no_gap_and_no_duplicate(benchmark: Benchmark, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = run(benchmark, FakeEngine(oracle), batch_size=1)
    # Process 0 of 2 is interrupted after its first image, in the middle of writing a line.
    with ResultWriter(out, 0) as writer:
        writer.write(next(score(benchmark, FakeEngine(oracle), ask=FakeAsk, shard=slice(0, None, 2), batch_size=1)))
    with (out / "results.jsonl").open("a") as file:
        file.write('{"id": "item2", "kind": "tr')
    with ResultWriter(out, 1) as writer:
        writer.write(run(benchmark, FakeEngine(oracle), shard=slice(1, None, 2)))
    order = [item.id for item in benchmark.items]
    done = {result.key for result in merge(out, order)}
    assert 0 < len(done) < len(whole)
    assert not list(out.glob("*.part-*"))
    # It continues with three processes; one of them answers a prompt again.
    for process in range(3):
        with ResultWriter(out, process) as writer:
            writer.write(
                run(benchmark, FakeEngine(oracle), shard=slice(process, None, 3), done=done if process else ())
            )
    merged = merge(out, order)
    assert sorted(merged, key=lambda r: r.key) == sorted(whole, key=lambda r: r.key)
    assert read_results(out / "results.jsonl") == merged
    assert [r.id for r in merged] == sorted((r.id for r in merged), key=order.index)


def test_a_truncated_line_does_not_affect_the_next(tmp_path: Path, benchmark: Benchmark) -> None:
    results = run(benchmark, FakeEngine(oracle))
    with ResultWriter(tmp_path) as writer:
        writer.write(results[:2])
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"id": "cut')
    with ResultWriter(tmp_path) as writer:  # without a merge in between
        writer.write(results[2:4])
    assert read_results(tmp_path / "results.jsonl") == results[:4]


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_model_with_non_finite_scores_ends_the_run_at_once(benchmark: Benchmark, broken: float) -> None:
    engine = FakeEngine(lambda image, question, candidates: [broken] * len(candidates))
    with pytest.raises(UserError, match="overflow in their dtype"):
        next(score(benchmark, engine, ask=FakeAsk))


def test_only_missing_prompts_are_asked(benchmark: Benchmark) -> None:
    needed = [key_of(*asked) for image in plan(benchmark) for asked in image]
    engine = FakeEngine(oracle)
    results = run(benchmark, engine, done=needed[:-2])
    assert [result.key for result in results] == needed[-2:]
    assert engine.images_seen == 1
    assert run(benchmark, engine, done=needed) == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_that_the_model_refuses_is_left_out_with_its_reason(
    benchmark: Benchmark, batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first = benchmark.items[0]
    size = benchmark.image(first.images[0]).size

    def refusal(given):
        return f"{size[0]}x{size[1]} pixels, which x does not read: too tall" if given == size else None

    engine = FakeEngine(oracle, lambda image, question: "fake" if _red(image) else "Real.")
    results = run(benchmark, engine, refusal=refusal, batch_size=batch_size)
    # Its prompts have a line each, so that a run that goes on does not ask them again.
    assert {result.key for result in results} == {key_of(*asked) for image in plan(benchmark) for asked in image}
    assert {result.id for result in results if result.refused} == {first.id}
    kept, answered = without_refused(benchmark, results)
    assert [item.id for item in kept.items] == [item.id for item in benchmark.items[1:]]
    assert kept.skipped == [f"{first.id}: {refusal(size)}"]
    assert "1 items are left out (item0: 8x8 pixels" in capsys.readouterr().err
    summary = summarise(answered)
    assert summary == summarise(results)  # the file without them gives the same figures
    assert (summary["n"], summary["accuracy"]) == (4, 1)
    with pytest.raises(UserError, match="reads none of its images"):
        without_refused(benchmark, run(benchmark, engine, refusal=lambda given: "no"))
