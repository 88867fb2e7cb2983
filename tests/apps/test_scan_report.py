"""The page of a scan: what stands on it, that it is one safe file, and that it sorts, filters and saves marks."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL.PngImagePlugin import PngInfo

from tests.apps.conftest import make_photo
from tests.chromium import chromium
from tests.pages.test_page import HOSTILE, assert_self_contained
from vlm_detect.apps.limits import NOT_FOR
from vlm_detect.apps.scan import scan
from vlm_detect.apps.scan_journal import PageOptions
from vlm_detect.infer.detector import Detector
from vlm_detect.stats.calibration import Calibration

SAID = "Its noise is stronger than in nine of ten photos of this size."


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of different sizes, one that says that it is generated, and a file that is none."""
    (tmp_path / "in").mkdir()
    for i, size in enumerate([(30, 20), (64, 48), (700, 500)]):
        made = PngInfo()
        if i == 0:
            made.add_text("parameters", f"a dog {HOSTILE}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1")
        make_photo(i, size).save(tmp_path / "in" / f"{i}.png", pnginfo=made)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "in"


@pytest.fixture
def judge(detector: Detector, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    """A detector that calls one of the images generated, and explains what is not real in one hostile sentence."""
    odds = sorted(detector(path).p_fake for path in photos.glob("*.png"))
    monkeypatch.setattr(detector, "calibration", Calibration(n=100).at_threshold((odds[1] + odds[2]) / 2))
    monkeypatch.setattr(detector.engine, "continue_prompts", lambda images, *_: [[f"{SAID} {HOSTILE}"] for _ in images])
    return detector


def rows_of(html: str) -> list[str]:
    return re.findall(r"<tr data-label.*?</tr>", html, re.DOTALL)


def test_a_report_shows_the_flagged_with_map_and_reasons(judge: Detector, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    labels = scan(judge, [str(photos), "gone.jpg"], out=out, chosen_by="--threshold 0.5")
    html = out.read_text()
    assert_self_contained(html)
    assert HOSTILE not in html
    assert "https://" not in html
    rows = rows_of(html)
    assert [re.search('data-label="(.*?)"', row)[1] for row in rows] == ["generated", "real", "real", "unreadable"]
    assert [row.count("<img") for row in rows] == [2, 1, 1, 0]  # the map is the second picture
    assert [SAID in row for row in rows] == [True, False, False, False]
    assert sum("The file says “generated” (PNG text)" in row for row in rows) == 1
    assert "<strong>1</strong> generated" in html
    assert "chosen by --threshold 0.5" in html
    assert "Not there: gone.jpg" in html
    assert all(sentence in html for sentence in NOT_FOR)
    assert (labels["missing"], labels["unreadable"]) == (1, 1)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    assert len(html) < 120_000  # of which the large photo's pictures are a bounded part


def test_a_page_of_names_alone(judge: Detector, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    scan(judge, [str(photos)], out=out, page=PageOptions(thumbnails=False), explain=True)
    html = out.read_text()
    assert "<img" not in html
    assert [SAID in row for row in rows_of(html)] == [True, True, True, False]
    scan(judge, [str(photos)], out=out, page=PageOptions(max_maps=0))
    assert [row.count("<img") for row in rows_of(out.read_text())] == [1, 1, 1, 0]


def test_an_interrupted_report_continues_and_the_old_page_stays(
    judge: Detector, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    scan(judge, [str(photos)], out=out)
    before = rows_of(out.read_text())
    judged: list[int] = []
    whole = judge.judge

    def interrupted(pictures: list) -> list:
        if judged:
            raise KeyboardInterrupt
        judged.append(len(pictures))
        return whole(pictures)

    with monkeypatch.context() as patch:
        patch.setattr(judge, "judge", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scan(judge, [str(photos)], out=out, batch_size=2)
    assert rows_of(out.read_text()) == before
    journal = tmp_path / ".report.html.rows.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"row": {"pa')
    monkeypatch.setattr(judge, "judge", lambda pictures: judged.append(len(pictures)) or whole(pictures))
    scan(judge, [str(photos)], out=out, batch_size=4)
    assert sum(judged) == 3
    assert rows_of(out.read_text()) == before
    assert not journal.exists()


def test_the_page_sorts_filters_and_saves_marks(judge: Detector, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    scan(judge, [str(photos)], out=out)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.goto(out.as_uri())

        def names() -> list[str]:
            return page.locator("tbody tr:visible .name").all_text_contents()

        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.get_by_role("button", name="Image").click()
        assert names() == ["0.png", "1.png", "2.png", "broken.jpg"]
        page.get_by_role("button", name="p_fake").click()
        down = names()
        page.get_by_role("button", name="p_fake").click()
        assert names() == [*down[2::-1], "broken.jpg"]
        page.get_by_role("button", name="real", exact=True).click()
        assert names() == [down[0], "broken.jpg"]
        page.get_by_role("button", name="real", exact=True).click()
        page.get_by_label("Find").fill("sampler")
        assert names() == ["0.png"]
        page.get_by_label(re.compile("What .*0.png is")).select_option("real")
        href = page.get_by_role("button", name="Save 1 mark").get_attribute("href")
    (row,) = csv.DictReader(unquote(href).partition(",")[2].splitlines())
    assert (row["path"], row["label"], len(row["sha256"])) == (str(photos / "0.png"), "real", 64)
