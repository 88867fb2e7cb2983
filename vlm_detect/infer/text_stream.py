"""Incremental decoding: from generated ids to text that can be streamed.

A piece is emitted only when it is final: an incomplete character waits for its other bytes, and trailing white space
waits for what follows, so that the joined pieces equal the stripped text of the complete answer.
"""

from __future__ import annotations

from vlm_detect.models.base import VLM


class TextStream:
    """Takes the ids of one answer and returns its text piece by piece; `text` is the text so far."""

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm
        self._ids: list[int] = []
        self.text = ""

    @property
    def n_tokens(self) -> int:
        return len(self._ids)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; may be empty."""
        self._ids.append(token_id)
        return self._advance(final=False)

    def finish(self) -> str:
        """Return the pending text."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        text = self._vlm.decode(self._ids).strip()
        if text.endswith("\ufffd") and not final:
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece
