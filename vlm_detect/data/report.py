"""A dataset report: one self-contained page with counts, audit, a sample of images, sources and rejects.

    vlm-detect report data/pairs [--out PAGE] [--n 24]

It reads a dataset folder written by this package; use `vlm-detect view` and `vlm-detect audit` for others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_detect.data.audit import FAULT, Audit, audit_dataset, read_audit
from vlm_detect.data.splits import SPLITS
from vlm_detect.errors import UserError, first_line
from vlm_detect.images.decode import decode_image
from vlm_detect.pages.page import Picture, areas_figure, histogram_figure, photo, render, write_page

_EDITED = "edited: "
_FACTS = ("pair_id", "group", "kind", "label", "generator", "source")


@dataclass
class _Facts:
    """The columns other than images."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split, kind or label)
    groups: dict[str, set[str]] = field(default_factory=dict)
    long_sides: dict[str, list[float]] = field(default_factory=dict)
    qualities: dict[str, list[float]] = field(default_factory=dict)


def write_report(dataset: Path, out: Path, *, n: int = 24) -> int:
    """Write the page of a dataset folder; returns how many of its rows are shown."""
    files = sorted(dataset.glob("data/*.parquet"))
    try:
        names = set(pq.read_schema(files[0]).names) if files else set()
    except pa.ArrowInvalid as error:
        raise UserError(f"{files[0]}: cannot be read as parquet ({first_line(error)})") from error
    if not {"image", "group", "source"} <= names:
        raise UserError(
            f"{dataset}: not a dataset folder of vlm-detect (no data/*.parquet with image, group and source); use "
            "vlm-detect view for others"
        )
    is_paired = "twin" in names
    facts = _read_facts(files)
    audit = read_audit(dataset)
    if audit is None:
        try:
            audit = audit_dataset(dataset)
        except UserError:  # too few images
            audit = None
    columns = sorted({name for _, name in facts.rows})
    cards = list(_cards(files, n, is_paired))
    html = render(
        "dataset.html.j2",
        title=f"Dataset {dataset.resolve().name}",
        lead=_lead(facts, is_paired),
        findings=audit.findings if audit else [],
        columns=columns,
        splits=[
            {
                "split": split,
                "counts": {name: facts.rows[split, name] for name in columns},
                "groups": len(facts.groups[split]),
            }
            for split in SPLITS
            if split in facts.groups
        ],
        audit=audit,
        areas=_areas(audit) if audit else [],
        line=FAULT,
        paired=is_paired,
        cards=cards,
        charts=_charts(facts),
        rejects=_rejects(dataset / "rejects.parquet"),
    )
    write_page(out, html)
    return len(cards)


def _read_facts(files: Sequence[Path]) -> _Facts:
    facts = _Facts()
    seen: set[str] = set()
    for path in files:
        split = path.name.split("-")[0]
        columns = [name for name in _FACTS if name in pq.read_schema(path).names]
        for row in pq.read_table(path, columns=columns).to_pylist():
            facts.rows[split, row.get("kind") or row["label"]] += 1
            facts.groups.setdefault(split, set()).add(row["group"])
            source = row["source"] or {}
            name = row.get("label") or "source photos"
            if not source.get("sha256"):  # rendered from a prompt
                continue
            key = f"{name}/{source['sha256']}"  # a photo in several pairs counts once
            if source["width"] and key not in seen:
                seen.add(key)
                facts.long_sides.setdefault(name, []).append(max(source["width"], source["height"]))
                if source["jpeg_quality"]:
                    facts.qualities.setdefault(name, []).append(source["jpeg_quality"])
    return facts


def _lead(facts: _Facts, is_paired: bool) -> str:
    total = sum(facts.rows.values())
    groups = len(set().union(*facts.groups.values()))
    if not is_paired:
        return f"{total} images in {groups} groups."
    photos = sum(map(len, facts.long_sides.values()))
    return f"{total} pairs of {photos} source photos in {groups} groups; a group is the unit of splits."


def _areas(audit: Audit) -> list[Picture]:
    """One chart per comparison: combined, they would be too small to read."""
    comparisons = {"Real or generated": "", "Edited or not": _EDITED}
    if not any(probe.name.startswith(_EDITED) for probe in audit.probes):
        comparisons = {"The label": ""}
    figures = []
    for title, prefix in comparisons.items():
        rows = [
            (
                probe.name.removeprefix(prefix).replace("_", " ") + (" (content)" if probe.kind == "content" else ""),
                probe.auc,
                probe.ci95,
                probe.kind == "wrapping" and probe.ci95[0] > FAULT,
            )
            for probe in audit.probes
            if probe.name.startswith(_EDITED) == bool(prefix)
        ]
        description = f"{title}: AUC of the probes with corrected 95 % intervals; leaks in red"
        figures.append(areas_figure(rows, FAULT, description))
    return figures


def _charts(facts: _Facts) -> list[Picture]:
    charts = []
    if facts.long_sides:
        charts.append(histogram_figure(facts.long_sides, "Size of the sources", "long side in pixels"))
    if facts.qualities:
        charts.append(histogram_figure(facts.qualities, "Compression of the sources", "JPEG quality"))
    return charts


def _cards(files: Sequence[Path], n: int, is_paired: bool) -> Iterator[dict[str, Any]]:
    """`n` rows in the order of their hashes, so that the same dataset gives the same page."""
    places = []
    for path in files:
        key = "pair_id" if is_paired else "group"
        for i, name in enumerate(pq.read_table(path, columns=[key]).column(key).to_pylist()):
            places.append((hashlib.sha256(f"{name}/{path.name}/{i}".encode()).digest(), path, i))
    chosen: dict[Path, set[int]] = {}
    for _, path, i in sorted(places)[:n]:
        chosen.setdefault(path, set()).add(i)
    for path in files:
        if path in chosen:
            yield from (_card(row, path, is_paired) for row in _rows(path, chosen[path]))


def _rows(path: Path, wanted: set[int]) -> Iterator[dict[str, Any]]:
    """The rows at these places; only their row groups are read."""
    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            if here := sorted(i - start for i in wanted if start <= i < stop):
                yield from file.read_row_group(group).take(here).to_pylist()
            start = stop


def _card(row: Mapping[str, Any], path: Path, is_paired: bool) -> dict[str, Any]:
    split = path.name.split("-")[0]
    image = photo(decode_image(row["image"]["bytes"]).image, f"{row.get('image_label') or row['label']} image")
    if not is_paired:
        facts = {"Label": row["label"], "Generator": row["generator"], "Class": row["object_class"], "Split": split}
        known = {name: value for name, value in facts.items() if value}
        return {"pictures": [image], "text": row.get("prompt") or "", "facts": known}
    twin = photo(decode_image(row["twin"]["bytes"]).image, f"{row['kind']} twin: {row['caption']}")
    facts = {"Twin": row["kind"], "Generator": row["generator"], "Split": split}
    if edit := row["edit"]:
        facts |= {"Edit": edit["operation"], "Box": ", ".join(map(str, edit["box"]))}
    return {"pictures": [image, twin], "text": row["caption"], "facts": facts}


def _rejects(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for row in pq.read_table(path).to_pylist():
        key = row["reason"], row["stage"]
        counts[key] += 1
        examples.setdefault(key, f"{row['id']}: {row['detail']}" if row["detail"] else row["id"])
    return [
        {"reason": reason, "stage": stage, "count": count, "example": examples[reason, stage]}
        for (reason, stage), count in counts.most_common()
    ]
