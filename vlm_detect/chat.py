"""Moved; `_moved.py` has the new paths. Works until version 0.3."""

from vlm_detect._moved import add_aliases

add_aliases(__name__)
