from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmark.fakes import FakeAsk, FakeEngine, verdict_rows, write_benchmark, write_image
from vlm_detect.benchmark.benchmark import Benchmark
from vlm_detect.benchmark.compare import compare, load_run, read_csv
from vlm_detect.benchmark.compare_report import write_compare_report
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.results import ResultWriter
from vlm_detect.benchmark.score import generated_result, score
from vlm_detect.config import write_json
from vlm_detect.errors import UserError
from vlm_detect.questions.ask import EDIT_QUESTION
from vlm_detect.questions.kind import prompts_of
from vlm_detect.stats.calibration import Calibration


def _knows(image, question, candidates):
    red = image.getpixel((0, 0)) == (255, 0, 0)
    return [0.0 if (c == "Fake") == red else -3.0 for c in candidates]


def _guesses(image, question, candidates):
    return [-(image.width * 37 % 11) / 4, -1.0]


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    return load_benchmark(write_benchmark(tmp_path, verdict_rows(tmp_path, 24)))


def written(benchmark: Benchmark, out: Path, rule) -> Path:
    with ResultWriter(out) as writer:
        for results in score(benchmark, FakeEngine(rule), ask=FakeAsk, generate=False):
            writer.write(results)
    return out


def scores_csv(path: Path, rows: list[str], header: str = "image,p_fake") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8", errors="surrogateescape")
    return path


def test_a_better_run_differs_significantly_from_a_guess(benchmark: Benchmark, tmp_path: Path) -> None:
    runs = [
        load_run(written(benchmark, tmp_path / "guess", _guesses)),
        load_run(written(benchmark, tmp_path / "knows" / "eval", _knows)),
    ]
    assert [run.name for run in runs] == ["guess", "knows"]
    found = compare(runs, by={"parity": {f"item{i}": "odd" if i % 2 else "even" for i in range(24)}})
    assert found["items"] == 24
    assert found["runs"]["knows"]["auroc"] == 1
    against = found["against_first"]["knows"]
    assert against["mcnemar"]["only_first"] == 0
    assert against["mcnemar"]["p"] < 0.05
    assert against["accuracy"]["difference_ci95"][0] > 0
    assert against["auroc"]["p"] < 0.05
    assert found["by_parity"]["odd"]["knows"]["n"] == 12


def test_the_page_shows_the_training_curves_of_a_run(benchmark: Benchmark, tmp_path: Path) -> None:
    eval_dir = written(benchmark, tmp_path / "knows" / "eval", _knows)
    Calibration(threshold=0.3, unsure_low=0.2, unsure_high=0.4, n=50).save(tmp_path / "knows")
    clean = {"family": "tier", "level": "clean", "both": {"auroc": 1.0, "balanced_accuracy": 0.9, "n": 24, "ci95": {}}}
    blur = {"family": "blur", "level": 1.0, "both": {"auroc": 0.7, "balanced_accuracy": 0.6, "n": 24, "ci95": {}}}
    write_json(eval_dir / "robustness" / "robustness.json", {"conditions": {"clean": clean, "blur_1": blur}})
    runs = [load_run(written(benchmark, tmp_path / "guess", _guesses)), load_run(eval_dir)]
    found = compare(runs, resamples=20)
    calibrated = found["runs"]["knows"]["calibrated"]
    assert (calibrated["threshold"], calibrated["accuracy"], calibrated["unsure"]["share"]) == (0.3, 1, 0)
    assert "calibrated" not in found["runs"]["guess"]
    write_compare_report(
        tmp_path / "page.html", found, runs, baselines={"chance": 0.5}, columns=[], benchmark=benchmark
    )
    html = (tmp_path / "page.html").read_text()
    for part in ("Balanced accuracy, calibrated", "Robustness: blur", "knows: 1 0.70", "Balanced accuracy by tier"):
        assert part in html, part
    for part in (
        "What most runs get wrong",
        "1 of 2 runs are wrong",
        "Confusion, guess",
        "Accuracy by kind of question",
    ):
        assert part in html, part


def test_curves_of_another_model_are_not_shown(benchmark: Benchmark, tmp_path: Path) -> None:
    """`runs/robustness` lies next to every run whose results are in `runs/NAME` itself."""
    write_json(tmp_path / "robustness" / "robustness.json", {"conditions": {}, "model": "a"})
    write_json(tmp_path / "robustness" / "run.json", {"model": "a", "adapter": None, "weights_sha256": {}})
    for name, shown in (("a", True), ("b", False)):
        run = written(benchmark, tmp_path / name, _knows)
        write_json(run / "run.json", {"model": name, "adapter": None, "weights_sha256": {}})
        assert bool(load_run(run).robustness) == shown


def test_edits_have_separate_rows(tmp_path: Path) -> None:
    rows = [{**row, "id": f"v{i}"} for i, row in enumerate(verdict_rows(tmp_path, 4))]
    for i, row in enumerate(verdict_rows(tmp_path, 4)):
        label = "edited" if i % 2 else "real"
        asked = {"question": EDIT_QUESTION, "ground_truth": "Yes." if i % 2 else "No."}
        rows.append(
            {**row, **asked, "id": f"e{i}", "metadata": {"label": label, "generator": "blur", "asked": "edited"}}
        )
    benchmark = load_benchmark(write_benchmark(tmp_path, rows))

    def rule(image, question, candidates):
        if candidates[0] == "Real":
            return _knows(image, question, candidates)
        # Altered are the red ones; the opposite question is answered the other way round.
        red = image.getpixel((0, 0)) == (255, 0, 0)
        return [0.0, -2.0] if red == (question == EDIT_QUESTION) else [-2.0, 0.0]

    run = load_run(written(benchmark, tmp_path / "run", rule))
    figures = compare([run, replace(run, name="same")], resamples=20)["runs"]["run"]
    assert (figures["n"], figures["auroc"]) == (4, 1)  # the chief figures are of the verdicts alone
    assert (figures["edits"]["n"], figures["edits"]["accuracy"], figures["edits"]["auroc"]) == (4, 1, 1)
    assert list(figures["by_kind"]) == ["edit_true_false", "true_false"]


def test_equal_runs_do_not_differ(benchmark: Benchmark, tmp_path: Path) -> None:
    run = load_run(written(benchmark, tmp_path / "a", _guesses))
    against = compare([run, load_run(written(benchmark, tmp_path / "b", _guesses))])["against_first"]["b"]
    assert against["mcnemar"] == {"only_first": 0, "only_second": 0, "p": 1.0}
    assert against["auroc"] == {"difference_ci95": [0, 0], "p": 1.0}


def test_a_score_file_is_compared_with_a_model(benchmark: Benchmark, tmp_path: Path) -> None:
    rows = [f"some/folder/{i}.png,{0.9 if i % 2 else 0.2}" for i in range(24)]
    detector = load_run(scores_csv(tmp_path / "detector.csv", rows), benchmark)
    found = compare([load_run(written(benchmark, tmp_path / "guess", _guesses)), detector])
    assert found["items"] == 24
    assert found["runs"]["detector"]["accuracy"] == found["runs"]["detector"]["auroc"] == 1
    assert found["runs"]["detector"]["by_generator"]["big_gan"]["n"] == 12


def test_only_shared_items_are_compared(benchmark: Benchmark, tmp_path: Path) -> None:
    whole = load_run(written(benchmark, tmp_path / "whole", _knows))
    half = Benchmark("half", benchmark.items[:12], benchmark.image, "x")
    found = compare([whole, load_run(written(half, tmp_path / "half", _guesses))])
    assert found["items"] == 12
    assert found["left_out"] == {"whole": 12, "half": 0}


def test_score_files_with_a_label_column(tmp_path: Path) -> None:
    rows = ["a.png,0.9,generated,glide", "b.png,0.4,real,", "c.png,0.7,fake,"]
    scores = read_csv(scores_csv(tmp_path / "s.csv", rows, "image,p_fake,label,generator"), None)
    assert [s.is_fake for s in scores] == [True, False, True]
    assert [s.generator for s in scores] == ["glide", "real", "unknown"]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a.png,1.5"], "image,p_fake", "line 2: p_fake '1.5' is not a number from 0 to 1"),
        (["a.png,x"], "image,p_fake", "is not a number"),
        (["0.5"], "p_fake,image", "line 2: no image"),
        (["\udcff"], "image,p_fake", "cannot be read as CSV"),
        (["a.png,nan"], "image,p_fake", "is not a number"),
        (["a.png,0.5", "a.png,0.5"], "image,p_fake", "line 3: image a.png occurs twice"),
        (["a.png,0.5"], "image,score", "has the columns image, p_fake"),
        ([], "image,p_fake", "contains no scores"),
        (["a.png,0.5"], "image,p_fake", "label '' is neither real nor generated"),
    ],
)
def test_bad_score_files(tmp_path: Path, rows: list[str], header: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_run(scores_csv(tmp_path / "s.csv", rows, header))
    assert message in str(error.value)


def test_a_score_for_every_image_is_needed(benchmark: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no score for 23 of the benchmark's images"):
        load_run(scores_csv(tmp_path / "s.csv", ["0.png,0.5"]), benchmark)


def test_equal_ids_of_different_benchmarks_are_refused(benchmark: Benchmark, tmp_path: Path) -> None:
    one = load_run(written(benchmark, tmp_path / "one", _knows))
    turned = [replace(item, ground_truth="Real") for item in benchmark.items]
    reworded = [replace(item, question=f"{item.question} Look closely.") for item in benchmark.items]
    for name, items in (("turned", turned), ("reworded", reworded)):
        other = load_run(written(replace(benchmark, items=items), tmp_path / name, _knows))
        with pytest.raises(UserError, match="different benchmarks: item item"):
            compare([one, other], resamples=20)


def test_recorded_answers_are_compared_with_a_run(benchmark: Benchmark, tmp_path: Path) -> None:
    """Their images were not looked at, so their groups are named otherwise."""
    run = load_run(written(benchmark, tmp_path / "run", _knows))
    with ResultWriter(tmp_path / "answers") as writer:
        items = [replace(item, metadata={"generator": item.metadata["generator"]}) for item in benchmark.items]
        writer.write(generated_result(prompts_of(item)[0], item.ground_truth) for item in items)
    found = compare([run, load_run(tmp_path / "answers")], resamples=20)
    assert (found["items"], found["runs"]["answers"]["accuracy"]) == (24, 1)


def test_folders_distinguish_images_of_the_same_name(tmp_path: Path) -> None:
    rows = []
    for label, truth, colour in (("real", "Real", "blue"), ("fake", "Fake", "red")):
        (tmp_path / label).mkdir()
        write_image(tmp_path / label / "1.png", colour)
        about = {"question": "Real or Fake?", "ground_truth": truth, "metadata": {"generator": label}}
        rows.append({"id": f"the {label} one", "image": f"{label}/1.png", **about})
    benchmark = load_benchmark(write_benchmark(tmp_path, rows))
    whole = scores_csv(tmp_path / "whole.csv", ["x/real/1.png,0.1", "x/fake/1.png,0.9"])
    assert [score.p_fake for score in read_csv(whole, benchmark)] == [0.1, 0.9]
    for lines in (["1.png,0.9"], ["a/1.png,0.1", "b/1.png,0.9"], ["real/1.png,0.1"]):
        with pytest.raises(UserError, match="matches several images of the benchmark"):
            read_csv(scores_csv(tmp_path / "s.csv", lines), benchmark)
    labelled = scores_csv(tmp_path / "l.csv", ["real/1.png,0.1,real", "fake/1.png,0.9,fake"], "image,p_fake,label")
    assert [score.id for score in read_csv(labelled, None)] == ["real/1.png", "fake/1.png"]


def test_runs_without_a_common_item(benchmark: Benchmark, tmp_path: Path) -> None:
    one = load_run(written(benchmark, tmp_path / "one", _knows))
    other = load_run(scores_csv(tmp_path / "s.csv", ["a.png,0.5,real"], "image,p_fake,label"))
    with pytest.raises(UserError, match="share no item"):
        compare([one, other])
    with pytest.raises(UserError, match=r"no results\.jsonl"):
        load_run(tmp_path)
