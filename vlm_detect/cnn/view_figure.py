"""The effect of a view on images, plotted and measured: the program behind `eval/invert_saturate.py`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from vlm_detect.cnn.pixels import decode_split
from vlm_detect.config import command_line, git_commit, write_json
from vlm_detect.data.demo_photos import PHOTOGRAPHS, photograph_path
from vlm_detect.images.decode import decode_image
from vlm_detect.models.cnn.squares import to_square
from vlm_detect.models.cnn.views import show

VIEWS = {"plain": None, "factor 8": 8.0, "factor 500": 500.0}
SHOWN = ("chelsea", "coffee")
SIDE = 256  # pixels cut from the middle of a photograph
SAMPLE = 512  # images of --data


def draw_views(out: Path, data: str | None, figures: str | None) -> None:
    """The figure `out`, with bits a pixel of each view; of a sample of `data` too. The numbers go to `figures`."""
    photos = {photo.name: to_square(decode_image(photograph_path(photo)).image, SIDE, "crop") for photo in PHOTOGRAPHS}
    full = np.stack([np.asarray(image) for image in photos.values()])
    small = np.stack([np.asarray(to_square(image, 32, "resize")) for image in photos.values()])
    sets = {f"photographs, {SIDE} px": full, "the same at 32 px": small}
    if data:
        sets[f"{Path(data).name}, 32 px"] = decode_split(data, "validation", size=32).images[:SAMPLE]
    bits = {
        name: {view: round(bits_per_pixel(seen(images, view)), 2) for view in VIEWS} for name, images in sets.items()
    }
    for name, values in bits.items():
        print(f"{name}: " + ", ".join(f"{view} {value} bits a pixel" for view, value in values.items()))
    draw(out, [full[list(photos).index(name)] for name in SHOWN], bits)
    if figures:
        record: dict[str, Any] = {"task": "bits a pixel of PNG by view", "data": list(sets), "bits_per_pixel": bits}
        record |= {"command": " ".join(command_line()), "commit": git_commit()}
        write_json(figures, record)


def seen(images: np.ndarray, view: str) -> np.ndarray:
    """(N, S, S, 3) uint8 through a view of `VIEWS`."""
    factor = VIEWS[view]
    if factor is None:
        return images
    return (
        show(torch.from_numpy(images.copy()).permute(0, 3, 1, 2), "invert_saturate", factor).permute(0, 2, 3, 1).numpy()
    )


def bits_per_pixel(images: np.ndarray) -> float:
    """Of one tall PNG of all images, so that small ones do not pay for headers."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(images).reshape(-1, images.shape[2], 3)).save(buffer, "PNG", optimize=True)
    return 8 * buffer.tell() / images[..., 0].size


def draw(out: Path, photos: list[np.ndarray], bits: dict[str, dict[str, float]]) -> None:
    figure = Figure(figsize=(7.5, 2.5 * 2 * len(photos)), layout="constrained")
    axes = figure.subplots(2 * len(photos), len(VIEWS))
    for place, photo in enumerate(photos):
        sizes = {f"{SIDE} px": photo, "32 px": np.asarray(to_square(Image.fromarray(photo), 32, "resize"))}
        for row, (size, pixels) in enumerate(sizes.items()):
            for column, view in enumerate(VIEWS):
                at = axes[2 * place + row, column]
                at.imshow(seen(pixels[None], view)[0], interpolation="nearest")
                at.set_xticks([])
                at.set_yticks([])
                at.set_title(f"{size}, {'as it is' if view == 'plain' else 'inverted, ' + view}", fontsize=8)
    lines = [
        f"{name}: " + ", ".join(f"{view} {value}" for view, value in values.items()) for name, values in bits.items()
    ]
    figure.suptitle("Bits a pixel after PNG\n" + "\n".join(lines), fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)
