"""A detector of random weights, and a server of it on a free port of this machine."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.factories import tiny_vlm
from vlm_detect import Detector
from vlm_detect.measures.calibration import MeasureCalibration, fit_calibration
from vlm_detect.measures.registry import measure_image

pytest.importorskip("fastapi", reason="needs the extra serve")
import uvicorn

from vlm_detect.apps.connections import Server, http_config, open_socket
from vlm_detect.apps.server import create_app
from vlm_detect.apps.settings import ServerSettings
from vlm_detect.apps.tasks import Write
from vlm_detect.apps.worker import Job
from vlm_detect.models.cnn.detector import CnnDetector


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vlm = tiny_vlm()
    folder = tmp_path_factory.mktemp("model")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def detector(model_folder: Path) -> Detector:
    return Detector(str(model_folder))


@pytest.fixture(scope="session")
def measures() -> MeasureCalibration:
    """Of photos of the size of `make_photo`, with noise, and of generated images with little."""
    arrays = [np.random.default_rng(i).normal(128, 20 if i < 30 else 3, (20, 30, 3)).clip(0, 255) for i in range(60)]
    measured = [measure_image(array.astype(np.uint8)) for array in arrays]
    return fit_calibration(measured, np.arange(60) >= 30, [str(i) for i in range(60)])


@pytest.fixture
def photo() -> Image.Image:
    return make_photo(3)


def make_photo(seed: int, size: tuple[int, int] = (30, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def file_bytes(image: Image.Image, format: str = "PNG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def data_url(image: Image.Image | bytes) -> str:
    data = image if isinstance(image, bytes) else file_bytes(image)
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@dataclass
class Running:
    url: str
    server: uvicorn.Server
    detector: Detector
    app: object

    @property
    def worker(self):
        return self.app.state.service.worker  # type: ignore[attr-defined]


@contextmanager
def serving(*detectors: Detector, cnn: CnnDetector | None = None, **settings: object) -> Iterator[Running]:
    options = ServerSettings(**{"max_new_tokens": 12, "drain_s": 20, **settings})
    app = create_app({d.name: d for d in detectors}, options, cnn)
    with open_socket("127.0.0.1", 0) as bound:
        server = Server(http_config(app, options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", server, detectors[0], app)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server did not end"


def until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts go on until nobody wants them, however slow or fast the machine is."""

    def lane(self: Write, jobs: Sequence[Job]) -> Iterator[None]:
        while any(job.wanted() for job in jobs):
            for job in jobs:
                job.emit("and ")
            time.sleep(0.01)
            yield

    monkeypatch.setattr(Write, "lane", lane)


@pytest.fixture(scope="module")
def server(detector: Detector) -> Iterator[Running]:
    with serving(detector) as running:
        yield running
