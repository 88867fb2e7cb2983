"""Data: sources, image sets, pairs on disk, splits, and the audit for leaks."""

from vlm_detect._moved import add_aliases

add_aliases(__name__)
