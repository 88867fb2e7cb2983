"""The package's configs for a GPU of a given size, and the file that records their memory."""

from __future__ import annotations

from pathlib import Path

from vlm_detect.config import CONFIGS

ESTIMATES = Path(__file__).with_name("estimates.json")  # written by estimates.py, read by doctor.py


def sized_configs() -> list[Path]:
    return sorted((CONFIGS / "recipes").glob("*_*gb.yaml"))
