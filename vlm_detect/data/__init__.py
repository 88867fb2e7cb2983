"""Data: sources, image sets, pairs on disk, splits, and the audit of what gives a label away."""

from vlm_detect._moved import add_aliases

add_aliases(__name__)
