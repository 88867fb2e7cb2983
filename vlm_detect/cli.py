"""The `vlm-detect` command: the verbs that need no clone. Each imports what it needs only when it is called."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from vlm_detect.errors import UserError, run_main


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="auto", metavar="RUN_OR_ID", help="run directory, model folder, Hub id, nano"
    )
    parser.add_argument("--adapter", metavar="RUN", help="a LoRA to put on --model")


def add_chat(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("image", help="an image file")
    parser.add_argument("question", nargs="?", help="ask this once and exit; without it, a conversation")


def chat(arguments: argparse.Namespace) -> None:
    from vlm_detect.apps.terminal import answer_once, converse
    from vlm_detect.infer.detector import Detector, open_picture

    open_picture(arguments.image)  # before the model, which takes longer to load than a wrong path to notice
    detector = Detector(arguments.model, adapter=arguments.adapter)
    if arguments.question is None:
        converse(detector, arguments.image)
    else:
        answer_once(detector, arguments.image, arguments.question)


def add_scan(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("images", nargs="+", help="files, folders, globs, lists of paths, datasets")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_const", dest="form", const="jsonl", help="JSON Lines on stdout")
    form.add_argument("--csv", action="store_const", dest="form", const="csv", help="CSV on stdout")
    form.add_argument("--out", metavar="FILE", help="write FILE.csv or FILE.jsonl; what it holds is not judged again")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="images judged at a time; 16")
    parser.add_argument(
        "--fail_on", default="", metavar="LABELS", help="exit 1 where an image is any of generated,unsure,unreadable"
    )


def scan(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from vlm_detect.apps.scan import FAIL_ON, form_of, scan, summary
    from vlm_detect.infer.detector import Detector

    fail_on = [label for label in arguments.fail_on.split(",") if label]
    if unknown := [label for label in fail_on if label not in FAIL_ON]:
        raise UserError(f"--fail_on {','.join(unknown)}: give any of {','.join(FAIL_ON)}")
    if arguments.batch_size < 1:
        raise UserError(f"--batch_size {arguments.batch_size}: at least 1")
    out = Path(arguments.out) if arguments.out else None
    if out is not None:
        form_of(out)  # before the model is loaded
    detector = Detector(arguments.model, adapter=arguments.adapter)
    labels = scan(detector, arguments.images, form=arguments.form or "table", out=out, batch_size=arguments.batch_size)
    print(summary(labels), file=sys.stderr)
    judged = labels["generated"] + labels["unsure"] + labels["real"]
    failed = labels["missing"] or (labels["unreadable"] and not judged)
    return int(failed or any(labels[label] for label in fail_on))


def add_serve(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--compare", action="append", default=[], metavar="RUN_OR_ID", help="serve this model too")
    parser.add_argument("--cnn", metavar="RUN", help="run of recipes/cnn.py: its Grad-CAM beside the evidence maps")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 8000")
    parser.add_argument(
        "--api_key",
        default=os.environ.get("VLM_DETECT_API_KEY"),
        metavar="KEY",
        help="ask every request for this key; VLM_DETECT_API_KEY says it where others cannot read it",
    )
    parser.add_argument(
        "--without_key", action="store_true", help="listen beyond this machine without a key: anyone there may ask"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max_body_mb", type=float, default=32, metavar="MB", help="of one request; 32")
    limits.add_argument("--max_megapixels", type=float, default=50, metavar="MP", help="of one image; 50")
    limits.add_argument("--max_images", type=int, default=32, metavar="N", help="of one request; 32")
    limits.add_argument("--max_new_tokens", type=int, default=512, metavar="N", help="of one answer; 512")
    limits.add_argument("--queue", type=int, default=64, metavar="N", help="images that may wait and run; 64")
    limits.add_argument("--max_batch", type=int, default=16, metavar="N", help="computed together; 16")
    limits.add_argument("--deadline_s", type=float, default=120, metavar="S", help="until an answer is given up; 120")
    limits.add_argument("--drain_s", type=float, default=30, metavar="S", help="to finish in when told to end; 30")


def serve(arguments: argparse.Namespace) -> None:
    from vlm_detect.extras import require

    limits = "max_body_mb max_megapixels max_images max_new_tokens queue max_batch deadline_s drain_s"
    for name in limits.split():
        if not 0 < (limit := getattr(arguments, name)) < float("inf"):
            raise UserError(f"--{name} {limit}: give a number above 0")
    require("serve", "fastapi", "uvicorn", "multipart", "prometheus_client", "c2pa")
    from vlm_detect.apps.server import serve
    from vlm_detect.apps.settings import ServerSettings

    settings = ServerSettings(
        host=arguments.host,
        port=arguments.port,
        api_key=arguments.api_key,
        without_key=arguments.without_key,
        max_body_bytes=int(arguments.max_body_mb * 2**20),
        max_pixels=int(arguments.max_megapixels * 1e6),
        max_images=arguments.max_images,
        max_new_tokens=arguments.max_new_tokens,
        max_jobs=arguments.queue,
        max_batch=arguments.max_batch,
        deadline_s=arguments.deadline_s,
        drain_s=arguments.drain_s,
    )
    serve(
        [(arguments.model, arguments.adapter), *((model, None) for model in arguments.compare)], settings, arguments.cnn
    )


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory of a recipe")
    parser.add_argument("--to", required=True, choices=["adapter", "merged", "official", "variant"])
    parser.add_argument("out", help="a new folder")


def export(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from vlm_detect.models.export import export

    export(arguments.run, arguments.to, Path(arguments.out))
    print(f"{arguments.out}: written ({arguments.to})")


def add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="pair or image dataset, folder with real/ and fake/ in it, or Hub dataset id")
    parser.add_argument("--json", action="store_true", help="the audit as JSON on stdout")
    parser.add_argument("--max_images", type=int, default=2000, metavar="N", help="images that are read; 2000")


def audit(arguments: argparse.Namespace) -> None:
    from vlm_detect.config import check_at_least
    from vlm_detect.data.audit import print_audit

    check_at_least(arguments, 1, "max_images")
    print_audit(arguments.dataset, as_json=arguments.json, max_images=arguments.max_images)


def add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="RUN", help="run directory of a CNN (recipes/cnn.py)")
    parser.add_argument("images", nargs="+", help="image files and folders")
    parser.add_argument("--out", required=True, metavar="PAGE", help="the HTML page to write")


def explain(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from vlm_detect.cnn.explain import explain
    from vlm_detect.models.cnn.detector import CnnDetector

    shown = explain(CnnDetector.load(arguments.model), arguments.images, Path(arguments.out))
    print(f"{arguments.out}: {shown} images with heat maps")


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", help="a pair or image dataset folder")
    parser.add_argument("--out", metavar="PAGE", help="the HTML page to write; DATASET/report.html")
    parser.add_argument("--n", type=int, default=24, help="rows that are shown; 24")


def report(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from vlm_detect.config import check_at_least
    from vlm_detect.data.report import write_report

    check_at_least(arguments, 1, "n")
    out = Path(arguments.out or Path(arguments.dataset) / "report.html")
    print(f"{out}: {write_report(Path(arguments.dataset), out, n=arguments.n)} rows shown")


def add_view(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="DATASET_OR_RESULTS", help="a dataset, or a folder with results.jsonl")
    parser.add_argument("--out", default="view.html", metavar="PAGE", help="the HTML page to write; view.html")
    parser.add_argument("--split", help="of a dataset; the first there is")
    parser.add_argument("--n", type=int, default=200, help="show at most so many; 200")
    parser.add_argument("--seed", type=int, default=0, help="of the draw from a dataset")


def view(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from vlm_detect.benchmark.view import view
    from vlm_detect.config import check_at_least

    check_at_least(arguments, 1, "n")
    shown = view(arguments.source, Path(arguments.out), split=arguments.split, n=arguments.n, seed=arguments.seed)
    print(f"{arguments.out}: {shown} shown")


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory of a recipe; its calibration.json is written anew")
    parser.add_argument("--data", required=True, metavar="DATASET", help="pair or image dataset with your own images")
    parser.add_argument("--split", default="validation", help="the split that is read, never test; validation")
    parser.add_argument("--max_fpr", type=float, metavar="X", help="at most this part of real images called generated")
    parser.add_argument("--limit", type=int, metavar="N", help="read at most so many images")


def calibrate(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from vlm_detect.train.recalibrate import recalibrate

    run, limit, max_fpr = Path(arguments.run), arguments.limit, arguments.max_fpr
    found, scores = recalibrate(run, arguments.data, split=arguments.split, limit=limit, max_fpr=max_fpr)
    print(
        f"{run}: calibrated on {found.n} images (AUROC {scores['auroc']:.3f}): temperature {found.temperature:.2f}, "
        f"threshold {found.threshold:.3f}, unsure from {found.unsure_low:.3f} to {found.unsure_high:.3f}"
    )


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="ID", help="estimate for this model; that of the config")
    parser.add_argument("--config", nargs="+", default=[], metavar="YAML", help="recipe configs to estimate")


def doctor(arguments: argparse.Namespace) -> None:
    from vlm_detect.apps.doctor import examine

    for line in examine(arguments.model, arguments.config):
        print(line)


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int | None]]] = {
    "audit": ("what gives the label of a dataset away without looking at content", add_audit, audit),
    "calibrate": ("refit a run's probabilities and threshold on your own images", add_calibrate, calibrate),
    "chat": ("ask a model about an image", add_chat, chat),
    "doctor": ("what this machine has, and which training configs fit it", add_doctor, doctor),
    "explain": ("show where a CNN looks, image by image", add_explain, explain),
    "report": ("a page that shows a dataset: images, audit, sources, rejects", add_report, report),
    "scan": ("verdicts on many images", add_scan, scan),
    "serve": ("a page and an API on this machine", add_serve, serve),
    "export": ("write a finetuned model in the form that other tools read", add_export, export),
    "view": ("look through a dataset, or through a run's errors", add_view, view),
}


def run(argv: list[str]) -> int | None:
    parser = argparse.ArgumentParser(prog="vlm-detect", description="Tell AI-generated images from real photos.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (summary, add_arguments, _) in VERBS.items():
        add_arguments(verbs.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args(argv)
    return VERBS[arguments.verb][2](arguments)


def main() -> None:
    run_main(run)
