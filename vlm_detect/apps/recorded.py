"""The package's configs that are for a card of some size, and the file that records the memory that each takes."""

from __future__ import annotations

from pathlib import Path

from vlm_detect.config import CONFIGS

ESTIMATES = Path(__file__).with_name("estimates.json")  # written by estimates.py, read by doctor.py


def sized_configs() -> list[Path]:
    return sorted((CONFIGS / "recipes").glob("*_*gb.yaml"))
