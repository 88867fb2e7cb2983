"""The `vlm-detect` command: the verbs that need no clone. Each imports what it needs only when it is called."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .errors import run_main


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
    from .chat.terminal import answer_once, converse
    from .infer.detector import Detector, open_picture

    open_picture(arguments.image)  # before the model, which takes longer to load than a wrong path to notice
    detector = Detector(arguments.model, adapter=arguments.adapter)
    if arguments.question is None:
        converse(detector, arguments.image)
    else:
        answer_once(detector, arguments.image, arguments.question)


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="run directory of a recipe")
    parser.add_argument("--to", required=True, choices=["adapter", "merged", "official", "variant"])
    parser.add_argument("out", help="a new folder")


def export(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from .models.export import export

    export(arguments.run, arguments.to, Path(arguments.out))
    print(f"{arguments.out}: written ({arguments.to})")


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]] = {
    "chat": ("ask a model about an image", add_chat, chat),
    "export": ("write a finetuned model in the form that other tools read", add_export, export),
}


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="vlm-detect", description="Tell AI-generated images from real photos.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (summary, add_arguments, _) in VERBS.items():
        add_arguments(verbs.add_parser(name, help=summary, description=summary))
    arguments = parser.parse_args(argv)
    VERBS[arguments.verb][2](arguments)


def main() -> None:
    run_main(run)
