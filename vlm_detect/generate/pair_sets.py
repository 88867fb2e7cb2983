"""Existing pairs in the format of the render step; `pack_pairs` does the rest.

    entries = list_pairs(["photos/", "twins/"], PairSetConfig())     # matched by name, ignoring the suffix
    entries = list_pairs(["pairs.csv"], PairSetConfig())             # real,twin and optionally caption, generator, ...

The same checks as in make-pairs: both members are decoded within bounds, small, blank and duplicate ones rejected, the
photo cropped to its twin's aspect and never upscaled by default, both written with one size and encoder. A twin stored
as JPEG keeps its compression artifacts, which cannot be removed; the audit measures how far they leak the label.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_detect.data.named_files import why_not_found
from vlm_detect.data.sources import find_images, look_into, report_skipped
from vlm_detect.errors import UserError
from vlm_detect.generate.import_options import PairSetConfig
from vlm_detect.generate.render_step import RENDER_FEATURES
from vlm_detect.generate.usable import check_usable, source_facts
from vlm_detect.images.decode import DecodedImage, ImageRejected, decode_image, read_bounded
from vlm_detect.images.encode import crop_to_aspect
from vlm_detect.images.local_files import is_within
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, counted, write_shard
from vlm_detect.records import Reject

_COLUMNS = ("kind", "generator", "caption", "prompt", "group", "licence")
_MAX_ASPECT = 1.5  # maximum ratio of their aspects: beyond it they cannot show the same content


@dataclass(frozen=True)
class PairEntry:
    """A photo, its twin, and their metadata."""

    real: Path
    twin: Path
    kind: str
    generator: str
    caption: str = ""
    prompt: str | None = None
    seed: int | None = None
    group: str | None = None
    licence: str | None = None


def list_pairs(sources: Sequence[str], config: PairSetConfig) -> list[PairEntry]:
    """List pairs from two folders or one CSV; raises `UserError` without pairs."""
    paths = [Path(source).expanduser() for source in sources]
    if len(paths) == 2 and all(path.is_dir() for path in paths):
        entries = _matched(paths[0], paths[1], config)
    elif len(paths) == 1 and paths[0].is_file():
        entries = _from_csv(paths[0], config)
    else:
        raise UserError(
            f"{' '.join(sources)}: give the folders of the photos and of the twins, or one CSV of real,twin"
        )
    return entries[: config.limit]


def _matched(reals: Path, twins: Path, config: PairSetConfig) -> list[PairEntry]:
    if reals.resolve() == twins.resolve():
        raise UserError(f"{reals}: given for the photos and for the twins; give two folders")
    photos, others = _by_name(reals), _by_name(twins)
    entries = [
        PairEntry(real, others[name], config.kind, config.generator, licence=config.licence)
        for name, real in photos.items()
        if name in others
    ]
    if not entries:
        raise UserError(f"{reals} and {twins}: no image has the same name in both (ignoring suffixes)")
    return entries


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in find_images(folder):
        if (first := found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)) != path:
            raise UserError(
                f"{folder}: {first.name} and {path.name} have the same name, so neither can be matched; keep one"
            )
    return found


def _report_unpaired(reals: Path, twins: Path) -> None:
    """Report unmatched files of the two folders on stderr."""
    photos, others = (set(_by_name(folder.expanduser())) for folder in (reals, twins))
    for folder, own, other in ((reals, photos, others), (twins, others, photos)):
        report_skipped(str(folder), look_into(folder.expanduser()).skipped)
        if alone := sorted(own - other):
            print(f"{folder}: skipped {len(alone)} images without a counterpart, such as {alone[0]}", file=sys.stderr)


def _from_csv(path: Path, config: PairSetConfig) -> list[PairEntry]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV ({error})") from error
    if not rows or not {"real", "twin"} <= set(rows[0]):
        has = ", ".join(rows[0]) if rows else "no rows"
        raise UserError(f"{path}: needs rows with the columns real and twin (it has {has})")
    entries = []
    for number, row in enumerate(rows, 2):
        if not row["real"] or not row["twin"]:
            raise UserError(f"{path}, line {number}: a pair needs real and twin")
        known = {key: row[key] for key in _COLUMNS if row.get(key)}
        if known.get("kind", "caption") not in ("caption", "vae"):
            raise UserError(f"{path}, line {number}: kind {known['kind']} is neither caption nor vae")
        seed = row.get("seed")
        if seed and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
            raise UserError(f"{path}, line {number}: seed {seed} is not an integer from 0 to 2^63 - 1")
        given = {"kind": config.kind, "generator": config.generator, "licence": config.licence} | known
        real, twin = path.parent / row["real"], path.parent / row["twin"]
        if outside := [name for name in (real, twin) if name.exists() and not is_within(name, path.parent)]:
            raise UserError(f"{path}, line {number}: {why_not_found(path.parent, str(outside[0]))}")
        entries.append(PairEntry(real, twin, seed=int(seed) if seed else None, **given))
    return entries


def plan_pairs(sources: Sequence[str], config: PairSetConfig) -> Plan:
    entries = list_pairs(sources, config)
    if len(sources) == 2:
        _report_unpaired(*map(Path, sources))
    listed = hashlib.sha256("\n".join(map(repr, entries)).encode()).hexdigest()
    return Plan("pairs", len(entries), config.shard_size, listed, {"sources": list(sources), **asdict(config)})


def take_pairs(
    sources: Sequence[str], config: PairSetConfig, plan: Plan, folder: Path, launch: Launch | None = None
) -> str | None:
    """Run the shards; returns the result of `run_shards`: None when all is done."""
    return run_shards(PairShard(tuple(sources), config, plan, folder), plan, folder, launch)


@dataclass(frozen=True)
class PairShard:
    """Process one shard; called in any process."""

    sources: tuple[str, ...]
    config: PairSetConfig
    plan: Plan
    folder: Path

    def __call__(self, shard: int) -> None:
        start, stop = self.plan.span(shard)
        rows, rejects = [], []
        for entry in counted(_entries(self.sources, self.config)[start:stop]):
            where = entry.real
            try:
                data = read_bounded(entry.real)
                photo = decode_image(data)
                check_usable(photo, self.config.min_side)
                where = entry.twin
                twin = decode_image(read_bounded(entry.twin))
                check_usable(twin, self.config.min_side)
                _check_fit(photo, twin, allow_small=self.config.allow_small)
            except ImageRejected as error:
                rejects.append(Reject(str(where), "pairs", error.reason, error.detail))
            else:
                rows.append(_row(entry, data, photo, twin))
        write_shard(self.folder, shard, rows, RENDER_FEATURES, rejects)


# A worker processes many shards: the listing is cached per process.
_entries = functools.cache(list_pairs)


def _check_fit(photo: DecodedImage, twin: DecodedImage, *, allow_small: bool) -> None:
    ratio = photo.width * twin.height / (photo.height * twin.width)
    if not 1 / _MAX_ASPECT <= ratio <= _MAX_ASPECT:
        detail = f"the photo is {photo.width}x{photo.height}, the twin {twin.width}x{twin.height}"
        raise ImageRejected("another_aspect", detail)
    width = crop_to_aspect(photo.image, twin.image.size).width
    if width < twin.width and not allow_small:
        raise ImageRejected("too_small", f"{width} pixels of the photo's width for {twin.width} of the twin's")


def _row(entry: PairEntry, data: bytes, photo: DecodedImage, twin: DecodedImage) -> dict[str, Any]:
    buffer = io.BytesIO()
    twin.image.save(buffer, "PNG", compress_level=1)
    rendered = {
        "kind": entry.kind,
        "image": {"bytes": buffer.getvalue(), "path": None},
        "prompt": entry.prompt,
        "seed": entry.seed,
        "batch": None,
        "edit": None,
    }
    photo_id = photo.sha256[:16]
    return {
        # a photo may have twins by several generators: these are several rows of one group
        "id": f"{photo_id}/{twin.sha256[:16]}",
        "group": entry.group or photo_id,
        "image": {"bytes": data, "path": None},
        "caption": entry.caption,
        "caption_raw": entry.caption,
        "captioner": None,
        "source": source_facts(str(entry.real), photo, entry.licence),
        "twins": [rendered],
        "generator": entry.generator,
    }
