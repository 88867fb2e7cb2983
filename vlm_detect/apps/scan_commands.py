"""The verbs about verdicts on many images: scan, verify, collect-errors.

Nothing heavy is imported before the flags are read, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from vlm_detect.apps.options import Judge
from vlm_detect.apps.scan_options import CollectErrorsOptions, ScanOptions, VerifyOptions
from vlm_detect.config import parse_config
from vlm_detect.errors import UsageError
from vlm_detect.jobs.launch import Launch


def scan(argv: list[str]) -> int:
    """Verdicts on many images.

    vlm-detect scan --model runs/moondream_lora photos/ more/*.png
    vlm-detect scan --model runs/moondream_lora photos/ --out verdicts.csv   # again: only what is new or changed
    vlm-detect scan --model runs/moondream_lora upload.jpg --fail_on generated --json
    vlm-detect scan --model runs/moondream_lora photos/ --explain --out verdicts.jsonl
    vlm-detect scan --model runs/moondream_lora photos/ --out report.html    # a page to look through
    vlm-detect scan --model runs/moondream_lora photos/ --case case_7 --sign_key key.pem
    vlm-detect scan --model runs/moondream_lora photos/ --out verdicts --workers 4      # a folder of parquet files
    vlm-detect scan --model runs/moondream_lora 's3://bucket/*.tar' --out verdicts --executor slurm --workers 16

    Where "generated" begins: --threshold, else --max_fpr, else the run's calibration with its unsure band.
    """
    judge, options, launch = parse_config([Judge, ScanOptions, Launch], argv, doc=scan.__doc__)
    if options.in_shards:
        return _scan_in_shards(judge, options, launch)
    if launch != Launch():
        raise UsageError("--executor, --workers and what goes with them are of a scan in shards: give --out FOLDER")
    from vlm_detect.apps.cases import UNSIGNED, CaseOptions, check_new
    from vlm_detect.apps.loading import load_detector
    from vlm_detect.apps.operating_point import set_operating_point
    from vlm_detect.apps.scan import scan as scan_images
    from vlm_detect.apps.scan import summary
    from vlm_detect.apps.scan_journal import PageOptions
    from vlm_detect.apps.signatures import read_private_key

    case = None
    if options.case:  # before the model, which takes longer to load than a wrong path to notice
        key = read_private_key(Path(options.sign_key)) if options.sign_key else None
        case = CaseOptions(Path(options.case), key, options.reviewer)
        check_new(case.folder)
    detector = load_detector(judge.model, judge.adapter, judge.expert)
    detector.views = options.views
    if options.only_confirmed:
        detector.require_measures()
    chosen_by = set_operating_point(detector, options.threshold, options.max_fpr)
    if options.threshold is not None and options.max_fpr is not None:
        print(f"{chosen_by} comes before --max_fpr {options.max_fpr:g}: no rate is guaranteed", file=sys.stderr)
    labels = scan_images(
        detector,
        options.images,
        form=options.form,
        out=Path(options.out) if options.out else None,
        batch_size=options.batch_size,
        explain=options.explain,
        only_confirmed=options.only_confirmed,
        image_column=options.image_column,
        chosen_by=chosen_by,
        page=PageOptions(not options.no_thumbnails, options.max_maps),
        case=case,
    )
    print(summary(labels, detector.calibration), file=sys.stderr)
    if options.explain and detector.checks_nothing:
        print(detector.checks_nothing, file=sys.stderr)
    if case:
        signed = "signed" if case.key else UNSIGNED
        print(f"{case.folder}: case written, {signed}", file=sys.stderr)
    return _status(labels, options, "" if detector.calibration.n else detector.caveat)


def _scan_in_shards(judge: Judge, options: ScanOptions, launch: Launch) -> int:
    from vlm_detect.apps.scan import summary
    from vlm_detect.apps.scan_shards import check_run, scan_in_shards

    found = scan_in_shards(judge, options, launch)
    if isinstance(found, str):
        print(f"{options.out}: job {found} is queued; run the same command again when it is done")
        return 0
    calibration = check_run(judge, options)
    if judge.expert:
        calibration = calibration.without_guarantee()
    print(f"{options.out}: {summary(found, calibration)}", file=sys.stderr)
    caveat = f"{judge.adapter or judge.model} was never calibrated to tell generated images from photos"
    return _status(found, options, "" if calibration.n else caveat)


def _status(labels: Counter[str], options: ScanOptions, caveat: str) -> int:
    """The exit status; reports on stderr what verdicts are worth."""
    judged = labels["generated"] + labels["unsure"] + labels["real"]
    if judged and caveat:
        print(f"these labels mean little: {caveat} (vlm-detect train, vlm-detect calibrate)", file=sys.stderr)
    failed = labels["missing"] or (labels["unreadable"] and not judged)
    return int(failed or any(labels[label] for label in options.labels))


def verify(argv: list[str]) -> None:
    """Check that a case is as it was written and signed, and the images as they were judged.

    vlm-detect verify case_7
    vlm-detect verify case_7 --public_key key.pub --images photos/
    """
    (options,) = parse_config([VerifyOptions], argv, doc=verify.__doc__)
    from vlm_detect.apps.verify import verify_case

    images = Path(options.images) if options.images else None
    public_key = Path(options.public_key) if options.public_key else None
    print(f"{options.case}: {verify_case(Path(options.case), public_key=public_key, images=images)}")


def collect_errors(argv: list[str]) -> None:
    """Collect images that were judged wrongly, in a folder that vlm-detect adapt reads.

    vlm-detect collect-errors marks.csv --out errors          # marks are saved from the page of a report or a case
    vlm-detect collect-errors --real a.jpg b.jpg --out errors
    """
    (options,) = parse_config([CollectErrorsOptions], argv, doc=collect_errors.__doc__)
    from vlm_detect.apps.collect_errors import Mark, read_marks
    from vlm_detect.apps.collect_errors import collect_errors as collect

    marks = [mark for file in options.marks for mark in read_marks(Path(file))]
    marks += [Mark(Path(path), "real") for path in options.real]
    marks += [Mark(Path(path), "generated") for path in options.generated]
    found = collect(marks, Path(options.out))
    print(f"{options.out}: {found['real']} real and {found['generated']} generated images")
