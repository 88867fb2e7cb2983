"""The rows of a photo and its twins: both members of a pair get the same size, compression history and encoding.

    for row in pair_rows(photo, "a group", size=None, encode=EncodeConfig()): ...      # columns.PAIR_FEATURES
    for row in prompted_rows(row, object_class=None): ...                              # columns.PROMPTED_FEATURES

`photo` is a row of the render step. `receipts.py` reproduces a member from its row.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_detect.generate.usable import perceptual_hash
from vlm_detect.images.decode import decode_image
from vlm_detect.images.encode import crop_to_aspect, describe_jpeg, encode_image, like_source, resize
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.images.jpeg import standard_encoding


def pair_rows(
    photo: Mapping[str, Any], group: str, *, size: int | None, encode: EncodeConfig
) -> Iterator[dict[str, Any]]:
    """Each twin of a photo with its original; `size` is as in `output_size`."""
    decoded = decode_image(photo["image"]["bytes"])
    jpeg = decoded.jpeg
    if jpeg is None and photo["source"]["jpeg_quality"]:
        jpeg = standard_encoding(photo["source"]["jpeg_quality"])  # a PNG that was cut from a JPEG
    rendered = {twin["kind"]: twin_image(twin) for twin in photo["twins"] if twin["kind"] != "edit"}
    for twin in photo["twins"]:
        image, edit = twin_image(twin), twin["edit"]
        out_size = output_size(image.size, size)
        cropped = crop_to_aspect(decoded.image, image.size)
        of_photo = edit is None or edit["of"] == "photo"
        if of_photo:
            before, before_edit = resize(cropped, out_size), resize(cropped, image.size)
        else:
            before_edit = rendered[edit["of"]]
            before = like_source(before_edit, out_size, cropped.size, jpeg)
        after = with_edit(before, before_edit, image) if edit else like_source(image, out_size, cropped.size, jpeg)
        recompressed = jpeg is not None and not (edit and of_photo)  # an edited photo already has its compression
        encoding = encode.describe() | {
            "filter": "lanczos",
            "image_scale": round(out_size[0] / (cropped if of_photo else image).width, 4),
            "twin_scale": round(out_size[0] / (cropped if edit and of_photo else image).width, 4),
            "twin_first": f"jpeg {jpeg.quality} at {cropped.width}x{cropped.height}" if jpeg and recompressed else None,
            "source_jpeg": describe_jpeg(jpeg),
            "source_cropped": list(cropped.size),
            "drawn_at": list(image.size),
        }
        # an autoencoder has no steps and no guidance, an edit no model unless it inpaints
        is_drawn = twin["kind"] in ("caption", "instruct") or bool(edit and edit["operation"] == "inpaint")
        generator = edit["operation"] if edit and of_photo and not is_drawn else photo["generator"]
        pair_id = hashlib.sha256(f"{photo['id']}/{twin['kind']}/{photo['generator']}/{twin['seed']}".encode())
        yield {
            "pair_id": pair_id.hexdigest()[:16],
            "group": group,
            "image": {"bytes": encode_image(before, encode), "path": None},
            "image_label": "real" if of_photo else "generated",
            "twin": {"bytes": encode_image(after, encode), "path": None},
            "kind": twin["kind"],
            "generator": generator,
            "caption": photo["caption"],
            "prompt": twin["prompt"],
            "seed": twin["seed"],
            "edit": edit and edit | {"box": scaled_box(edit["box"], image.size, out_size)},
            "source": photo["source"],
            "receipt": {
                "captioner": photo["captioner"],
                "captioner_revision": photo["captioner_revision"],
                "generator_revision": photo["generator_revision"],
                "steps": photo["steps"] if is_drawn else None,
                "guidance": photo["guidance"] if is_drawn else None,
                "scheduler": photo["scheduler"] if is_drawn else None,
                "dtype": photo["dtype"],
                "quantization": photo["quantization"],
                "batch": twin["batch"],
                "encode": json.dumps(encoding),
            },
        }


def prompted_rows(row: Mapping[str, Any], object_class: str | None) -> list[dict[str, Any]]:
    """The members of a pair as separate rows, for images rendered from prompts.

    The row's id decides which comes first, so that positions in the dataset do not leak the label.
    """
    rendered = Image.open(io.BytesIO(row["twin"]["bytes"]))
    about = {
        "path_or_id": f"prompt: {row['prompt']} (seed {row['seed']})",
        "phash": perceptual_hash(rendered.convert("RGB")),
        "width": rendered.width,
        "height": rendered.height,
    }
    rows = [
        {
            "id": row["source"]["sha256"][:16],
            "image": row["image"],
            "label": "real",
            "generator": "",
            "object_class": object_class,
            "group": row["group"],
            "source": row["source"],
            "receipt": {"encode": row["receipt"]["encode"]},
        },
        {
            "id": row["pair_id"],
            "image": row["twin"],
            "label": "generated",
            "generator": row["generator"],
            "group": row["group"],
            "source": about,
            "prompt": row["prompt"],
            "seed": row["seed"],
            "receipt": row["receipt"],
        },
    ]
    return rows[::-1] if int(row["pair_id"], 16) % 2 else rows


def twin_image(twin: Mapping[str, Any]) -> Image.Image:
    """The rendered twin from a row of the render step."""
    return Image.open(io.BytesIO(twin["image"]["bytes"])).convert("RGB")


def with_edit(before: Image.Image, before_edit: Image.Image, edited: Image.Image) -> Image.Image:
    """`before` with the change from `before_edit` to `edited`, which may have another size.

    Only the difference is added, which is zero outside the box: with equal sizes the edit is unchanged, and otherwise
    only the edit is resized.
    """
    was, is_now = (np.asarray(resize(image, before.size), dtype=np.int16) for image in (before_edit, edited))
    changed = np.asarray(before, dtype=np.int16) + (is_now - was)
    return Image.fromarray(changed.clip(0, 255).astype(np.uint8))


def scaled_box(box: Sequence[int], size: tuple[int, int], to: tuple[int, int]) -> list[int]:
    """Scale a box of an image from `size` to `to`, with a margin for the resampling filter."""
    if size == to:
        return list(box)
    scaled = []
    for start, stop, length, new in ((box[0], box[2], size[0], to[0]), (box[1], box[3], size[1], to[1])):
        reach = 3 * max(1.0, new / length)  # Lanczos reads three pixels of the coarser grid to either side
        scaled.append(
            (max(0, math.floor(start * new / length - reach)), min(new, math.ceil(stop * new / length + reach)))
        )
    (x0, x1), (y0, y1) = scaled
    return [x0, y0, x1, y1]


def output_size(twin_size: tuple[int, int], side: int | None) -> tuple[int, int]:
    """(width, height) of both members: the twin's own, or its aspect with about `side`^2 pixels."""
    if side is None:
        return twin_size
    scale = side / math.sqrt(twin_size[0] * twin_size[1])
    return max(1, round(twin_size[0] * scale)), max(1, round(twin_size[1] * scale))
