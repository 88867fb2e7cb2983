"""A conversation about an image, in the terminal.

    vlm-detect chat --model runs/moondream_lora photo.jpg                                  # a conversation
    vlm-detect chat --model runs/moondream_lora photo.jpg "Is this image AI-generated?"    # one answer
    vlm-detect chat --model runs/moondream_lora photo.jpg < questions.txt                  # one answer per line

A single answer is the only output on stdout, so that it can be piped. In a conversation Ctrl-C stops the answer and
Ctrl-D ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw

from vlm_detect.apps.session import Session, describe, details, reason_lines
from vlm_detect.apps.terminal_image import escape_sequence, protocol_of
from vlm_detect.errors import UserError
from vlm_detect.infer.detector import Detector

MARK_RGB = (230, 97, 1)

HELP = """\
  /image PATH     switch to another image
  /verdict        show the verdict and its reasons again
  /boxes [FILE]   the places that the reasons name, numbered (green: confirmed, red: contradicted, grey: unchecked)
  /map [FILE]     map the evidence of the verdict (orange: generated, blue: real)
  /detect NAME    boxes around what NAME names, in pixels (moondream2); /point: a point on each
  /reset          clear the conversation
  /save FILE      save the conversation as text, or as JSON if FILE ends in .json
  /help, /quit    anything else is a question about the image"""


def answer_once(detector: Detector, image: str, question: str) -> None:
    """Stream one answer to stdout."""
    session = Session(detector, image)
    _stream(session.ask(question))


def converse(detector: Detector, image: str, *, only_confirmed: bool = False) -> None:
    """Print verdict and reasons, then answer each line of input; a terminal also gets a prompt and history."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # not on Windows; importing it gives `input` its history
            import readline  # noqa: F401
    session = Session(detector, image, only_confirmed=only_confirmed)
    _guarded(session, "/verdict", interactive)
    if interactive:
        print("Ask about the image, or /help. Ctrl-C stops an answer, Ctrl-D ends.")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            break
        except UnicodeDecodeError as error:
            raise UserError(f"the questions are not in {error.encoding}: convert them first") from error
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            continue
        if line in ("/quit", "/exit"):
            break
        if line:
            _guarded(session, line, interactive)


def _guarded(session: Session, line: str, interactive: bool) -> None:
    """Execute one line; an error is printed and the conversation continues."""
    try:
        _carry_out(session, line)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        if not interactive:
            raise
        print(" [stopped]")


def _carry_out(session: Session, line: str) -> None:
    if not line.startswith("/"):
        _stream(session.ask(line))
        return
    command, _, argument = line.partition(" ")
    argument = argument.strip()
    match command:
        case "/image" if argument:
            session.open(argument)
            _show_verdict(session)
        case "/verdict":
            _show_verdict(session)
        case "/map":
            _show_or_save(session, session.verdict.map().overlay(session.image), "map", argument)
        case "/boxes":
            _show_or_save(session, session.boxes(), "boxes", argument)
        case "/detect" if argument:
            _show_boxes(session, argument)
        case "/point" if argument:
            _show_points(session, argument)
        case "/reset":
            session.reset()
            print("The conversation is cleared.")
        case "/save" if argument:
            session.save(Path(argument).expanduser())
            print(f"{argument}: written")
        case "/help":
            print(HELP)
        case _:
            raise UserError(f"{line}: unknown command, or its argument is missing; see /help")


def _show_verdict(session: Session) -> None:
    _show_image(session.image)
    verdict = session.verdict
    print(describe(verdict, session.name))
    print("\n".join(details(verdict, verdict.contradictions)))
    if session.only_confirmed:
        list(session.explain())
    else:
        _stream(session.explain())
    found = session.explanation
    for line in reason_lines(found.reasons):
        print(line)
    if not found.reasons:
        print("  It gives no reason" + (" that a measurement confirms" if session.only_confirmed else ""))
    elif session.detector.checks_nothing:
        print(f"  {session.detector.checks_nothing}")
    if any(reason.box for reason in found.reasons):
        _show_image(session.boxes())
    for sentence in session.contradictions[len(verdict.contradictions) :]:
        print(f"  contradiction: {sentence}")


def _show_or_save(session: Session, picture: Image.Image, kind: str, argument: str) -> None:
    """In the terminal, or in the file that is named, or where the terminal shows no images one that is not."""
    if not argument and _show_image(picture):
        return
    path = Path(argument or f"{Path(session.name).stem}_{kind}.png").expanduser()
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the {kind} cannot be written ({error}); name a .png file") from error
    print(f"{path}: written")


def _show_boxes(session: Session, phrase: str) -> None:
    boxes = [box.pixels(*session.image.size) for box in session.verdict.detect(phrase)]
    marked = session.image.copy()
    draw = ImageDraw.Draw(marked)
    for box in boxes:
        draw.rectangle(box, outline=MARK_RGB, width=max(1, min(marked.size) // 150))
    _list(phrase, [f"from ({left}, {top}) to ({right}, {bottom})" for left, top, right, bottom in boxes])
    _show_image(marked)


def _show_points(session: Session, phrase: str) -> None:
    width, height = session.image.size
    points = [(round(point.x * width), round(point.y * height)) for point in session.verdict.point(phrase)]
    marked = session.image.copy()
    for point in points:
        ImageDraw.Draw(marked).circle(point, max(2, min(marked.size) // 80), fill=MARK_RGB)
    _list(phrase, [f"at {point}" for point in points])
    _show_image(marked)


def _list(phrase: str, found: list[str]) -> None:
    print(f"{phrase}: {len(found)} found")
    for number, place in enumerate(found, start=1):
        print(f"  {number}. {place}")


def _show_image(image: Image.Image) -> bool:
    """Show an image in the terminal; False where it cannot."""
    protocol = protocol_of(os.environ) if sys.stdout.isatty() else None
    if protocol:
        print(escape_sequence(image, protocol), end="", flush=True)
    return protocol is not None


def _stream(pieces: Iterable[str]) -> None:
    """Print text as it arrives, without control characters other than line ends, so that an answer cannot control the
    terminal."""
    for piece in pieces:
        print("".join(c for c in piece if c.isprintable() or c == "\n"), end="", flush=True)
    print()
