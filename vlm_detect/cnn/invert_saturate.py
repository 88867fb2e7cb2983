"""What the inverted and saturated view leaves of an image, at full resolution and at 32 pixels: a figure and numbers.

    python eval/invert_saturate.py --out docs/invert_saturate.png --data data/cifake

Shown are photographs of the demo. The numbers are bits a pixel that PNG needs for the view, of the photographs, of the
same scaled to 32 pixels, and of a sample of --data: what is not there any more no network can learn from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlm_detect.config import parse_config
from vlm_detect.errors import run_main


@dataclass(frozen=True)
class Config:
    out: str = field(default="docs/invert_saturate.png", metadata={"help": "The figure."})
    data: str | None = field(default=None, metadata={"help": "An image dataset; its validation split is measured."})
    figures: str | None = field(default=None, metadata={"help": "Write the numbers to this JSON file."})


def main(argv: list[str]) -> None:
    (config,) = parse_config([Config], argv, doc=__doc__)
    from vlm_detect.cnn.view_figure import draw_views  # late: with torch, which --help does without

    draw_views(Path(config.out), config.data, config.figures)


if __name__ == "__main__":
    run_main(main)
