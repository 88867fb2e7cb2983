"""A detector that is none, light to import in a worker: what it says of an image is its mean grey."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm_detect.apps import scan_shards
from vlm_detect.apps.options import Judge
from vlm_detect.apps.scan_options import ScanOptions
from vlm_detect.apps.scan_shards import ScanShard
from vlm_detect.infer.picture import Picture, decode_picture
from vlm_detect.jobs.launch import Launch
from vlm_detect.stats.calibration import Calibration

DEADLY = b"an image that kills its decoder"


@dataclass(frozen=True)
class StubVerdict:
    p_fake: float
    label: str
    calibrated: bool = False
    contradictions: tuple[str, ...] = ()
    provenance: tuple[str, ...] = ()
    version: str = "0"
    notes: tuple[str, ...] = ()
    reliable: bool = True
    why_unsure: str | None = None
    max_fpr: float | None = None
    views: int = 0
    novelty_p: float | None = None
    threshold: float = 0.5

    @property
    def witnesses(self) -> dict[str, object]:
        return {}


class StubDetector:
    name = "nano"
    views = 0
    calibration = Calibration()

    def refusal(self, picture: Picture) -> str | None:
        return None

    def prepare_ahead(self, pictures: Sequence[Picture]) -> None:
        pass

    def judge(self, pictures: Sequence[Picture]) -> list[StubVerdict]:
        means = [float(np.asarray(picture.image).mean()) / 255 for picture in pictures]
        return [StubVerdict(mean, "generated" if mean > 0.5 else "real") for mean in means]


@dataclass(frozen=True)
class StubShard(ScanShard):
    def detector(self) -> StubDetector:  # type: ignore[override]
        with (self.folder.parent / f"{self.folder.name}.calls").open("a") as calls:
            calls.write(f"{os.getpid()}\n")
        return StubDetector()


@dataclass(frozen=True)
class KilledOnce(StubShard):
    """Its worker is killed in the midst of the second shard, once."""

    def __call__(self, shard: int) -> None:
        mark = self.folder.parent / "was_killed"
        if shard == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().__call__(shard)


@dataclass(frozen=True)
class Deadly(StubShard):
    """One image ends the process that decodes it."""

    def __call__(self, shard: int) -> None:
        scan_shards.decode_picture = self._decode  # type: ignore[assignment]  # of this worker, which is not pytest's
        super().__call__(shard)

    @staticmethod
    def _decode(data: bytes) -> Picture:
        if data == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_picture(data)


def options_of(specs: Sequence[str | Path], out: Path, **values: object) -> ScanOptions:
    return ScanOptions([str(spec) for spec in specs], out=str(out), **{"shard_size": 4, "batch_size": 2, **values})


def scan_with_stub(
    specs: Sequence[str | Path], out: Path, workers: int = 1, task: type[ScanShard] = StubShard, **values: object
) -> object:
    return scan_shards.scan_in_shards(Judge("nano"), options_of(specs, out, **values), Launch(workers=workers), task)
