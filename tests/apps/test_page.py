"""The page in a headless Chromium, with the mouse, the keyboard, and files that are no images."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apps.conftest import Running, make_photo, serving, until
from tests.apps.test_api import SAID, STATUSES, said_of
from tests.apps.test_server import Gate, submit
from tests.chromium import chromium
from vlm_detect.infer.detector import Detector
from vlm_detect.measures.calibration import MeasureCalibration
from vlm_detect.stats.calibration import Calibration


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    yield from open_page(browser, server.url)


def open_page(browser: Any, url: str, **options: object) -> Iterator[Any]:
    """A page that asks for nothing but its server and whose console stays free of errors."""
    page = browser.new_page(**options)
    page.set_default_timeout(60_000)
    foreign: list[str] = []
    errors: list[str] = []
    page.on("request", lambda r: foreign.append(r.url) if not r.url.startswith((url, "blob:", "data:")) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" and "status of 4" not in m.text else None)
    page.goto(url)
    yield page
    page.close()
    assert (foreign, errors) == ([], [])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("a.png", "b.png", "<b>x.png", "bad.jpg")}
    for seed, name in enumerate(("a.png", "b.png", "<b>x.png")):
        make_photo(seed, (96, 64)).save(paths[name])
    paths["bad.jpg"].write_text("no image")
    return paths


def test_verdict_explanation_map_and_follow_up(page, files, server: Running) -> None:
    expected = server.detector(files["a.png"])  # before the server's thread uses the same model
    page.set_input_files("#single-file", files["a.png"])
    page.get_by_text(f"No verdict: {expected.caveat}.", exact=True).wait_for()
    page.locator(".reasons").wait_for()
    assert page.locator(".verdict-word").count() == 0
    assert f"it leans to {expected.label}" in page.locator(".facts").first.text_content()
    assert page.locator("[role=meter]").get_attribute("aria-valuenow") == f"{expected.p_fake:.3f}"
    said = expected.explanation(12)
    assert page.locator(".reasons li p:first-child").all_text_contents() == [one.text for one in said.reasons]
    assert set(page.locator(".reasons .status").all_text_contents()) == {"Not checked"}
    assert page.locator(".warning").count() == len(expected.contradictions_with(said))
    assert "not calibrated" in page.locator(".facts").first.text_content()

    page.get_by_role("button", name="Show the evidence").click()
    page.locator("#layer:not([hidden])").wait_for()
    until(lambda: page.evaluate("document.getElementById('layer').naturalWidth") == 96)  # once it is decoded
    assert f"{abs(expected.map().values).max():.3f} nats" in page.locator("#legend").text_content()
    page.get_by_role("button", name="Hide the evidence").click()
    assert page.locator("#layer").is_hidden()

    page.get_by_label("Question").fill("What is it?")
    page.keyboard.press("Enter")
    page.locator(".answer:not(.writing)").wait_for()
    assert page.locator(".question").text_content() == "What is it?"
    assert page.locator(".answer").text_content() == expected.ask("What is it?", 12)


def test_a_calibrated_verdict_is_set_in_large_letters(browser, detector: Detector, files, monkeypatch) -> None:
    monkeypatch.setattr(detector, "calibration", Calibration(n=30))
    expected = detector(files["a.png"])
    word = {"generated": "AI-generated", "real": "Real", "unsure": "Unsure"}[expected.label]
    with serving(detector) as running:
        for page in open_page(browser, running.url):
            page.set_input_files("#single-file", files["a.png"])
            page.locator(".reasons").wait_for()
            assert page.locator(".verdict-word").all_text_contents() == [word]
            assert page.locator(".caveat").count() == 0
            page.get_by_role("tab", name="Many images").click()
            page.set_input_files("#batch-file", files["a.png"])
            page.locator(f"td b.{expected.label}").wait_for()
            assert "mean little" not in page.locator("#batch-status").text_content()


def test_reasons_with_their_status_and_their_places_on_the_image(
    browser, detector: Detector, measures: MeasureCalibration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_photo(0).save(tmp_path / "a.png")  # of the size of the measured photos
    monkeypatch.setattr(detector, "measures", measures)
    confirmed = detector(tmp_path / "a.png").check(SAID).reasons[0]
    with serving(detector) as running:
        said_of(monkeypatch, detector, measures, f"{SAID} The <b>ear</b> at the top left is odd. So is its top left.")
        for page in open_page(browser, running.url):
            page.set_input_files("#single-file", tmp_path / "a.png")
            page.locator(".reasons").wait_for()
            items = page.locator(".reasons li")
            statuses = [item.get_attribute("class") for item in items.all()]
            assert statuses[:5] == [*STATUSES, "unchecked", "unchecked"]
            shown = items.first.locator(".status").text_content()
            assert shown.startswith("Confirmed by measurement: noise strength ")
            assert f"percentile {confirmed.percentile:.0f} of photos of this size; supports real" in shown
            assert page.get_by_text("The <b>ear</b>").count() == 1  # as text
            page.locator("#boxes:not([hidden])").wait_for()
            assert page.locator("#boxes").get_attribute("viewBox") == "0 0 30 20"
            assert page.locator("#boxes text").all_text_contents()[:2] == ["4", "5"]
            first, second = (page.locator("#boxes rect").nth(i).bounding_box() for i in range(2))
            assert first["x"] < second["x"]
            assert first["width"] > second["width"]
            image = page.locator("#preview").bounding_box()
            assert first["x"] + first["width"] <= image["x"] + image["width"] / 3 + 1
            page.get_by_role("button", name="Hide the places").click()
            assert page.locator("#boxes").is_hidden()
            page.get_by_role("button", name="Show the places").click()
            assert page.locator("#boxes").is_visible()


def test_an_explanation_without_a_reason_says_so(
    browser, detector: Detector, measures: MeasureCalibration, monkeypatch: pytest.MonkeyPatch, files
) -> None:
    with serving(detector) as running:
        said_of(monkeypatch, detector, measures, "")
        for page in open_page(browser, running.url):
            page.set_input_files("#single-file", files["a.png"])
            page.get_by_text("No reason is given.").wait_for()
            assert page.get_by_role("button", name="Hide the places").is_hidden()


def test_a_bad_file_is_reported_and_the_next_one_judged(page, files) -> None:
    page.set_input_files("#single-file", files["bad.jpg"])
    page.get_by_role("alert").get_by_text("not_an_image").wait_for()
    assert page.locator("#follow-up").is_hidden()
    page.set_input_files("#single-file", files["a.png"])
    page.locator(".reasons").wait_for()
    assert page.get_by_role("alert").count() == 0


def test_an_error_remains_after_the_page_has_loaded(browser, server: Running, files) -> None:
    page = browser.new_page()
    page.set_default_timeout(60_000)
    waiting = []
    page.route("**/v1/models", lambda route: waiting.append(route))
    page.goto(server.url)
    page.set_input_files("#single-file", files["bad.jpg"])
    error = page.get_by_role("alert").get_by_text("not_an_image")
    error.wait_for()
    waiting[0].continue_()
    page.locator("#single-model option").wait_for(state="attached")
    assert error.is_visible()
    page.close()


@pytest.mark.usefixtures("endless")
def test_an_answer_can_be_stopped(browser, detector: Detector, files) -> None:
    with serving(detector) as running:
        for page in open_page(browser, running.url):
            page.set_input_files("#single-file", files["a.png"])
            page.get_by_label("Question").fill("What is it?")
            page.keyboard.press("Enter")
            until(lambda page=page: len(page.locator(".answer").text_content()) > 3)
            page.get_by_role("button", name="Stop").click()
            page.get_by_text("[stopped]").wait_for()


def test_tabs_and_files_by_keyboard(page, files) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-single"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-batch"
    assert page.locator("#batch").is_visible()
    assert page.locator("#single").is_hidden()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "batch-file"


def test_a_batch_sorts_and_is_saved(page, files, server: Running, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Many images").click()
    page.set_input_files("#batch-file", list(files.values()))
    page.get_by_text("4 of 4 images").wait_for()
    rows = page.locator("#batch-table tbody tr")
    assert rows.count() == 4
    assert page.get_by_text("<b>x.png").count() == 1  # as text
    assert "unreadable" in rows.filter(has_text="bad.jpg").text_content()
    page.get_by_role("button", name="p_fake").click()
    page.get_by_role("button", name="p_fake").click()
    assert page.locator("th[aria-sort=descending]").text_content() == "p_fake"
    good = ["a.png", "b.png", "<b>x.png"]
    p_fake = dict(zip(good, [v.p_fake for v in server.detector.judge([files[n] for n in good])], strict=True))
    shown = [row.locator("td").first.text_content() for row in rows.all()]
    assert shown == [*sorted(good, key=lambda name: -p_fake[name]), "bad.jpg"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    download.value.save_as(tmp_path / "saved.csv")
    saved = {row["name"]: row for row in csv.DictReader((tmp_path / "saved.csv").read_text().splitlines())}
    assert float(saved["a.png"]["p_fake"]) == pytest.approx(p_fake["a.png"], abs=1e-5)


def test_a_batch_waits_for_a_busy_server_within_its_limits(browser, detector: Detector, files) -> None:
    with serving(detector, max_jobs=1) as running:
        submit(running.worker, detector, gate := Gate(), [0])
        for page in open_page(browser, running.url):
            page.get_by_role("tab", name="Many images").click()
            page.set_input_files("#batch-file", [files["a.png"], files["bad.jpg"], files["b.png"]])
            until(lambda: 'route="/v1/verdict",status="429"' in httpx.get(f"{running.url}/metrics").text)
            gate.opened.set()
            page.get_by_text("3 of 3 images").wait_for()
            assert "1 unreadable" in page.locator("#batch-status").text_content()


# One file that cannot be read, and one that is read when `readSlow()` says so.
READERS = """() => {
  const read = FileReader.prototype.readAsDataURL;
  FileReader.prototype.readAsDataURL = function (file) {
    if (file.name === "bad.jpg") return setTimeout(() => this.onerror());
    if (file.name !== "a.png") return read.call(this, file);
    window.readSlow = () => {
      this.addEventListener("loadend", () => setTimeout(() => (window.slowWasRead = true)));
      read.call(this, file);
    };
  };
}"""


def test_files_that_the_browser_cannot_read_or_reads_too_late(browser, detector: Detector, model_folder, files) -> None:
    other = Detector(str(model_folder))
    other.name = "other"
    with serving(detector, other) as running:
        for page in open_page(browser, running.url):
            page.evaluate(READERS)
            page.get_by_role("tab", name="Many images").click()
            page.set_input_files("#batch-file", [files["b.png"], files["bad.jpg"], files["<b>x.png"]])
            page.get_by_text("3 of 3 images").wait_for()
            assert "1 unreadable" in page.locator("#batch-status").text_content()

            page.get_by_role("tab", name="Compare").click()
            page.set_input_files("#compare-file", files["bad.jpg"])
            page.get_by_role("alert").get_by_text("bad.jpg: the browser cannot read it").wait_for()
            page.set_input_files("#compare-file", files["a.png"])
            page.set_input_files("#compare-file", files["b.png"])
            page.locator("#compare .reasons").nth(1).wait_for()
            page.evaluate("readSlow()")
            until(lambda page=page: page.evaluate("window.slowWasRead"))
            assert page.locator("#compare-preview").get_attribute("alt") == "b.png"
            assert page.locator("#compare .reasons").count() == 2


def test_a_cleared_batch_is_not_judged_further(browser, detector: Detector, files, tmp_path: Path) -> None:
    for i in range(9):
        shutil.copy(files["a.png"], tmp_path / f"{i}.png")
    with serving(detector) as running:
        running.worker.max_lanes = 0  # nothing is judged
        for page in open_page(browser, running.url):
            page.get_by_role("tab", name="Many images").click()
            page.set_input_files("#batch-file", [tmp_path / f"{i}.png" for i in range(9)])
            until(lambda: running.worker.n_held == 8)
            page.get_by_role("button", name="Clear").click()
            until(lambda: running.worker.n_held == 0)
            running.worker.max_lanes = 4
            page.set_input_files("#batch-file", files["b.png"])
            page.get_by_text("1 of 1 images").wait_for()
        judged = re.findall(r"vlm_detect_verdicts_total\{.*\} (.*)", httpx.get(f"{running.url}/metrics").text)
        assert sum(map(float, judged)) == 1


def test_one_model_has_nothing_to_compare(page) -> None:
    page.get_by_role("tab", name="Compare").click()
    assert page.get_by_text("This server has one model").is_visible()


def test_two_models_side_by_side_behind_a_key(browser, detector: Detector, model_folder, files, tmp_path) -> None:
    shutil.copytree(model_folder, tmp_path / "other")
    other = Detector(str(tmp_path / "other"))
    with serving(detector, other, api_key="secret") as running:
        for page in open_page(browser, running.url):
            page.get_by_role("alert").get_by_text("asks for a key").wait_for()
            page.get_by_label("Key of this server").fill("secret")
            page.keyboard.press("Enter")
            page.locator("#key-form").wait_for(state="hidden")
            page.get_by_role("tab", name="Compare").click()
            page.set_input_files("#compare-file", files["a.png"])
            page.locator("#compare .reasons").nth(1).wait_for()
            shown = [
                page.locator(f"#compare-{side}-verdict .facts").first.text_content() for side in ("first", "second")
            ]
            assert detector.name in shown[0]
            assert other.name in shown[1]


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_overflows(browser, server: Running, files, width: int) -> None:
    for page in open_page(browser, server.url, viewport={"width": width, "height": 800}):
        page.set_input_files("#single-file", files["a.png"])
        page.locator(".reasons").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_role("tab", name="Many images").click()
        page.set_input_files("#batch-file", list(files.values()))
        page.get_by_text("4 of 4 images").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
