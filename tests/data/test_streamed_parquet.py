"""A Hub dataset of parquet files that is larger than the disk; in its place stand files in memory, read by ranges."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import GatedRepoError
from PIL import Image

from tests.scripts.here import run_here
from vlm_detect.data import streamed_parquet
from vlm_detect.data.image_sets import open_image_set
from vlm_detect.data.selection import Selection
from vlm_detect.errors import UserError

PER_GROUP, GROUPS = 4, 3
MAKERS = ("real", "real", "sdxl", "flux")  # of the rows of a row group, in turn: a file has one of them
IMAGE, TEXT = datasets.Image(), datasets.Value("string")


def noise(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (192, 192, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def black() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (192, 192)).save(buffer, "PNG")
    return buffer.getvalue()


class Hub:
    """Files in memory, and how many bytes of them were read."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.read = 0
        self.gated = False

    @contextmanager
    def open(self, url: str) -> Iterator[BinaryIO]:
        hub = self

        class Counted(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                data = super().read(size)
                hub.read += len(data)
                return data

        yield Counted(self.files[url])

    def builder(self, name: str, config: str | None) -> Any:
        found: dict[str, list[str]] = {}
        for url in self.files:
            found.setdefault(url.split("/")[-1].split("-")[0], []).append(url)
        return SimpleNamespace(config=SimpleNamespace(data_files=found))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Each file has the images of one maker: no first rows of the set would be balanced."""
    hub = Hub()
    for number, maker in enumerate(MAKERS):
        seeds = [100 * number + i for i in range(PER_GROUP * GROUPS)]
        columns = {
            "image": [{"bytes": noise(seed), "path": None} for seed in seeds],
            "mask": [{"bytes": black(), "path": None} for _ in seeds],
            "label": ["real" if maker == "real" else "fake"] * len(seeds),
            "model": [maker] * len(seeds),
        }
        features = datasets.Features({"image": IMAGE, "mask": IMAGE, "label": TEXT, "model": TEXT})
        buffer = io.BytesIO()
        table = datasets.Dataset.from_dict(columns, features).with_format("arrow")[:]
        pq.write_table(table, buffer, row_group_size=PER_GROUP)
        hub.files[f"hf://datasets/owner/name/data/train-0000{number}.parquet"] = buffer.getvalue()
    monkeypatch.setattr(streamed_parquet, "open_remote", hub.open)
    monkeypatch.setattr(datasets, "load_dataset_builder", hub.builder)
    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda name, timeout: SimpleNamespace(gated=hub.gated))
    return hub


def test_a_limit_is_stratified_and_reads_few_row_groups(hub: Hub) -> None:
    total = sum(map(len, hub.files.values()))
    images = open_image_set("hub", "owner/name", Selection(limit=8))
    assert hub.read < total / 10  # labels and generators of all rows, no image
    assert Counter((entry.label, entry.generator) for entry in images.entries) == {
        ("real", ""): 4,
        ("generated", "sdxl"): 2,
        ("generated", "flux"): 2,
    }
    hub.read = 0
    found = list(images.read(0, 8))
    assert hub.read < total / 2  # a row group of each of three files, where a stream reads all of four
    for entry, data in found:
        file, row = divmod(int(entry.where.partition("#")[2]), PER_GROUP * GROUPS)
        assert data == noise(100 * file + row)
        assert entry.mask == black()
    again = open_image_set("hub", "owner/name", Selection(limit=8))
    assert list(again.entries) == list(images.entries)
    assert [data for _, data in again.read(3, 6)] == [data for _, data in found[3:6]]


def test_an_import_stores_the_chosen_images_only(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = ["--from", "openfake", "hub", "--limit", 8, "--shard_size", 3, "--out", tmp_path / "out"]
    done = run_here("data_gen/import_images.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "label: fake = generated (24), real = real (24)" in done.stdout
    made = [row for file in (tmp_path / "out" / "data").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert Counter(row["generator"] for row in made) == {"": 4, "sdxl": 2, "flux": 2}
    assert {row["source"]["path_or_id"].partition(":")[0] for row in made} == {"ComplexDataLab/OpenFake"}
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_gated_set_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, repo_type: str) -> None:
        raise GatedRepoError("403 Client Error", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "auth_check", refuse)
    assert open_image_set("hub", "owner/name", Selection(limit=2)).entries
    hub.gated = True
    with pytest.raises(UserError, match=r"owner/name: a gated dataset: accept its terms at https://.*`hf auth login`"):
        open_image_set("hub", "owner/name", Selection(limit=2))


def test_what_cannot_be_streamed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"owner/name::test: has no split test \(has train\)"):
        streamed_parquet.open_streamed_splits("owner/name::test")
    url = next(iter(hub.files))
    hub.files[url] = hub.files[url][:-40]
    with pytest.raises(UserError, match=r"owner/name: train-00000.parquet cannot be read \("):
        open_image_set("hub", "owner/name", Selection(limit=2))
    hub.files["hf://datasets/owner/name/data/train-1.tar"] = b""
    assert streamed_parquet.open_streamed_splits("owner/name") is None
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: pytest.fail("the Hub is asked"))
    assert streamed_parquet.open_streamed_splits("owner/name") is None
