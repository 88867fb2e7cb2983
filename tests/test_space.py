"""deploy/space: the page of the Hugging Face Space starts, asks for an image, and judges an upload."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest
import yaml

from tests.chromium import chromium
from vlm_detect.config import REPOSITORY

SPACE = REPOSITORY / "deploy" / "space"
PHOTO = REPOSITORY / "docs" / "nano_renders.png"


def test_its_card_names_the_app_and_the_version_that_is_installed():
    card = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert card["sdk"] == "gradio"
    assert (SPACE / card["app_file"]).is_file()
    assert f"gradio=={card['sdk_version']}" in (SPACE / "requirements.txt").read_text().splitlines()
    assert len(card["short_description"]) <= 60  # the Hub's limit
    compile((SPACE / card["app_file"]).read_text(encoding="utf-8"), "app.py", "exec")


@pytest.fixture
def address() -> Iterator[str]:
    pytest.importorskip("gradio", reason="needs gradio, in an environment of its own: deploy/space/requirements.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "VLM_DETECT_MODEL": "nano"}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=SPACE, env={**os.environ, **settings})
    found = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "the app ended"
            try:
                urllib.request.urlopen(found, timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield found
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_an_upload_is_judged(address: str):
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_role("button", name="Judge").click()
        page.get_by_text("Choose an image first").first.wait_for()
        page.locator("input[type=file]").first.set_input_files(PHOTO)
        page.locator("img[alt]").first.wait_for()
        page.get_by_role("button", name="Judge").click()
        verdict = page.locator("#verdict").filter(has_text=re.compile("log-odds [+-]"))
        verdict.wait_for()
        assert re.match(r"(real|generated|unsure)", verdict.inner_text())
        assert "was never finetuned or calibrated" in verdict.inner_text()
        assert "a verdict is a lead" in page.inner_text("body")
