"""Convert the pixel mask of an edit to a box."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.decode import decode_image
from vlm_detect.records import Label

_SET = 128  # grey level from which a mask pixel counts; JPEG creates lower ones near edges
_WHOLE = 0.995  # share of pixels from which the entire image counts as generated


def edit_of_mask(mask: bytes, size: tuple[int, int]) -> dict[str, Any] | None:
    """The column `edit` of an image of `size` (width, height); None if the mask is empty or covers everything.

    A mask gives neither the operation nor its strength. Raises `ImageRejected` for a mask that is not an image.
    """
    try:
        changed = np.asarray(decode_image(mask).image.convert("L")) >= _SET  # (H, W)
    except ImageRejected as error:
        raise ImageRejected("bad_mask", str(error)) from error
    if not changed.any() or changed.mean() >= _WHOLE:
        return None
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    scale = size[0] / changed.shape[1], size[1] / changed.shape[0]
    box = [columns[0] * scale[0], rows[0] * scale[1], (columns[-1] + 1) * scale[0], (rows[-1] + 1) * scale[1]]
    return {
        "of": None,
        "operation": None,
        "box": [int(box[0]), int(box[1]), int(np.ceil(box[2])), int(np.ceil(box[3]))],
        "strength": None,
        "donor": None,
        "attempt": None,
    }


def label_with_edit(label: Label, edit: dict[str, Any] | None) -> Label:
    """The label of an image with a mask of a part of it: edited, whatever the set's label."""
    if edit is None:
        return label
    if label == "real":
        raise ImageRejected("mask_on_real", "it is labelled real, but its mask marks a changed part")
    return "edited"
