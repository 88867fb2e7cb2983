"""One twin again, from what its row says: the proof that a receipt holds all that is needed.

    render_row(Path("data/pairs"), "0f3a...", Path("twin.jpg"))      # data_gen/render.py --row ID

The row gives prompt, seed, batch and encoding, `run.json` the generator's settings; a VAE twin needs its source photo
as well, found by its path and known by its SHA-256. A matrix product's last bits depend on how many rows it has
and which of them an image is, but not on what the others hold: so the twin is drawn in a batch of its copies, as large
as the one in the receipt and at the same place. With the same number of threads that gives the same file on a CPU.

Edits are not drawn again: what they change is kept in the row, beside what they were made from.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from vlm_detect.config import file_sha256, read_run_json
from vlm_detect.data.decode import decode_image
from vlm_detect.data.encode import EncodeConfig, crop_size, encode_image, fit, like_source, read_jpeg
from vlm_detect.data.render_step import RenderConfig, TwinKinds
from vlm_detect.data.renderer import Renderer, bucket
from vlm_detect.errors import UserError
from vlm_detect.models.registry import resolve_id


def render_row(dataset: Path, pair_id: str, out: Path, photo: str | None = None) -> str:
    """Draw the twin of a row, write it to `out` as the dataset has it, and say how alike the two are."""
    row = read_row(dataset, pair_id)
    if row["kind"] == "edit":
        raise UserError(f"{pair_id}: an edit; render its photo's or twin's row, the edit itself stands in the row")
    data = encode_image(draw_again(dataset, row, photo), _encoder(row))
    out.write_bytes(data)
    if data == row["twin"]["bytes"]:
        return f"the twin of {pair_id}, the same bytes as in {dataset}"
    stored, again = (np.asarray(Image.open(io.BytesIO(held)), float) for held in (row["twin"]["bytes"], data))
    error = float(((stored - again) ** 2).mean())
    return f"the twin of {pair_id}, {10 * np.log10(255**2 / error):.1f} dB from the one in {dataset}"


def read_row(dataset: Path, pair_id: str) -> dict[str, Any]:
    """A row of a pair dataset, images as bytes."""
    for path in sorted(dataset.glob("data/*.parquet")):
        if rows := pq.read_table(path, filters=[("pair_id", "==", pair_id)]).to_pylist():
            return dict(rows[0])
    raise UserError(f"{pair_id}: no row of {dataset} has this pair_id")


def draw_again(dataset: Path, row: dict[str, Any], photo: str | None = None) -> Image.Image:
    """The twin of `row` at the size and with the compression that it had before the last encoder."""
    config = _render_config(dataset)
    model = resolve_id(config.generator, "renderer", row["receipt"]["generator_revision"])
    renderer = Renderer(model, config.sampling)
    place, count = map(int, row["receipt"]["batch"].split("/"))
    photo_size = row["source"]["width"], row["source"]["height"]
    side, multiple = config.render_size or renderer.native_side, renderer.size_multiple
    size = bucket(photo_size, side, multiple, square=config.aspect == "square")
    if row["kind"] == "vae":
        drawn = renderer.reconstruct([fit(decode_image(_source(row, photo)).image, size)] * count)
    else:
        drawn = renderer.render(renderer.encode_prompts([row["prompt"]]) * count, [row["seed"]] * count, size)
    twin_size = Image.open(io.BytesIO(row["twin"]["bytes"])).size
    return like_source(
        drawn[place],
        twin_size,
        crop_size(photo_size, size),
        read_jpeg(json.loads(row["receipt"]["encode"])["source_jpeg"]),
    )


def _render_config(dataset: Path) -> RenderConfig:
    record = read_run_json(dataset) or {}
    try:
        settings = dict(record["config"]["render"]["settings"])
    except KeyError as error:
        raise UserError(
            f"{dataset}: its run.json tells no settings of the render step; was it rendered here?"
        ) from error
    names = RenderConfig.__dataclass_fields__
    settings = {name: value for name, value in settings.items() if name in names}
    return RenderConfig(**settings | {"twins": TwinKinds(settings["twins"])})


def _source(row: dict[str, Any], photo: str | None) -> Path:
    """The photo that a row was made of, checked by its hash."""
    path = Path(photo or row["source"]["path_or_id"])
    if not path.is_file():
        raise UserError(f"{path}: the source photo is not there; a VAE twin is made of it: give it with --photo FILE")
    if file_sha256(path) != row["source"]["sha256"]:
        raise UserError(f"{path}: not the photo that the row was made of (its SHA-256 is another)")
    return path


def _encoder(row: dict[str, Any]) -> EncodeConfig:
    encoding = json.loads(row["receipt"]["encode"])
    if encoding["format"] == "png":
        return EncodeConfig(encode="png")
    return EncodeConfig("jpeg", encoding["quality"], encoding["subsampling"])
