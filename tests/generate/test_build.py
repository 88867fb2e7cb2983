"""The last steps of every program that makes a dataset: made once, reported, cleaned up, and uploaded on request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from vlm_detect.config import write_run_json
from vlm_detect.errors import UserError
from vlm_detect.generate.build import build_dataset, work_folder
from vlm_detect.generate.dataset_files import Packed
from vlm_detect.generate.hub import push_dataset
from vlm_detect.generate.options import Upload

SETTINGS = {"size": 32}


class FakeHub:
    """Keeps what it is asked for."""

    calls: list[tuple[str, Any]]

    def __init__(self) -> None:
        type(self).calls = []

    def create_repo(self, name: str, **options: Any) -> str:
        self.calls.append((name, options))
        return f"https://huggingface.co/datasets/{name}"

    def upload_folder(self, *, folder_path: Path, repo_id: str, **options: Any) -> None:
        self.calls.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    return FakeHub


def build(out: Path, job: str | None = None, **options: Any) -> list[str]:
    """The dataset of one file; what was done, in order."""
    done = []

    def steps(work: Path) -> str | None:
        work.mkdir()
        done.append("steps")
        return job

    def pack(work: Path) -> Packed:
        assert work.is_dir()
        done.append("pack")
        (out / "data").mkdir(parents=True)
        (out / "README.md").write_text("a card")
        write_run_json(out, SETTINGS)
        return Packed({"train": 1}, "pairs", {"train": 1}, {})

    build_dataset(out, SETTINGS, steps=steps, pack=pack, **options)
    return done


def test_a_dataset_is_made_once_and_its_work_folder_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs"
    assert build(out) == ["steps", "pack"]
    assert "1 pairs (train 1 of 1 groups); rejected: none" in capsys.readouterr().out
    work_folder(out).mkdir()  # of a run that was killed behind its last step
    assert build(out) == []
    assert "nothing left to do" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_a_folder_without_a_name_of_its_own_is_refused() -> None:
    for out in (Path(), Path(".."), Path("/")):
        with pytest.raises(UserError, match="the path of the new folder itself"):
            work_folder(out)


def test_queued_shards_are_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(tmp_path / "pairs", job="4711") == ["steps"]
    assert "job 4711 is queued; run the same command again" in capsys.readouterr().out
    assert work_folder(tmp_path / "pairs").is_dir()


def test_work_is_kept_on_request(tmp_path: Path) -> None:
    build(tmp_path / "pairs", keep_work=True)
    assert work_folder(tmp_path / "pairs").is_dir()


def test_new_and_finished_datasets_are_uploaded_completely(
    tmp_path: Path, hub: type[FakeHub], capsys: pytest.CaptureFixture[str]
) -> None:
    for expected in (["steps", "pack"], []):
        assert build(tmp_path / "pairs", push_to_hub="me/pairs") == expected
        (_, options), (name, files) = hub.calls
        assert options == {"repo_type": "dataset", "private": True, "exist_ok": True}
        assert (name, files) == ("me/pairs", ["README.md", "data", "run.json"])
        assert "uploaded to https://huggingface.co/datasets/me/pairs" in capsys.readouterr().out


def test_nothing_is_uploaded_without_the_flag(tmp_path: Path, hub: type[FakeHub]) -> None:
    hub.calls = []
    build(tmp_path / "pairs")
    assert hub.calls == []


def test_a_failed_upload_is_reported(tmp_path: Path, hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(UserError, match=r"no network.*hf auth login.*is complete"):
        push_dataset(tmp_path, "me/pairs")
    with pytest.raises(UserError, match="not a Hub name"):
        Upload("not a name")
