"""What is kept of the sentences of teachers that see, invent, contradict or fail, by source and kind.

    python tests/bench/teachers.py --photos photos/ --work DIR --out eval/results/explanations/teachers.json

Pairs of real photos are made with the nano models (caption and VAE twins, edits), then `add-reasons` is run over them:
with each of the stand-in's teachers and judges behind a loopback endpoint (`tests/generate/looking_teacher.py` states
how each behaves), and with teachers that are loaded here. Every run is the program as a user calls it, but for requests
that are given up after seconds rather than minutes. Finished runs in `--work` are not run again.
"""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import checkout  # noqa: F401
import numpy as np
import pyarrow.parquet as pq

from tests.generate.looking_teacher import LookingTeacher, looking_teacher
from tests.generate.tuned_teacher import save_tuned_teacher
from tests.models.tiny_chat import save_tiny
from tests.scripts.here import run_verb
from vlm_detect.benchmark.summary import rounded
from vlm_detect.benchmark.truth import ratio
from vlm_detect.config import REPOSITORY, command_line, git_commit, parse_config, write_json
from vlm_detect.data.members import open_members
from vlm_detect.errors import UserError, run_main
from vlm_detect.generate import asked_models
from vlm_detect.infer.endpoint import Endpoint
from vlm_detect.machine import machine_name
from vlm_detect.records import REASON_KINDS

TIMEOUT_S = 20.0  # more than an answer takes on a busy machine, less than the one that hangs
QUOTA = 120  # questions before the endpoint refuses
# (teacher, judge); None: the teacher judges itself. The first says what a sound teacher and judge keep.
STAND_INS: tuple[tuple[str, str | None], ...] = (
    ("good", "looks"), ("good", "words"), ("good", "wavers"), ("good", "evades"), ("good", None), ("good", "agrees"),
    ("swaps", "looks"), ("swaps", "prejudiced"),
    ("hallucinates", "looks"), ("hallucinates", None), ("hallucinates", "wavers"), ("hallucinates", "prejudiced"),
    ("disagrees", "looks"), ("whole_image", "looks"), ("contradicts", "looks"), ("compares", "looks"),
    ("no_json", "looks"), ("sees_nothing", "looks"), ("hangs", "looks"), ("refuses", "looks"), ("limited", "looks"),
    ("mixed", "looks"),
)  # fmt: skip
COLUMNS = {"image": "image_reasons", "twin": "twin_reasons"}


@dataclass(frozen=True)
class Config:
    photos: str = field(metadata={"help": "A folder of photos."})
    work: str = field(metadata={"help": "Folder of the pairs and of the finished runs."})
    limit: int = field(default=100, metadata={"help": "Photos to make pairs of."})
    rows: int = field(default=60, metadata={"help": "Rows of the pairs that each teacher is asked about."})
    steps: int = field(default=90, metadata={"help": "Training steps of the local teacher that writes JSON."})
    out: str | None = field(default=None, metadata={"help": "Write the figures to this JSON file."})


@dataclass(frozen=True)
class Pairs:
    folder: Path

    @functools.cached_property
    def groups(self) -> dict[str, str]:
        """The source photo of each image's id."""
        members = open_members(str(self.folder))
        rows = members.numbered(0, members.rows)
        return {one.id: one.group for number, split, row in rows for one in members.of_row(number, split, row)}

    def shown(self, rows: int) -> int:
        """The number of pairs that a teacher is shown, of the first `rows` rows."""
        members = open_members(str(self.folder))
        pairs = (members.of_row(*one) for one in members.numbered(0, min(rows, members.rows)))
        return sum((photo.label, twin.label) == ("real", "generated") for photo, twin in pairs)


def add_reasons(pairs: Pairs, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """`vlm-detect add-reasons` in this process; without a new audit, since it is the same images'."""
    asked_models.open_model.cache_clear()
    quick = functools.partial(Endpoint, timeout_s=TIMEOUT_S, retries=1)
    with (
        mock.patch.object(asked_models, "Endpoint", quick),
        mock.patch("vlm_detect.generate.dataset_files.write_audit"),
    ):
        return run_verb("add-reasons", pairs.folder, "--out", out, *more)


def at(server: LookingTeacher, teacher: str, judge: str | None) -> list[object]:
    named: list[object] = ["--teacher_endpoint", server.url, "--teacher", teacher]
    return [*named, "--judge_endpoint", server.url, "--judge", judge] if judge else named


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def acceptance(pairs: Pairs, out: Path, rows: int) -> dict[str, Any]:
    """What a finished run kept of its teacher's sentences: all, by kind, and why the others were left out."""
    reasons = [
        (row["group"], reason)
        for row in rows_of(out)
        for column in COLUMNS.values()
        for reason in row[column] or []
        if reason["source"] == "teacher"
    ]
    rejects = [row for row in pq.read_table(out / "rejects.parquet").to_pylist() if row["stage"] == "teacher"]
    sentences = [(group, reason["kind"], 1.0) for group, reason in reasons]
    for reject in rejects:
        kind = reject["detail"].partition(":")[0]
        if kind in REASON_KINDS:  # else it is an answer as a whole
            sentences.append((pairs.groups[reject["id"]], kind, 0.0))
    return {
        "pairs_shown": pairs.shown(rows),
        "sentences": len(sentences),
        "kept": share_of([(group, kept) for group, _, kept in sentences]),
        "by_kind": {
            kind: share_of([(group, kept) for group, one, kept in sentences if one == kind])
            for kind in REASON_KINDS
            if any(one == kind for _, one, _ in sentences)
        },
        "left_out": dict(Counter(reject["reason"] for reject in rejects).most_common()),
        "checked_by": sorted({reason["checked_by"] for _, reason in reasons}),
    }


def share_of(values: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
    """{n, share, ci95} of (source photo, 0 or 1)."""
    groups = [group for group, _ in values]
    return ratio(groups, np.array([(value, 1.0) for _, value in values])) if values else None


def by_source(pairs: Pairs, out: Path) -> dict[str, Any]:
    """By source, kind and label: the share of the images that have such a reason; what a teacher said is counted by
    sentence elsewhere."""
    images = [
        (row["group"], label, {(reason["source"], reason["kind"]) for reason in row[column] or []})
        for row in rows_of(out)
        for column, label in (("image_reasons", row["image_label"]), ("twin_reasons", twin_label(row)))
    ]
    found: dict[str, Any] = {}
    for source, kind in sorted({reason for _, _, some in images for reason in some if reason[0] != "teacher"}):
        found.setdefault(source, {})[kind] = {
            label: share_of([(group, float((source, kind) in some)) for group, one, some in images if one == label])
            for label in sorted({label for _, label, some in images if (source, kind) in some})
        }
    return found


def twin_label(row: dict[str, Any]) -> str:
    return "edited" if row["kind"] == "edit" else "generated"


def questions(server: LookingTeacher) -> dict[str, int]:
    asked = [server.is_question(request) for request in server.requests]
    return {"to_teacher": sum(asked), "to_judge": len(asked) - sum(asked)}


def stand_ins(pairs: Pairs, work: Path, rows: int) -> list[dict[str, Any]]:
    found = []
    for teacher, judge in STAND_INS:
        out = work / f"{teacher}_{judge or 'itself'}"
        with looking_teacher() as server:
            flags = ["--reasons", "teacher", "--teacher_limit", rows, *at(server, teacher, judge)]
            done = checked(add_reasons(pairs, out, *flags))
            asked = questions(server)
        figures = acceptance(pairs, out, rows)
        found.append({"teacher": teacher, "judge": judge or "the teacher itself", "asked": asked, **figures})
        print(line_of(found[-1]), file=sys.stderr)
        assert "images are sent" not in done.stderr  # the endpoint is on this machine
    return found


def local(pairs: Pairs, work: Path, rows: int, steps: int) -> list[dict[str, Any]]:
    """Teachers and judges that are loaded here."""
    tuned, tiny = work / "tuned_teacher", work / "tiny_qwen"
    if not (tuned / "config.json").is_file():
        save_tuned_teacher(pairs.folder, tuned, steps=steps)
    save_tiny("qwen2_5_vl", tiny)
    found = []
    with looking_teacher() as server:
        judged_by_looking = ["--judge_endpoint", server.url, "--judge", "looks"]
        behind = ["--teacher_endpoint", server.url, "--teacher"]
        runs: dict[tuple[str, str], list[object]] = {
            ("nano", "the teacher itself"): ["--teacher", "nano"],
            ("random Qwen2.5-VL", "the teacher itself"): ["--teacher", tiny],
            ("nano tuned to write JSON", "looks"): ["--teacher", tuned, *judged_by_looking],
            ("nano tuned to write JSON", "the teacher itself"): ["--teacher", tuned],
            ("nano tuned to write JSON", "nano"): ["--teacher", tuned, "--judge", "nano"],
            ("good", "nano"): [*behind, "good", "--judge", "nano"],
            ("hallucinates", "nano"): [*behind, "hallucinates", "--judge", "nano"],
        }
        for (teacher, judge), flags in runs.items():
            out = work / re.sub(r"\W+", "_", f"local {teacher} {judge}")
            checked(add_reasons(pairs, out, "--reasons", "teacher", "--teacher_limit", rows, *flags))
            found.append({"teacher": teacher, "judge": judge, **acceptance(pairs, out, rows)})
            print(line_of(found[-1]), file=sys.stderr)
    return found


def line_of(figures: dict[str, Any]) -> str:
    kept = figures["kept"]
    share = f"{kept['share']:.3f} of {kept['n']}" if kept else "nothing said"
    return f"{figures['teacher']} / {figures['judge']}: {share}; left out {figures['left_out']}"


def checked(done: subprocess.CompletedProcess[str], status: int = 0) -> subprocess.CompletedProcess[str]:
    if done.returncode != status:
        raise UserError(f"add-reasons ended with {done.returncode}, not {status}: {done.stderr.strip()[-500:]}")
    return done


def announced(pairs: Pairs, work: Path, rows: int) -> dict[str, Any]:
    """What a dry run says of the cost, and of an endpoint on another machine."""
    limit = ["--reasons", "teacher", "--teacher_limit", rows, "--dry_run"]
    with looking_teacher() as server:
        cost = checked(add_reasons(pairs, work / "dry", *limit, *at(server, "good", "looks"))).stdout
        assert not server.requests
    far = ["--teacher", "large-vlm", "--teacher_endpoint", "https://models.example/v1"]
    told = checked(add_reasons(pairs, work / "dry", *limit, *far)).stdout
    numbers = [int(number) for number in re.findall(r"(\d+) (?:questions|images)", cost)]
    return {
        **dict(zip(("to_teacher", "images", "to_judge"), numbers, strict=True)),
        "of_another_machine": [line for line in told.splitlines() if "sent from this machine" in line],
    }


def stopped(
    pairs: Pairs, work: Path, flags: Sequence[object], stop: Callable[[LookingTeacher, Path, Sequence[object]], Any]
) -> Any:
    """A run that is stopped and started again: whether its reasons are those of a run in one go, and what it asks."""
    out, whole = work / stop.__name__, work / "good_looks"
    with looking_teacher() as server:
        flags = ["--reasons", "teacher", *flags, *at(server, "good", "looks")]
        how = stop(server, out, flags)
        kept = len(list(out.with_name(f"{out.name}.work").glob("teacher/shards/0*")))
        before = questions(server)
        server.requests.clear()
        server.gone_after = None
        checked(add_reasons(pairs, out, *flags))
        after = questions(server)
    return {
        **how,
        "shards_kept": kept,
        "asked_before": before,
        "asked_after": after,
        "same_reasons": rows_of(out) == rows_of(whole),
        "same_rejects": pq.read_table(out / "rejects.parquet").equals(pq.read_table(whole / "rejects.parquet")),
    }


def killed(server: LookingTeacher, out: Path, flags: Sequence[object]) -> dict[str, Any]:
    """By SIGKILL, once two shards are finished."""
    dataset = out.with_name("pairs")
    command = [sys.executable, REPOSITORY / "data_gen" / "reasons.py", dataset, "--out", out, *flags]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.with_name(f"{out.name}.work").glob("teacher/shards/0*"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    return {"status": process.wait()}


def out_of_quota(server: LookingTeacher, out: Path, flags: Sequence[object]) -> dict[str, Any]:
    """By the endpoint, which refuses everything from then on."""
    server.gone_after = QUOTA
    done = checked(add_reasons(Pairs(out.with_name("pairs")), out, *flags), status=1)
    return {"status": done.returncode, "message": done.stderr.strip().splitlines()[-1].replace(server.url, "URL")}


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    started, work = time.perf_counter(), Path(config.work)
    pairs, rows = Pairs(work / "pairs"), config.rows
    make = ["--images", config.photos, "--limit", config.limit, "--captioner", "nano", "--generator", "nano"]
    checked(run_verb("make-pairs", *make, "--twins", "caption,vae,edit", "--edits_on", "photos", "--out", pairs.folder))
    everything, limit = work / "all_sources", ("--teacher_limit", rows)
    with looking_teacher() as server:
        flags = ["--reasons", "measured,edit,teacher", *limit, *at(server, "good", "looks")]
        checked(add_reasons(pairs, everything, *flags))
    record = {
        "data": f"{config.limit} photos of {Path(config.photos).name}; caption, VAE and edit twins by nano, 32 px",
        "by_source": by_source(pairs, everything),
        "stand_ins": stand_ins(pairs, work, rows),
        "local": local(pairs, work, rows, config.steps),
        "dry_run": announced(pairs, work, rows),
        "stopped": {stop.__name__: stopped(pairs, work, limit, stop) for stop in (killed, out_of_quota)},
        "seed": 0,
        "command": " ".join(command_line()),
        "commit": git_commit(),
        "device": machine_name("cpu"),
        "seconds": round(time.perf_counter() - started),
    }
    record = rounded(record)
    print(json.dumps(record, indent=1))
    if config.out:
        write_json(Path(config.out), record)


if __name__ == "__main__":
    run_main(main)
