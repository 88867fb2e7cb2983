"""Images inside a terminal that can show them: kitty's protocol (kitty, Ghostty) and iTerm2's (iTerm2, WezTerm)."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Literal

from PIL import Image

Protocol = Literal["kitty", "iterm"]
MAX_SIDE = 480  # pixels
_CHUNK = 4096  # of base64, kitty's limit per command


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """The protocol that the terminal announces; None if unknown, and inside tmux, which forwards none."""
    if "TMUX" in environment:
        return None
    if "KITTY_WINDOW_ID" in environment or environment.get("TERM") in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    return "iterm" if environment.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm") else None


def escape_sequence(image: Image.Image, protocol: Protocol) -> str:
    """The escape sequence that shows `image`, scaled down to `MAX_SIDE`."""
    small = image.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;size={buffer.tell()}:{data}\a\n"
    chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    commands = []
    for i, chunk in enumerate(chunks):
        control = ("a=T,f=100," if i == 0 else "") + f"m={int(i + 1 < len(chunks))}"
        commands.append(f"\x1b_G{control};{chunk}\x1b\\")
    return "".join(commands) + "\n"
