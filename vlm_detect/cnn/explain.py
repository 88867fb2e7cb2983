"""`vlm-detect explain`: a CNN's input, heat map and scores for each image, on one page.

    explain(CnnDetector.load("runs/cnn_fakenet2"), ["photos/"], Path("page.html"))

Each card has the square that the network reads, its inverted and saturated view, the heat map of what speaks for
"generated" (or "edited"), and the scores of all heads. A file that cannot be read is listed on the page and skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlm_detect.cnn.heatmap import heat_maps, overlay
from vlm_detect.data.sources import Found, look_into, report_skipped
from vlm_detect.errors import UserError
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.models.cnn.detector import CnnDetector
from vlm_detect.models.cnn.verdicts import VERDICT
from vlm_detect.models.cnn.views import saturate
from vlm_detect.pages.page import Picture, photo, render, write_page
from vlm_detect.progress import progress

_SHOWN = 256  # pixels: smaller squares are enlarged by whole steps, so that their pixels can be seen
_CLASSES = 3  # of each head


def explain(detector: CnnDetector, paths: Sequence[str], out: Path, *, batch: int = 32) -> int:
    """Write the page on all images of `paths`, files and folders; returns how many it shows.

    Raises:
        UserError: if a path does not exist, or no image can be read.
    """
    names, images, bad = open_images(paths)
    if not images:
        raise UserError(f"none of the {len(bad)} images can be read; the first: {bad[0]}")
    cards = []
    with progress(desc="explain", total=len(images), unit="img") as bar:
        for start in range(0, len(images), batch):
            cards += explained(detector, images[start : start + batch], names[start : start + batch])
            bar.update(min(batch, len(images) - start))
    config = detector.config
    html = render(
        "explain.html.j2",
        title=f"Where {config.arch} looks",
        model=detector.name,
        lead=f"{len(images)} images, read at {config.image_size}x{config.image_size} pixels, view: {config.view}.",
        positive_class=detector.positive_class,
        cards=cards,
        bad=bad,
    )
    write_page(out, html)
    return len(images)


def explained(detector: CnnDetector, images: Sequence[Image.Image], names: Sequence[str]) -> list[dict[str, Any]]:
    """One card an image: pictures and scores."""
    pixels = detector.pixels(images)
    scores, heat = detector.scores(images), heat_maps(detector, pixels)
    views = inverted(pixels, detector.config.saturation)
    cards = []
    for place, name in enumerate(names):
        p_fake = float(scores.p_fake[place])
        pictures = {
            "Input": pixels[place],
            "Inverted, saturated": views[place],
            f"Evidence for “{detector.positive_class}”": overlay(pixels[place], heat[place]),
        }
        cards.append(
            {
                "name": name,
                "pictures": [enlarged(array, f"{title}: {name}", title) for title, array in pictures.items()],
                "p_fake": p_fake,
                "label": detector.label(p_fake),
                "heads": {
                    head: [(classes[i], float(scores.heads[head][place, i])) for i in _best(scores.heads[head][place])]
                    for head, classes in detector.heads.items()
                    if head != VERDICT or len(classes) > 2
                },
            }
        )
    return cards


def inverted(pixels: np.ndarray, saturation: float) -> np.ndarray:
    """The second view of images (N, S, S, 3) uint8, whatever the network itself is shown."""
    shown = saturate(255 - torch.from_numpy(pixels).permute(0, 3, 1, 2), saturation)
    return shown.permute(0, 2, 3, 1).numpy()


def enlarged(pixels: np.ndarray, alt: str, caption: str) -> Picture:
    factor = max(1, _SHOWN // max(pixels.shape[:2]))
    return photo(Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1)), alt, caption=caption)


def open_images(paths: Sequence[str]) -> tuple[list[str], list[Image.Image], list[str]]:
    """(names, images, what could not be read and why) of files and of the images in folders."""
    names, images, bad = [], [], []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        found = look_into(path) if path.is_dir() else Found([path])
        report_skipped(str(path), found.skipped)
        files = found.images
        if not files:
            raise UserError(f"{path}: no images found there")
        for file in files:
            try:
                images.append(decode_image(file).image)
                names.append(str(file))
            except ImageRejected as rejected:
                bad.append(f"{file}: {rejected}")
    return names, images, bad


def _best(probabilities: np.ndarray) -> list[int]:
    return np.argsort(-probabilities)[:_CLASSES].tolist()
