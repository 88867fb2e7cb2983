"""Reproduce an image from its row: a test that receipts are complete.

    render_row(Path("data/pairs"), "0f3a...", Path("twin.jpg"))      # vlm-detect render --row ID

The row has prompt, seed, batch, sizes and encoding, `run.json` the generator's settings. The last bits of a matrix
product depend on the number of rows and on the image's row index, but not on the other rows: so a twin is rendered in a
batch of its copies, of the size in the receipt and at the same index. With the same number of threads that gives the
same file on a CPU.

Images made from a photo (a VAE twin, an edit by instruction, an edit of a photo, a splice and its donor) need that
photo, found by its path and verified by its SHA-256. For an edit of a twin, the twin is rendered first.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from vlm_detect.config import file_sha256, read_run_json
from vlm_detect.errors import UserError
from vlm_detect.generate.choices import Share, TwinKinds
from vlm_detect.generate.edits import edit_once
from vlm_detect.generate.generator import Generator
from vlm_detect.generate.options import RenderConfig
from vlm_detect.generate.pair_rows import with_edit
from vlm_detect.generate.renderer import bucket, find_generator
from vlm_detect.images.decode import decode_image
from vlm_detect.images.edits import Place
from vlm_detect.images.encode import crop_to_aspect, encode_image, fit, like_source, read_jpeg, resize
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.jobs.shards import full_disk_as_user_error


def render_row(dataset: Path, row_id: str, out: Path, *, photo: str | None = None, donor: str | None = None) -> str:
    """Reproduce the twin of a pair, or an image rendered from a prompt, and report its similarity to the dataset's.

    It is written to `out` with the dataset's encoding. `photo` and `donor` are the files of the source photo and of the
    donor of a splice, if they have moved.
    """
    row = read_row(dataset, row_id)
    if row.get("label") == "real":
        raise UserError(f"{row_id}: a photo, which was not rendered; give the id of a generated image")
    stored = row["image" if "label" in row else "twin"]["bytes"]
    data = encode_image(_Again(dataset, row, photo, donor).make(), _encoder(row))
    with full_disk_as_user_error(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
    what = f"the {row.get('kind', 'prompted')} image of {row_id}"
    if data == stored:
        return f"{what}, the same bytes as in {dataset}"
    before, again = (np.asarray(Image.open(io.BytesIO(held)), float) for held in (stored, data))
    error = float(((before - again) ** 2).mean())
    if not error:
        return f"{what}, the same pixels as in {dataset} in other bytes: another version of the encoder"
    return f"{what}, {10 * np.log10(255**2 / error):.1f} dB from the one in {dataset}"


def read_row(dataset: Path, row_id: str) -> dict[str, Any]:
    """The row of a pair dataset with this pair_id, or of a prompted one with this id; images as bytes."""
    for path in sorted(dataset.glob("data/*.parquet")):
        names = pq.read_schema(path).names
        key = next((name for name in ("pair_id", "id") if name in names), None)
        if key and (row := _first(path, pc.field(key) == row_id)) is not None:
            return row
    raise UserError(
        f"{row_id}: no row of {dataset} has this id (column pair_id, or id for images rendered from prompts)"
    )


def _find(dataset: Path, where: pc.Expression) -> dict[str, Any] | None:
    found = (_first(path, where) for path in sorted(dataset.glob("data/*.parquet")))
    return next((row for row in found if row is not None), None)


def _first(path: Path, where: pc.Expression) -> dict[str, Any] | None:
    rows = pq.read_table(path, filters=where).slice(0, 1).to_pylist()
    return dict(rows[0]) if rows else None


@dataclass(frozen=True)
class _Sizes:
    """The sizes and the source's compression from a receipt."""

    drawn_at: tuple[int, int]  # of the twin before resizing to its size in the dataset
    cropped: tuple[int, int]  # of the source photo, after its crop to that aspect
    jpeg: dict[str, Any] | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> _Sizes:
        encoding = json.loads(row["receipt"]["encode"])
        return cls(tuple(encoding["drawn_at"]), tuple(encoding["source_cropped"]), encoding["source_jpeg"])

    def finish(self, rendered: Image.Image, size: tuple[int, int]) -> Image.Image:
        return like_source(rendered, size, self.cropped, read_jpeg(self.jpeg))


class _Again:
    """Reproduces one row's image; the generator is loaded only if needed."""

    def __init__(self, dataset: Path, row: Mapping[str, Any], photo: str | None, donor: str | None) -> None:
        self._dataset, self._row, self._photo, self._donor = dataset, row, photo, donor
        self._sizes = _Sizes.from_row(row)
        self._config = _render_config(dataset, row["generator"])

    def make(self) -> Image.Image:
        """The image before the final encoding."""
        size = Image.open(io.BytesIO(self._row["image"]["bytes"])).size  # both members have it
        if self._row.get("edit"):
            return self._edited(size)
        return self._sizes.finish(self._drawn(self._row), size)

    def _edited(self, size: tuple[int, int]) -> Image.Image:
        edit, at = self._row["edit"], self._sizes.drawn_at
        if edit["of"] == "photo":
            photo = self._source()
            before, before_edit = resize(crop_to_aspect(photo, at), size), fit(photo, at)
        else:
            of_photo = pc.field("source", "sha256") == self._row["source"]["sha256"]
            of_generator = pc.field("generator") == self._row["generator"]
            twin = _find(self._dataset, of_photo & of_generator & (pc.field("kind") == edit["of"]))
            if twin is None:
                raise UserError(f"{self._row['pair_id']}: the {edit['of']} twin that was edited is not in the dataset")
            before_edit = self._drawn(twin)
            before = self._sizes.finish(before_edit, size)
        edited = edit_once(
            before_edit,
            self._row["seed"],
            edit["attempt"],
            edit["operation"],
            donor=self._spliced_from(edit["donor"]) if edit["donor"] else None,
            paint=self._paint,
        )
        return with_edit(before, before_edit, edited.image)

    @functools.cached_property
    def _renderer(self) -> Generator:
        cls, model = find_generator(self._config.generator, self._row["receipt"]["generator_revision"])
        return cls(model, self._config.sampling)

    def _drawn(self, row: Mapping[str, Any]) -> Image.Image:
        """A caption, VAE or instruct twin of this photo, as rendered by the pipeline."""
        place, count = map(int, row["receipt"]["batch"].split("/"))
        at = self._sizes.drawn_at
        if row.get("kind") == "vae":
            return self._renderer.reconstruct([fit(self._source(), at)] * count)[place]
        (prompt,) = self._renderer.encode_prompts([row["prompt"]])
        if row.get("kind") == "instruct":
            return self._renderer.instruct(fit(self._source(), at), row["seed"], prompt)
        return self._renderer.render([prompt] * count, [row["seed"]] * count, at)[place]

    def _paint(self, image: Image.Image, place: Place, seed: int) -> Image.Image:
        (arguments,) = self._renderer.encode_prompts([self._row["prompt"]])
        return self._renderer.inpaint(image, place, seed, arguments)

    def _source(self) -> Image.Image:
        source = self._row["source"]
        return _open_checked(self._photo or source["path_or_id"], source["sha256"], "source photo", "--photo")

    def _spliced_from(self, donor: str) -> Image.Image:
        """The donor of a splice, at the size of its own twins."""
        row = _find(self._dataset, pc.starts_with(pc.field("source", "sha256"), donor))
        path = self._donor or (row["source"]["path_or_id"] if row else None)
        if path is None:
            raise UserError(
                f"{self._row['pair_id']}: the donor of its splice (SHA-256 {donor}...) is not in the "
                "dataset; give it with --donor FILE"
            )
        photo = _open_checked(path, donor, "donor of its splice", "--donor")
        if row:
            return fit(photo, _Sizes.from_row(row).drawn_at)
        side = self._config.render_size or self._renderer.native_side
        square = self._config.aspect == "square"
        return fit(photo, bucket(photo.size, side, self._renderer.size_multiple, square=square))


def _open_checked(path_or_id: str, sha256: str, what: str, flag: str) -> Image.Image:
    """A photo verified by its hash, or by the beginning of its hash."""
    path = Path(path_or_id)
    if not path.is_file():
        raise UserError(f"{path}: the {what} is missing; give it with {flag} FILE")
    if not file_sha256(path).startswith(sha256):
        raise UserError(f"{path}: not the {what} of this row (its SHA-256 is another)")
    return decode_image(path).image


def _render_config(dataset: Path, generator: str) -> RenderConfig:
    """The settings of the render step, or of that with this generator (its name in a row) if there are several."""
    record = (read_run_json(dataset) or {}).get("config", {})
    steps = record["renders"] if "renders" in record else [record["render"]] if "render" in record else []
    names = RenderConfig.__dataclass_fields__
    found = []
    for step in steps:
        settings = {name: value for name, value in step["settings"].items() if name in names}
        strings = {"twins": TwinKinds(settings["twins"]), "share": Share(settings.get("share", ""))}
        found.append(RenderConfig(**settings | strings))
    if not found:
        raise UserError(f"{dataset}: its run.json has no settings of a render step; was it made with make-pairs?")
    named = [one for one in found if one.generator + one.sampling.variant == generator]
    config = (named or found)[0]
    if config.generator_endpoint:  # of a dataset that others may have made: nothing is sent there
        raise UserError(
            f"{dataset}: its images come from an endpoint ({config.generator_endpoint}), which does not promise "
            "the same image for the same seed; they cannot be reproduced"
        )
    return config


def _encoder(row: Mapping[str, Any]) -> EncodeConfig:
    encoding = json.loads(row["receipt"]["encode"])
    if encoding["format"] == "png":
        return EncodeConfig(encode="png")
    return EncodeConfig("jpeg", encoding["quality"], encoding["subsampling"])
