import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.benchmark.fakes import FakeAsk, FakeEngine, choice_row, verdict_rows, write_benchmark
from tests.benchmark.test_score import oracle
from tests.chromium import chromium
from vlm_detect.benchmark.demo_report import ExplainedImage, demo_report
from vlm_detect.benchmark.item_scores import item_scores
from vlm_detect.benchmark.items import load_benchmark
from vlm_detect.benchmark.report import notes_of, write_report
from vlm_detect.benchmark.report_parts import card_maker
from vlm_detect.benchmark.score import score
from vlm_detect.benchmark.summary import summarise
from vlm_detect.benchmark.text_baselines import text_baselines
from vlm_detect.infer.explanation import CheckedReason, Explanation
from vlm_detect.pages.page import (
    bars_figure,
    confusion_figure,
    fragment,
    loss_figure,
    photo,
    reliability_figure,
    render,
    roc_figure,
)
from vlm_detect.stats.metrics import figure_labels

HOSTILE = '<script>alert("x")</script>'


def assert_self_contained(html: str) -> None:
    for attribute, value in re.findall(r"""\b(src|href|url)\s*[=(]\s*["']?([^"')\s>]*)""", html):
        assert value.startswith("data:"), f"{attribute} fetches {value[:60]}"
    images = re.findall(r"<img [^>]*>", html)
    assert images
    assert all(re.search(r'alt="[^"]+"', image) for image in images)


def decoded(uri: str) -> bytes:
    return base64.b64decode(uri.partition("base64,")[2])


def test_report_is_one_safe_file(tmp_path: Path) -> None:
    rows = [*verdict_rows(tmp_path, 6), choice_row(tmp_path)]
    rows[0]["metadata"]["generator"] = HOSTILE
    rows[-1]["options"][0] = f"It is real {HOSTILE}"
    benchmark = load_benchmark(write_benchmark(tmp_path, rows))
    engine = FakeEngine(lambda image, question, candidates: [0.0] * len(candidates), lambda image, question: HOSTILE)
    results = [result for batch in score(benchmark, engine, ask=FakeAsk) for result in batch]
    summary = summarise(results, baselines=text_baselines(benchmark.items), resamples=50)
    write_report(tmp_path / "r.html", summary | {"model": HOSTILE, "skipped": 2}, results, benchmark)
    html = (tmp_path / "r.html").read_text()
    assert_self_contained(html)
    assert HOSTILE not in html
    assert "&lt;script&gt;" in html
    for part in ("Balanced accuracy", "longest", "Unsure", "Unparsed answers", "2 bad items", "7 source photos"):
        assert part in html, part


@pytest.mark.parametrize("name", ["$x^$", "a $\\frac{ $b", "50$ and 60$"])
def test_a_dollar_in_a_name_is_not_mathematics(name: str) -> None:
    y, p = np.array([0.0, 1.0]), np.array([0.2, 0.3])

    def glyphs(name: str) -> list[int]:
        pictures = (bars_figure({name: {"n": 1, "accuracy": 0.5}}, "Accuracy"), roc_figure({name: (y, p)}))
        return [decoded(picture.uri).count(b"<use ") for picture in pictures]

    assert glyphs(name) == glyphs(name.replace("$", "x"))


def test_notes_say_when_a_score_means_little() -> None:
    summary = {
        "groups": 2,
        "accuracy": 0.5,
        "floors": {"chance": 0.5, "longest": 0.8},
        "generate": {"unparsed_rate": 0.5},
    }
    notes = " ".join(notes_of(summary))
    assert "2 source photos" in notes
    assert "“longest” of 0.800" in notes
    assert "50 %" in notes
    assert notes_of({"groups": 200, "accuracy": 0.9, "floors": {"longest": 0.3}}) == []


def test_demo_report_shows_its_notes_and_everything_else(tmp_path: Path) -> None:
    real, twin = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    said = CheckedReason(
        "Its top is smooth.", "noise", (10, 0, 21, 10), "confirmed", -4.0, 3.0, "generated", "a_measure"
    )
    word = CheckedReason(HOSTILE, None, None, "unchecked")
    summary = {"accuracy": 0.75, "auroc": 0.9, "ci95": {"auroc": [0.5, 1.0]}, "floors": {"chance": 0.5}}
    demo_report(
        tmp_path / "demo" / "report.html",
        pairs=[(real, twin, "a dog & a cat", "test")],
        log_history=[{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}, {"train_runtime": 3.0}],
        summaries={
            "base": {**summary, "auroc": 0.5},
            "finetuned": {**summary, "witnesses": {"language_model": {"auroc": 0.625}, "head": {"auroc": 0.875}}},
        },
        answers=[
            (real, "Is this image AI-generated?", "No.", "No.", 0.25),
            (twin, "What is it?", HOSTILE, "a car", None),
        ],
        notes=["Nano models rehearse the pipeline."],
        explained=[
            ExplainedImage(real, "a photo", "real", 0.125, Explanation("Real.", ())),
            ExplainedImage(twin, "its twin", "generated", 0.875, Explanation(f"{said.text} {HOSTILE}", (said, word))),
        ],
    )
    html = (tmp_path / "demo" / "report.html").read_text()
    assert_self_contained(html)
    assert HOSTILE not in html
    for part in (
        "Nano models rehearse",
        "a dog &amp; a cat",
        "0.900",
        "0.500 to 1.000",
        "finetuned: language model alone",
        "0.625",
        "finetuned: head alone",
        "0.875",
        "0.250",
        "chance",
        "No reason is given.",
        "Its top is smooth.",
        "confirmed by measurement (a_measure -4, percentile 3 of photos); speaks for generated",
        "not checked",
        "generated, p_fake 0.875",
    ):
        assert part in html, part


def test_demo_report_without_training(tmp_path: Path) -> None:
    demo_report(tmp_path / "r.html", pairs=[], log_history=[], summaries={}, answers=[], notes=[])
    assert "Training" not in (tmp_path / "r.html").read_text()


def test_small_images_keep_their_pixels() -> None:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with Image.open(io.BytesIO(decoded(photo(small, "x").uri))) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(small))
    with Image.open(io.BytesIO(decoded(photo(small.resize((2000, 1000)), "x", max_side=256).uri))) as shown:
        assert shown.size == (256, 128)


def test_figures_are_reproducible_svg_with_numbers_in_the_alt_text() -> None:
    y, p = np.array([0, 0, 1, 1.0]), np.array([0.1, 0.6, 0.4, 0.9])
    pictures = [
        roc_figure({"a run": (y, p)}),
        bars_figure({"glide": {"n": 3, "accuracy": 0.5, "ci95": (0.2, 0.9)}}, "By generator"),
        confusion_figure(np.array([[3.0, 1.0], [0.0, 4.0]]), ["real", "generated"]),
    ]
    for picture in pictures:
        assert decoded(picture.uri).startswith(b"<?xml")
    assert "a run 0.750" in pictures[0].alt
    assert "glide 0.50" in pictures[1].alt
    assert "true real predicted generated: 1" in pictures[2].alt
    assert loss_figure([{"train_runtime": 1.0}]) is None


def test_a_table_of_three_scores_fits_a_phone(tmp_path: Path) -> None:
    """The last column of a table that scrolls sideways is not seen at all."""
    figures = dict.fromkeys(figure_labels(), 0.125)
    calibrated = {**figures, "threshold": 0.5, "fitted_on": 400}
    columns = ["By log-probability", "Calibrated", "Free generation"]
    rows = [{"name": label, "cells": [(0.125, [0.111, 0.999])] * 3} for label in figure_labels().values()]
    scores = fragment("report_sections.html.j2", "scores", columns=columns, rows=rows, calibrated=calibrated)
    summary = {"n": 4, "groups": 4, "model": "m", "skipped": 0}
    html = render("report.html.j2", title="t", summary=summary, notes=[], sections=[("Scores", scores)])
    (tmp_path / "report.html").write_text(html)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        seen, whole = page.evaluate("(s => [s.clientWidth, s.scrollWidth])(document.querySelector('.scroll'))")
        assert whole <= seen
        text, interval = page.evaluate(
            "['td', '.ci'].map(s => parseFloat(getComputedStyle(document.querySelector(s)).fontSize))"
        )
        assert min(text, interval) >= 10  # it can be read


def test_the_legend_of_the_reliability_diagram_hides_no_dot() -> None:
    rng = np.random.default_rng(0)
    y, p = (rng.random(200) < 0.5).astype(float), rng.random(200)
    shown = decoded(reliability_figure({"this run": (y, p)}).uri).decode()
    texts = re.findall(r"<!-- (.*?) -->", shown)
    assert {"calibrated", "this run", "The larger a dot, the more images it stands for"} <= set(texts)
    # In the order of drawing the legend is the figure's own and stands above the axes.
    axes, legend = shown.index('id="axes_1"'), shown.index('id="legend_1"')
    assert axes < legend
    top = min(float(found) for found in re.findall(r'clipPath id.*?<rect.*?y="([\d.]+)"', shown, re.DOTALL))
    places = [float(found) for found in re.findall(r"translate\([\d.]+ ([\d.]+)\)", shown[legend:])]
    assert places
    assert max(places) < top


def test_a_card_whose_answer_and_probability_disagree_says_why(tmp_path: Path) -> None:
    benchmark = load_benchmark(write_benchmark(tmp_path, verdict_rows(tmp_path, 2)))

    def rule(image, question, candidates):  # sure of "Fake" as it is asked, surer of the opposite the other way round
        return [0.0, -1.0] if "real or artificially" in question else [-9.0, 0.0]

    results = [result for batch in score(benchmark, FakeEngine(rule), ask=FakeAsk) for result in batch]
    scores = item_scores(results, "logprob")
    card = card_maker(benchmark)
    shown = [card(one) for one in scores]
    split = [one for one in scores if one.results[0].correct != (one.correct > 0.5)]
    assert split, [one.p_fake for one in scores]
    for one, made in zip(scores, shown, strict=True):
        assert bool(made["why"]) == (one in split)
    assert "mean over 2 wordings" in next(made["why"] for made in shown if made["why"])
    agreeing = [score for batch in score(benchmark, FakeEngine(oracle), ask=FakeAsk) for score in batch]
    assert not any(card(one)["why"] for one in item_scores(agreeing, "logprob"))
    write_report(
        tmp_path / "r.html", summarise(results, resamples=20) | {"model": "m", "skipped": 0}, results, benchmark
    )
    assert "mean over 2 wordings" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("name", ["report_sections.html.j2", "demo.html.j2"])
def test_pages_fit_a_phone(name: str) -> None:
    folder = Path(__file__).parents[2] / "vlm_detect" / "pages" / "templates"
    base = (folder / "base.html.j2").read_text()
    assert 'name="viewport" content="width=device-width' in base
    assert "@media (max-width: 40rem)" in base
    assert '<div class="scroll">' in (folder / name).read_text()
