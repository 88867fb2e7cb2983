"""The `vlm-detect` command: every verb and program by its name. Each is imported only when it is called.

vlm-detect VERB --help
accelerate launch -m vlm_detect train moondream ...     # the same verbs in several processes
"""

from __future__ import annotations

import importlib
import os
import sys
from difflib import get_close_matches

from vlm_detect.errors import UsageError, run_main
from vlm_detect.version import __version__

# What runs each verb (module:function, of its arguments), and what it is for.
VERBS = {
    "chat": ("vlm_detect.apps.commands:chat", "ask a model about an image"),
    "scan": ("vlm_detect.apps.commands:scan", "verdicts on many images"),
    "serve": ("vlm_detect.apps.commands:serve", "a page and an API on this machine"),
    "explain": ("vlm_detect.apps.commands:explain", "show where a CNN looks, image by image"),
    "make-pairs": ("vlm_detect.generate.make_pairs:main", "photos in, a dataset of photos and their twins out"),
    "caption": ("vlm_detect.generate.caption:main", "step 1 of make-pairs: describe photos"),
    "render": ("vlm_detect.generate.render:main", "step 2 of make-pairs: make the twins"),
    "pack": ("vlm_detect.generate.pack_pairs:main", "step 3 of make-pairs: write the dataset"),
    "import-pairs": ("vlm_detect.generate.import_pairs:main", "a dataset of pairs that were rendered elsewhere"),
    "import-images": ("vlm_detect.generate.import_images:main", "a dataset of images that others labelled"),
    "add-reasons": ("vlm_detect.generate.add_reasons:main", "a dataset with reasons for its labels"),
    "audit": ("vlm_detect.apps.commands:audit", "what gives a dataset's label away without looking at content"),
    "report": ("vlm_detect.apps.commands:report", "a page that shows a dataset: images, audit, sources, rejects"),
    "view": ("vlm_detect.apps.commands:view", "look through a dataset, or through a run's errors"),
    "train moondream": ("vlm_detect.train.moondream:main", "finetune moondream2 with LoRA"),
    "train tinyllava": ("vlm_detect.train.tinyllava:main", "finetune TinyLLaVA with LoRA"),
    "train vlm": ("vlm_detect.train.vlm:main", "finetune any image-text-to-text model of transformers"),
    "train preference": ("vlm_detect.train.preference:main", "prefer checked explanations to faulty ones (DPO)"),
    "train cnn": ("vlm_detect.cnn.train:main", "train a CNN baseline"),
    "fit-head": ("vlm_detect.apps.commands:fit_head", "fit a head, and weigh a run's witnesses"),
    "adapt": ("vlm_detect.apps.commands:adapt", "take a run to a new generator, from a handful of images"),
    "calibrate": ("vlm_detect.apps.commands:calibrate", "refit a run's threshold on your own images"),
    "export": ("vlm_detect.apps.commands:export", "write a finetuned model in the form that other tools read"),
    "benchmark": ("vlm_detect.benchmark.commands:benchmark", "score a model, or recorded answers"),
    "robustness": ("vlm_detect.benchmark.commands:robustness", "verdicts on compressed, scaled and cropped images"),
    "compare": ("vlm_detect.benchmark.commands:compare", "several runs over the same items"),
    "build-vqa": ("vlm_detect.benchmark.commands:build_vqa", "build a benchmark, or check what one gives away"),
    "import-vqa": ("vlm_detect.benchmark.commands:import_vqa", "a benchmark from a public VQA set"),
    "evidence": ("vlm_detect.benchmark.commands:evidence", "does a model point at planted edits, and name them"),
    "demo": ("vlm_detect.apps.demo:main", "the whole job on bundled photographs with the nano models"),
    "doctor": ("vlm_detect.apps.commands:doctor", "what this machine has, and which training configs fit it"),
    "configs": ("vlm_detect.apps.commands:configs", "list the configs of the package, or print one"),
}


def run(argv: list[str]) -> int | None:
    verb = " ".join(argv[:2]) if argv[:1] == ["train"] else " ".join(argv[:1])
    if verb in VERBS:
        arguments = argv[len(verb.split()) :]
        if argv[0] == "train" and "WORLD_SIZE" not in os.environ:
            # One process takes one GPU: the Trainer would copy the model to all of them (DataParallel).
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        # Records and --help say the command as it was given.
        sys.argv = [f"vlm-detect {verb}", *arguments]
        module, _, function = VERBS[verb][0].partition(":")
        program = getattr(importlib.import_module(module), function)
        return program(arguments)
    if verb in ("--version", "version"):
        print(f"vlm-detect {__version__}")
    elif not verb or argv[-1] in ("-h", "--help") or verb in ("help", "train"):
        print(overview("train" if argv[:1] == ["train"] else ""))
    else:
        near = get_close_matches(verb, VERBS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no verb {verb!r}{meant} (vlm-detect --help lists them)")
    return 0


def overview(first_word: str = "") -> str:
    """What `vlm-detect --help` shows: the verbs, or those that begin with a word."""
    shown = {verb: summary for verb, (_, summary) in VERBS.items() if verb.startswith(first_word)}
    lines = [
        "usage: vlm-detect VERB [--FLAG VALUE ...]",
        "",
        "Tell AI-generated images from real photos, and say why.",
        "",
        *(f"  {verb:<16} {summary}" for verb, summary in shown.items()),
        "",
        "vlm-detect VERB --help lists a verb's flags; --debug shows the traceback of an error;",
        "--allow_local_paths lets the rows of data name files outside of its folder.",
    ]
    return "\n".join(lines)


def main() -> None:
    run_main(run)


if __name__ == "__main__":
    main()
