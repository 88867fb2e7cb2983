"""Demo photographs without a download: those in scikit-image and scikit-learn, cut into tiles.

    python -m vlm_detect.data.demo_photos OUT        # OUT/*.png and OUT/metadata.jsonl; no network

A dozen photographs are far too few to measure anything; they are for running every step on real pixels. The `group` of
a tile is its photograph; the two images of a stereo pair show the same motorcycle and are one group. Tiles of JPEG
photographs are cut on the JPEG's 16-pixel grid, and the metadata have the quality of their compression.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageStat

from vlm_detect.config import check_at_least, parse_config
from vlm_detect.errors import UserError, run_main
from vlm_detect.extras import how_to_install
from vlm_detect.images.decode import decode_image

_GRID = 16  # pixels: a block of JPEG's chroma at half resolution


@dataclass(frozen=True)
class Photograph:
    """One photograph in an installed package; licences as stated in the package's documentation."""

    package: str
    path: str
    licence: str
    group: str = ""

    @property
    def name(self) -> str:
        return self.group or Path(self.path).stem


_NASA = "public domain (NASA)"
_MIDDLEBURY = "CC0 1.0 (Middlebury stereo data, D. Scharstein et al.)"
PHOTOGRAPHS = (
    Photograph("skimage", "data/astronaut.png", _NASA),
    Photograph("skimage", "data/chelsea.png", "CC0 1.0 (S. van der Walt)"),
    Photograph("skimage", "data/coffee.png", "CC0 1.0 (R. Michetti)"),
    Photograph("skimage", "data/rocket.jpg", "public domain (SpaceX)"),
    Photograph("skimage", "data/motorcycle_left.png", _MIDDLEBURY, group="motorcycle"),
    Photograph("skimage", "data/motorcycle_right.png", _MIDDLEBURY, group="motorcycle"),
    Photograph("skimage", "data/hubble_deep_field.jpg", _NASA),
    Photograph("skimage", "data/retina.jpg", "CC0 1.0 (M. Häggström)"),
    Photograph("sklearn", "datasets/images/china.jpg", "CC BY 2.0 (danielbuechele)"),
    Photograph("sklearn", "datasets/images/flower.jpg", "CC BY 2.0 (vultilion)"),
)


@dataclass(frozen=True)
class TileConfig:
    """How the photographs are cut."""

    tile: int = field(default=64, metadata={"help": "Side of a tile in pixels, a multiple of 16."})
    tiles_per_group: int = field(default=56, metadata={"help": "Maximum number of tiles per photograph."})
    min_deviation: float = field(default=12.0, metadata={"help": "Skip flatter tiles (sky, wall); on a scale to 255."})

    def __post_init__(self) -> None:
        check_at_least(self, 1, "tiles_per_group")
        if self.tile % _GRID or self.tile <= 0:
            raise UserError(f"--tile {self.tile}: must be a positive multiple of {_GRID}")


def write_demo_photos(out: Path, config: TileConfig | None = None) -> int:
    """Write the tiles and their metadata to `out` atomically, and return their number; a finished folder is kept."""
    config = config or TileConfig()
    if (out / "metadata.jsonl").exists():
        return len((out / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for group, photographs in _by_group().items():
        each = -(-config.tiles_per_group // len(photographs))
        for photograph in photographs:
            for tile, quality in _tiles(photograph, each, config):
                name = f"{group}_{len(rows):03d}.png"
                tile.save(partial / name)
                row = {"file_name": name, "group": group, "licence": photograph.licence, "jpeg_quality": quality}
                rows.append({key: value for key, value in row.items() if value is not None})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (partial / "metadata.jsonl").write_text(text, encoding="utf-8")
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    try:
        partial.rename(out)
    except OSError as error:
        raise UserError(f"{out}: exists with other content; give another folder") from error
    return len(rows)


def _by_group() -> dict[str, list[Photograph]]:
    groups: dict[str, list[Photograph]] = {}
    for photograph in PHOTOGRAPHS:
        groups.setdefault(photograph.name, []).append(photograph)
    return groups


def _tiles(photograph: Photograph, count: int, config: TileConfig) -> Iterator[tuple[Image.Image, int | None]]:
    """Up to `count` non-overlapping tiles (and their JPEG quality), spread by the hash of their place."""
    decoded = decode_image(photograph_path(photograph))
    step = config.tile
    corners = [
        (x, y)
        for y in range(0, decoded.height - config.tile + 1, step)
        for x in range(0, decoded.width - config.tile + 1, step)
    ]
    corners.sort(key=lambda corner: hashlib.sha256(f"{photograph.path}/{corner}".encode()).digest())
    tiles = (decoded.image.crop((x, y, x + step, y + step)) for x, y in corners)
    busy = (tile for tile in tiles if max(ImageStat.Stat(tile).stddev) >= config.min_deviation)
    quality = decoded.jpeg.quality if decoded.jpeg else None
    yield from ((tile, quality) for tile, _ in zip(busy, range(count), strict=False))


def photograph_path(photograph: Photograph) -> Path:
    """The file in the installed package, without importing the package."""
    spec = find_spec(photograph.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / photograph.path).is_file():
            return path
    raise UserError(f"{photograph.package} is not installed with its images; run: {how_to_install('demo')}")


@dataclass(frozen=True)
class Folder:
    out: str = field(metadata={"positional": True, "help": "Folder for the photographs."})


def main(argv: list[str]) -> None:
    folder, config = parse_config([Folder, TileConfig], argv, doc=__doc__)
    print(f"{write_demo_photos(Path(folder.out), config)} tiles in {folder.out}")


if __name__ == "__main__":
    run_main(main)
