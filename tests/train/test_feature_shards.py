"""A feature cache made by workers: the files of the recipe, which then computes none; interruptions and Slurm jobs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.test_executors import cluster  # noqa: F401
from tests.scripts.here import run_verb
from tests.train.toys import save_tiny_model, save_toy_pairs
from vlm_detect.errors import UserError
from vlm_detect.jobs.shards import Plan, write_shard
from vlm_detect.models.registry import resolve_id
from vlm_detect.train import feature_shards, features, moondream
from vlm_detect.train.feature_shards import CacheShard, finished
from vlm_detect.train.program import load, make_trainer, open_data, readable

VERB = ("cache-features", "moondream")
FILES = 8  # of ten images in three views


@dataclass(frozen=True)
class Interrupted(CacheShard):
    def __call__(self, shard: int) -> None:
        if shard == 2:
            raise KeyboardInterrupt
        super().__call__(shard)


@dataclass(frozen=True)
class KilledOnce(CacheShard):
    """Its process dies before the second shard, once."""

    def __call__(self, shard: int) -> None:
        mark = self.work.parent.parent / "was_killed"
        if shard == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().__call__(shard)


@pytest.fixture(scope="module")
def small_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(features, "CHUNK", 4)
        patched.setattr(feature_shards, "CHUNK", 4)
        yield


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("home")
    save_tiny_model(home / "model")
    save_toy_pairs(home / "pairs", n_train=5, n_validation=2)
    given = ["--model", str(home / "model"), "--data", str(home / "pairs"), "--output_dir", str(home / "run")]
    given += ["--use_cpu", "True", "--report_to", "none", "--cpu_threads", "1"]
    return [*given, "--augment", "flip", "noise", "--cached_views", "2", "--seed", "3"]


def begin_training(flags: Sequence[str], root: Path) -> None:
    """The recipe until its first step."""
    options = moondream.parse([*flags, "--features_dir", str(root), "--cache_features", "True"])
    base = resolve_id(options.model.model)
    data = open_data(options, base)
    vlm = load(options, base, options.training.device)
    make_trainer(options, vlm, readable(options, vlm, data))


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files of the cache as they are computed."""
    names: list[str] = []
    write = features._write
    monkeypatch.setattr(features, "_write", lambda *given: names.append(given[2].name) or write(*given))
    return names


@pytest.fixture(scope="module")
def expected(flags: list[str], small_files: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the recipe writes by itself."""
    root = tmp_path_factory.mktemp("recipe")
    begin_training(flags, root)
    files = files_of(root)
    assert len(files) == FILES
    return files


def test_the_recipe_finds_its_cache_complete(
    flags: list[str], expected: dict[str, bytes], written: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "features"
    done = run_verb(*VERB, *flags, "--features_dir", root)
    assert done.returncode == 0, done.stderr
    assert "the embeddings of 30 images; train with the same flags" in done.stdout
    assert files_of(root) == expected
    assert len(written) == FILES
    begin_training(flags, root)
    again = run_verb(*VERB, *flags, "--features_dir", root)
    assert again.stdout == done.stdout
    assert len(written) == FILES
    assert files_of(root) == expected


def test_an_interrupted_cache_is_continued(
    flags: list[str], expected: dict[str, bytes], written: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "features"
    with monkeypatch.context() as patched:
        patched.setattr(feature_shards, "CacheShard", Interrupted)
        assert run_verb(*VERB, *flags, "--features_dir", root).returncode == 130
    assert len(written) == 2
    assert run_verb(*VERB, *flags, "--features_dir", root).returncode == 0
    assert written == sorted(set(written))
    assert files_of(root) == expected


def test_slurm_computes_and_the_same_command_reports(
    flags: list[str],
    expected: dict[str, bytes],
    cluster: Path,  # noqa: F811
) -> None:
    root = cluster / "features"
    command = (*VERB, *flags, "--features_dir", root, "--executor", "slurm", "--workers", 2, "--gpus", 0)
    queued = run_verb(*command)
    assert (queued.returncode, "job 4711 is queued; run the same command again" in queued.stdout) == (0, True)
    assert "array=0-1%2" in (cluster / "sbatch_script").read_text()
    argv = tuple(map(str, (*command[2:], "--cache_features", "True")))
    (work,) = root.glob("work-*")
    for shard in range(FILES):  # what the nodes do
        CacheShard(work, moondream.parse, argv)(shard)
    done = run_verb(*command)
    assert (done.returncode, "the embeddings of 30 images" in done.stdout) == (0, True), done.stderr
    assert files_of(root) == expected


def test_workers_with_other_dtypes_are_noticed(tmp_path: Path) -> None:
    work, plan = tmp_path / "work", Plan("features", 8, 4, "", {})
    for shard, folder in enumerate(("of_float32", "of_bfloat16")):
        write_shard(work, shard, [{"folder": folder, "images": 4}], feature_shards.ROW, None)
    with pytest.raises(UserError, match=r"computed for 2 caches \(of_bfloat16, of_float32\).*give --dtype"):
        finished(work, plan)
    assert not work.exists()  # the same command begins anew, and finds the files that fit


def test_what_a_worker_cannot_do_is_one_line_and_leaves_nothing(flags: list[str], tmp_path: Path) -> None:
    refused = run_verb(*VERB, *flags, "--features_dir", tmp_path / "features", "--attention", "flex_attention")
    assert refused.returncode == 1
    assert "--attention flex_attention trains only on CUDA" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not list((tmp_path / "features").iterdir())


@pytest.mark.slow
def test_two_workers_one_of_which_is_killed(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (features, feature_shards):  # as in the workers, which nothing patches
        monkeypatch.setattr(module, "CHUNK", 256)
    save_toy_pairs(tmp_path / "pairs", n_train=300, n_validation=2)
    many = [*flags, "--data", str(tmp_path / "pairs"), "--cached_views", "1"]
    begin_training(many, tmp_path / "expected")
    expected = files_of(tmp_path / "expected")
    assert len(expected) == 5
    monkeypatch.setattr(feature_shards, "CacheShard", KilledOnce)
    done = run_verb(*VERB, *many, "--features_dir", tmp_path / "features", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "the worker of shard 1 died: another one does it again" in done.stderr
    assert files_of(tmp_path / "features") == expected
