"""Verdicts on many images: files, folders, globs, lists of paths, datasets.

    vlm-detect scan --model runs/moondream_lora photos/ more/*.png
    vlm-detect scan --model runs/moondream_lora photos/ --out verdicts.csv     # run again: only what is new or changed
    vlm-detect scan --model runs/moondream_lora upload.jpg --fail_on generated --json
    vlm-detect scan --model runs/moondream_lora photos/ --explain --out verdicts.jsonl     # with checked reasons
    vlm-detect scan --model runs/moondream_lora photos/ --out report.html                  # a page to look through
    vlm-detect scan --model runs/moondream_lora photos/ --case case_7 --sign_key key.pem   # a case to hand over

One row per image, in the order of the arguments, written as soon as its batch is judged. An image that cannot be read
also gets a row, with the reason in `error`; `notes` lists what is unusual about a file. A path that matches nothing is
an error, reported after the other images are judged.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlm_detect.apps.cases import CaseOptions
from vlm_detect.apps.judging import Batch, Explained, Key, Photo, batches, judge_batches, key_of
from vlm_detect.apps.operating_point import OperatingPoint, worth
from vlm_detect.apps.scan_at_once import scan_at_once
from vlm_detect.apps.scan_files import RowFile
from vlm_detect.apps.scan_journal import PageOptions
from vlm_detect.apps.scan_options import Format, form_of
from vlm_detect.apps.scan_rows import LABELS, Row, Scanned, Sink
from vlm_detect.data.items import Item, list_items, read_items
from vlm_detect.data.sources import report_skipped, spelled
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector
from vlm_detect.locks import held
from vlm_detect.printable import printable
from vlm_detect.progress import progress
from vlm_detect.stats.calibration import Calibration


def scan(
    detector: Detector,
    specs: Sequence[str],
    *,
    form: Format = "table",
    out: Path | None = None,
    batch_size: int = 16,
    explain: bool = False,
    only_confirmed: bool = False,
    image_column: str = "",
    chosen_by: str = "",
    page: PageOptions | None = None,
    case: CaseOptions | None = None,
) -> Counter[str]:
    """Judge every image of `specs` and write the rows to `out`, or to stdout; returns the count of each label.

    With `explain` rows have reasons, with `only_confirmed` those alone that a measurement confirms. Rows already in
    `out`, by the same model at the same operating point and of unchanged files, are counted and not judged again; a
    page and a `case` are written at the end, and continue an interrupted scan. `image_column` is of parquet files;
    `chosen_by` is the flag that chose the operating point. A spec without images is reported on stderr at the end, and
    counted as "missing".
    """
    if out is not None:
        form = form_of(out)
    explained = Explained(explain, only_confirmed)
    if form in ("json", "html") or case is not None:

        def judge(sink: Sink) -> Scanned:
            return judge_all(detector, specs, sink, batch_size, explained, image_column)

        point = OperatingPoint.of(detector, chosen_by)
        scanned = scan_at_once(detector, judge, point, form=form, out=out, page=page or PageOptions(), case=case)
    else:
        scanned = judge_all(detector, specs, RowFile(out, form), batch_size, explained, image_column)
    for missing in scanned.missing:
        print(f"error: {printable(missing)}", file=sys.stderr)
    return scanned.labels


def judge_all(
    detector: Detector,
    specs: Sequence[str],
    sink: Sink,
    batch_size: int,
    explained: Explained,
    image_column: str = "",
) -> Scanned:
    """Judge every image of `specs` that has no row in `sink` yet, and write its row there as soon as it is judged."""
    labels: Counter[str] = Counter()
    seen: dict[Key, None] = {}

    def count(row: Row) -> None:
        labels[row.label] += 1
        labels["contradictory"] += bool(row.contradictions)

    with contextlib.ExitStack() as stack:
        if sink.place is not None:
            stack.enter_context(held(sink.place, is_file=True))
        earlier = {row.key: row for row in sink.earlier(detector)}
        if explained.wanted and any(row.reasons is None and row.label != "unreadable" for row in earlier.values()):
            raise UserError(f"{sink.place}: holds verdicts without reasons; give another --out, or leave --explain out")
        explained = replace(explained, flagged=sink.explains_flagged)
        stack.enter_context(sink)
        opened = [_items(spec, image_column) for spec in specs]
        items = [item for found in opened if not isinstance(found, UserError) for item in found]
        bar = stack.enter_context(progress(desc="scan", total=len(items), unit="img"))

        def to_judge(photos: Sequence[Photo]) -> Batch:
            fresh = {key: photo for photo in photos if (key := key_of(photo)) not in seen}
            seen.update(dict.fromkeys(fresh))
            for key in fresh.keys() & earlier.keys():
                count(earlier[key])
            return Batch(len(photos), [(key, photo) for key, photo in fresh.items() if key not in earlier])

        given = map(to_judge, batches(read_items(items, image_column), batch_size))
        for size, judged in judge_batches(detector, given, explained):
            for one in judged:
                count(one.row)
                sink.write(one)
            sink.flush()
            bar.update(size)
    missing = [spelled(str(found)) for found in opened if isinstance(found, UserError)]
    if missing:
        labels["missing"] = len(missing)
    return Scanned(labels, list(seen), missing)


def _items(spec: str, image_column: str) -> list[Item] | UserError:
    skipped = Counter[str]()
    try:
        found = list(list_items(spec, skipped, image_column))
    except UserError as error:
        return error
    report_skipped(spec, skipped)
    return found


def summary(labels: Counter[str], calibration: Calibration | None = None) -> str:
    """One line on how many images got which verdict, and on what that is worth."""
    counts = [f"{labels[label]} {label}" for label in (*LABELS, "unreadable") if labels[label]]
    images = sum(labels[label] for label in (*LABELS, "unreadable"))
    against = f"; the model contradicts itself on {labels['contradictory']}" if labels["contradictory"] else ""
    return f"{images} images: {', '.join(counts) or 'none'}{against}{worth(calibration) if calibration else ''}"
