"""`make demo`, whole: minutes on two cores, and what the README says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent


def run_demo(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "recipes" / "demo.py"), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_finetunes_a_detector_and_resumes(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = run_demo(out)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finetuned"]["groups"] >= 2
    assert summary["finetuned"]["auroc"] >= 0.85
    assert 0.35 <= summary["base"]["auroc"] <= 0.65
    assert summary["cnn"]["n"] == summary["finetuned"]["n"]
    assert summary["cnn"]["auroc"] >= 0.7
    explained = summary["finetuned"]["explanations"]["measured"]
    assert explained["claims_an_image"]["share"] > 0.2
    assert explained["truth"]["share"] > 0.5
    rows = [json.loads(line) for line in (out / "explained.jsonl").read_text().splitlines()]
    assert {"example_photo.png", "example.png"} < {Path(row["path"]).name for row in rows}
    assert all(row["reasons"] for row in rows)
    assert (out / "chat.txt").read_text().strip() not in ("", "Yes.", "No.", "Real.", "AI-generated.")
    page = (out / "report.html").read_text()
    assert "confirmed by measurement" in page
    assert "ROC curve; area under it: base" in page
    assert "means little" in page
    assert "nothing in the wild" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert str(out / "report.html") in done.stdout

    again = run_demo(out)
    assert again.returncode == 0
    assert json.loads((out / "summary.json").read_text()) == summary
    assert "\n$ " in done.stdout
    assert "\n$ " not in again.stdout, "the second run did the work again"
