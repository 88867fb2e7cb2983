"""Generated ids to text that can be shown while it grows.

A piece comes only when it is final: half a character waits for its other bytes, and white space at the end waits for
what follows, so that the pieces joined are exactly the stripped text of the whole answer.
"""

from __future__ import annotations

from vlm_detect.models.base import VLM


class TextStream:
    """Takes the ids of one answer, gives its text piece by piece; `text` is what was given so far."""

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm
        self._ids: list[int] = []
        self.text = ""

    @property
    def n_tokens(self) -> int:
        return len(self._ids)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, which may be none."""
        self._ids.append(token_id)
        return self._advance(final=False)

    def finish(self) -> str:
        """What was held back."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        text = self._vlm.decode(self._ids).strip()
        if text.endswith("\ufffd") and not final:
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece
