"""The verbs that use a model or read files: parse the flags, then make one call.

Nothing heavy is imported before the flags are read, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path

from vlm_detect.apps.options import (
    AdaptOptions,
    AuditOptions,
    CalibrateOptions,
    ChatOptions,
    ConfigsOptions,
    DoctorOptions,
    ExplainOptions,
    ExportOptions,
    FitHeadOptions,
    Judge,
    ReportOptions,
    ServeOptions,
    ViewOptions,
)
from vlm_detect.config import CONFIGS, find_config, parse_config
from vlm_detect.errors import UsageError
from vlm_detect.extras import require


def chat(argv: list[str]) -> None:
    """Ask a model about an image.

    vlm-detect chat --model runs/moondream_lora photo.jpg "Is this image AI-generated?"
    vlm-detect chat photo.jpg                                     # a conversation
    """
    judge, options = parse_config([Judge, ChatOptions], argv, doc=chat.__doc__)
    from vlm_detect.apps.terminal import answer_once, converse
    from vlm_detect.infer.detector import Detector
    from vlm_detect.infer.picture import open_picture

    open_picture(options.image)  # before the model, which takes longer to load than a wrong path to notice
    detector = Detector(judge.model, adapter=judge.adapter, expert=judge.expert)
    if options.question is None:
        converse(detector, options.image, only_confirmed=options.only_confirmed)
    else:
        answer_once(detector, options.image, options.question)


def serve(argv: list[str]) -> None:
    """Serve a web page and an API.

    vlm-detect serve --model runs/moondream_lora --port 8000
    vlm-detect serve --model runs/moondream_lora --replicas 2     # kill -HUP PID reads the run again
    """
    judge, options = parse_config([Judge, ServeOptions], argv, doc=serve.__doc__)
    if len({judge.model, *options.compare}) <= len(options.compare):
        raise UsageError("--compare names a model that is already served: give another")
    if options.replicas is not None and "auto" in (judge.model, *options.compare):
        raise UsageError("--replicas needs --model: auto depends on the memory that is free when each replica starts")
    require("serve", "fastapi", "uvicorn", "multipart", "prometheus_client", "limits", "httpx", "c2pa")
    models = [(judge.model, judge.adapter), *((model, None) for model in options.compare)]
    if options.replicas is not None:
        from vlm_detect.apps.front import serve_replicas

        spec = {"models": models, "cnn": options.cnn, "expert": judge.expert}
        serve_replicas(spec, ", ".join(model for model, _ in models), options.settings)
        return
    from vlm_detect.apps.server import serve as serve_models

    serve_models(models, options.settings, options.cnn, expert=judge.expert)


def doctor(argv: list[str]) -> None:
    """Show what this machine has, what is missing, what is cached, and which training configs fit.

    vlm-detect doctor
    vlm-detect doctor --model vikhyatk/moondream2 --config moondream_qlora_8gb
    """
    (options,) = parse_config([DoctorOptions], argv, doc=doctor.__doc__)
    from vlm_detect.apps.doctor import examine

    for line in examine(options.model, options.config):
        print(line)


def configs(argv: list[str]) -> None:
    """List the configs of the package, or print one.

    vlm-detect configs
    vlm-detect configs moondream_lora > mine.yaml
    accelerate launch --quiet --config_file "$(vlm-detect configs accelerate_fsdp2 --path)" \\
        -m vlm_detect train moondream
    """
    (options,) = parse_config([ConfigsOptions], argv, doc=configs.__doc__)
    if options.name:
        path = find_config(options.name)
        print(path if options.path else path.read_text(encoding="utf-8"), end="\n" if options.path else "")
        return
    for path in sorted(CONFIGS.rglob("*.yaml")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        print(f"{path.stem:<28} {path if options.path else title}")


def export(argv: list[str]) -> None:
    """Export a finetuned model to a format that other tools read.

    vlm-detect export runs/moondream_lora exported/ --to merged
    vlm-detect export runs/cnn exported/ --to onnx                # or a run with a head: the head on its image tower
    """
    (options,) = parse_config([ExportOptions], argv, doc=export.__doc__)
    if options.to == "onnx":
        from vlm_detect.infer.onnx_export import export_onnx

        difference = export_onnx(options.run, Path(options.out))
        print(f"{options.out}: written (onnx); onnxruntime's results differ from ours by {difference:.1e} at most")
        return
    from vlm_detect.models.export import export as export_run

    export_run(options.run, options.to, Path(options.out))
    print(f"{options.out}: written ({options.to})")


def audit(argv: list[str]) -> None:
    """Find what leaks the label of a dataset without looking at content.

    vlm-detect audit data/pairs --json
    """
    (options,) = parse_config([AuditOptions], argv, doc=audit.__doc__)
    from vlm_detect.data.audit import print_audit

    print_audit(options.dataset, as_json=options.json, max_images=options.max_images)


def explain(argv: list[str]) -> None:
    """Show where a CNN looks, image by image.

    vlm-detect explain --model runs/cnn_fakenet2 photos/ --out page.html
    """
    (options,) = parse_config([ExplainOptions], argv, doc=explain.__doc__)
    from vlm_detect.cnn.explain import explain as explain_images
    from vlm_detect.models.cnn.detector import CnnDetector

    shown = explain_images(CnnDetector.load(options.model), options.images, Path(options.out))
    print(f"{options.out}: {shown} images with heat maps")


def report(argv: list[str]) -> None:
    """Write a page that shows a dataset: images, audit, sources, rejects.

    vlm-detect report data/pairs
    """
    (options,) = parse_config([ReportOptions], argv, doc=report.__doc__)
    from vlm_detect.data.report import write_report

    out = Path(options.out or Path(options.dataset) / "report.html")
    print(f"{out}: {write_report(Path(options.dataset), out, n=options.n)} rows shown")


def view(argv: list[str]) -> None:
    """Browse a dataset, or the errors of a run.

    vlm-detect view runs/moondream_lora/eval --out errors.html
    """
    (options,) = parse_config([ViewOptions], argv, doc=view.__doc__)
    from vlm_detect.benchmark.view import view as view_rows

    shown = view_rows(options.source, Path(options.out), split=options.split, n=options.n, seed=options.seed)
    print(f"{options.out}: {shown} shown")


def calibrate(argv: list[str]) -> None:
    """Refit a run's probabilities and threshold on your own images, or guarantee a false-alarm rate from photos alone.

    vlm-detect calibrate runs/moondream_lora --data data/mine
    vlm-detect calibrate runs/moondream_lora --data photos/ --max_fpr 0.01
    """
    (options,) = parse_config([CalibrateOptions], argv, doc=calibrate.__doc__)
    from vlm_detect.train.recalibrate import recalibrate

    run, data = Path(options.run), options.data
    asked = {"split": options.split, "limit": options.limit, "max_fpr": options.max_fpr, "force": options.force}
    print(recalibrate(run, data, **asked))


def fit_head(argv: list[str]) -> None:
    """Fit a head on a run's tower, and how much each witness counts: seconds, no training.

    vlm-detect fit-head runs/moondream_lora --data data/cifake --expert runs/cnn
    vlm-detect fit-head nano --data data/cifake --out runs/nano_head      # then: --model runs/nano_head

    The witnesses are the language model, the head, and with --expert a CNN. The verdict of every command is then their
    weighted sum, and images unlike those of the dataset are called unsure.
    """
    (options,) = parse_config([FitHeadOptions], argv, doc=fit_head.__doc__)
    from vlm_detect.train.fit_head import fit_run

    fit_run(
        options.run,
        options.data,
        out=options.out,
        backbone=options.backbone,
        expert=options.expert,
        limit=options.limit,
        validation_limit=options.validation_limit,
        novelty_level=options.novelty_level,
    )


def adapt(argv: list[str]) -> None:
    """Take a run to a new generator, from at least 50 labelled images: its head learns them, nothing is trained.

    vlm-detect adapt runs/moondream_lora new/ --out runs/adapted      # new/real and new/fake
    vlm-detect adapt runs/moondream_lora new.csv --out runs/adapted   # columns path and label

    Accuracy and AUROC, before and after, are printed of new and old images that had no part in it.
    """
    (options,) = parse_config([AdaptOptions], argv, doc=adapt.__doc__)
    from vlm_detect.train.adapt import adapt_run

    adapt_run(options.run, options.images, options.out, old=options.old)
