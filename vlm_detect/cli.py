"""The `vlm-detect` command: every verb and program by name. Each is imported only when it is called.

vlm-detect VERB --help
accelerate launch --quiet -m vlm_detect train moondream ...     # the same verbs in several processes
"""

from __future__ import annotations

import importlib
import os
import sys
from difflib import get_close_matches

from vlm_detect.errors import UsageError, run_main
from vlm_detect.version import __version__

# The implementation of each verb (module:function of its arguments), and its summary.
VERBS = {
    "chat": ("vlm_detect.apps.commands:chat", "ask a model about an image"),
    "scan": ("vlm_detect.apps.scan_commands:scan", "judge many images"),
    "verify": ("vlm_detect.apps.scan_commands:verify", "check a case and its images for changes"),
    "collect-errors": (
        "vlm_detect.apps.scan_commands:collect_errors",
        "collect images that were judged wrongly, for adapt",
    ),
    "serve": ("vlm_detect.apps.commands:serve", "serve a web page and an API"),
    "explain": ("vlm_detect.apps.commands:explain", "show where a CNN looks, image by image"),
    "make-pairs": ("vlm_detect.generate.make_pairs:main", "make a dataset of photos and generated twins from photos"),
    "caption": ("vlm_detect.generate.caption:main", "step 1 of make-pairs: caption photos"),
    "render": ("vlm_detect.generate.render:main", "step 2 of make-pairs: render twins"),
    "pack": ("vlm_detect.generate.pack_pairs:main", "step 3 of make-pairs: write the dataset"),
    "import-pairs": ("vlm_detect.generate.import_pairs:main", "import existing pairs of photos and twins"),
    "import-images": ("vlm_detect.generate.import_images:main", "import labelled images"),
    "add-reasons": ("vlm_detect.generate.add_reasons:main", "add reasons for the labels to a dataset"),
    "audit": ("vlm_detect.apps.commands:audit", "find what leaks a dataset's label without looking at content"),
    "report": ("vlm_detect.apps.commands:report", "write a page that shows a dataset: images, audit, sources, rejects"),
    "view": ("vlm_detect.apps.commands:view", "browse a dataset, or the errors of a run"),
    "train moondream": ("vlm_detect.train.moondream:main", "finetune moondream2 with LoRA"),
    "train tinyllava": ("vlm_detect.train.tinyllava:main", "finetune TinyLLaVA with LoRA"),
    "train vlm": ("vlm_detect.train.vlm:main", "finetune any image-text-to-text model of transformers"),
    "train preference": ("vlm_detect.train.preference:main", "tune explanations by preference (DPO)"),
    "train cnn": ("vlm_detect.cnn.train:main", "train a CNN baseline"),
    "cache-features moondream": (
        "vlm_detect.train.cache_features:moondream",
        "compute the feature cache of train moondream, by many workers",
    ),
    "cache-features tinyllava": (
        "vlm_detect.train.cache_features:tinyllava",
        "compute the feature cache of train tinyllava, by many workers",
    ),
    "cache-features vlm": (
        "vlm_detect.train.cache_features:vlm",
        "compute the feature cache of train vlm, by many workers",
    ),
    "fit-head": ("vlm_detect.apps.commands:fit_head", "fit a head and the weights of a run's witnesses"),
    "adapt": ("vlm_detect.apps.commands:adapt", "adapt a run to a new generator with a handful of images"),
    "calibrate": ("vlm_detect.apps.commands:calibrate", "refit a run's threshold on your own images"),
    "runs": ("vlm_detect.apps.runs_command:runs", "list training runs: model, data, state, scores"),
    "export": ("vlm_detect.apps.commands:export", "export a finetuned model to a format that other tools read"),
    "benchmark": ("vlm_detect.benchmark.commands:benchmark", "score a model, or recorded answers, on a benchmark"),
    "robustness": (
        "vlm_detect.benchmark.commands:robustness",
        "measure verdicts on compressed, scaled and cropped images",
    ),
    "paper-table": (
        "vlm_detect.benchmark.commands:paper_table",
        "make the table of a paper: models on sets, and the sets' leaks",
    ),
    "compare": ("vlm_detect.benchmark.commands:compare", "compare several runs on the same items"),
    "build-vqa": ("vlm_detect.benchmark.commands:build_vqa", "build a benchmark, or check one for leaks"),
    "import-vqa": ("vlm_detect.benchmark.commands:import_vqa", "convert a public VQA set to a benchmark"),
    "evidence": ("vlm_detect.benchmark.commands:evidence", "compare evidence maps and answers with planted edits"),
    "demo": ("vlm_detect.apps.demo:main", "run the complete workflow on bundled photographs with the nano models"),
    "doctor": ("vlm_detect.apps.commands:doctor", "show what this machine has, and which training configs fit it"),
    "configs": ("vlm_detect.apps.commands:configs", "list the configs of the package, or print one"),
}

_FIRST_WORDS = ("train", "cache-features")  # of the verbs of two words


def run(argv: list[str]) -> int | None:
    verb = " ".join(argv[: 2 if argv[:1] and argv[0] in _FIRST_WORDS else 1])
    if verb in VERBS:
        arguments = argv[len(verb.split()) :]
        if argv[0] == "train" and "WORLD_SIZE" not in os.environ:
            # One process takes one GPU: the Trainer would copy the model to all of them (DataParallel).
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        # Records and --help show the command as given.
        sys.argv = [f"vlm-detect {verb}", *arguments]
        module, _, function = VERBS[verb][0].partition(":")
        program = getattr(importlib.import_module(module), function)
        return program(arguments)
    if verb in ("--version", "version"):
        print(f"vlm-detect {__version__}")
    elif not verb or argv[-1] in ("-h", "--help") or verb in ("help", *_FIRST_WORDS):
        print(overview(argv[0] if argv and argv[0] in _FIRST_WORDS else ""))
    else:
        near = get_close_matches(verb, VERBS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no verb {verb!r}{meant} (vlm-detect --help lists them)")
    return 0


def overview(first_word: str = "") -> str:
    """The output of `vlm-detect --help`: all verbs, or those that begin with a word."""
    shown = {verb: summary for verb, (_, summary) in VERBS.items() if verb.startswith(first_word)}
    width = max(map(len, shown))
    lines = [
        "usage: vlm-detect VERB [--FLAG VALUE ...]",
        "",
        "Tell AI-generated images from real photos, and say why.",
        "",
        *(f"  {verb:<{width}} {summary}" for verb, summary in shown.items()),
        "",
        "vlm-detect VERB --help lists a verb's flags; --debug shows the traceback of an error;",
        "--allow_local_paths lets data refer to files outside of its folder.",
    ]
    return "\n".join(lines)


def main() -> None:
    run_main(run)


if __name__ == "__main__":
    main()
