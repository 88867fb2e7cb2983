"""The rows of a `datasets` folder, of a saved dataset, or of a Hub dataset, with images as undecoded bytes.

    splits = open_all_splits("owner/set:config:split:column", streaming=True)
    for index, data in splits["train"].images([0, 1, 2]): ...      # bytes, or the reason of failure

Images may be in a column of `datasets.Image`, structs of bytes and path, raw bytes, lists of one, or the columns jpg,
png, ... of WebDataset tars. With HF_HUB_OFFLINE=1 only the local cache is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vlm_detect.errors import UserError, first_line
from vlm_detect.images.decode import SUFFIXES, ImageRejected
from vlm_detect.images.local_files import may_name, read_named
from vlm_detect.quiet import no_bars_in_logs
from vlm_detect.schema import check_folder

Kind = Literal["image", "list", "bytes"]
MASK_COLUMNS = ("mask", "masks", "edit_mask", "tamper_mask", "gt_mask", "ground_truth_mask")
_IMAGE_WORDS = re.compile(r"image|img|picture|photo|jpe?g|png", re.IGNORECASE)
_DATASET_FILES = ("state.json", "dataset_dict.json")
_DATA_SUFFIXES = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}


class DatasetRows:
    """The rows of one split, loaded or streamed.

    `column` names the image column (default: the first one with images), `mask_column` the column of masks, if any.
    `in_order_only`: the rows come one after the other with their images, so that even listing them has its price.
    """

    in_order_only = False

    def __init__(self, rows: Any, name: str, column: str = "", mask_column: str = "") -> None:
        import datasets

        features = dict(rows.features or {})
        self._choose_columns(features, name, column, mask_column)
        undecoded = datasets.Image(decode=False)
        for key in [*self._columns, *([self.mask] if self.mask else [])]:
            if isinstance(features[key], datasets.Image):
                rows = rows.cast_column(key, undecoded)
            elif self._kinds[key] == "list" and isinstance(features[key].feature, datasets.Image):
                rows = rows.cast_column(key, datasets.List(undecoded))
        self._rows = rows
        self.in_order_only = isinstance(rows, datasets.IterableDataset)

    def _choose_columns(self, features: dict[str, Any], name: str, column: str, mask_column: str) -> None:
        """Set `features`, and from them the columns of images and of masks."""
        kinds = _kinds(features)
        self._columns = _choose(kinds, list(features), column, name)
        masks = [key for key in kinds if (key.lower() == mask_column.lower() if mask_column else key in MASK_COLUMNS)]
        if mask_column and not masks:
            raise UserError(f"{name}: no mask column {mask_column} (columns with images: {', '.join(kinds)})")
        self.mask = masks[0] if masks and masks[0] not in self._columns else None
        self._kinds, self.features = kinds, features

    @classmethod
    def of_parquet(cls, paths: Sequence[Path]) -> DatasetRows:
        files = [str(path) for path in paths]
        may_name(paths[0].parent)
        return cls(load_dataset("parquet", data_files=files, split="train"), str(paths[0].parent))

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of these ascending indices."""
        if not indices:
            return
        if not self.in_order_only:
            yield from zip(indices, self._rows.select(indices), strict=True)
            return
        wanted = set(indices)
        first, last = indices[0], indices[-1]
        for index, row in enumerate(self._rows.skip(first).take(last - first + 1), first):
            if index in wanted:
                yield index, row

    def images(self, indices: Sequence[int]) -> Iterator[tuple[int, bytes | ImageRejected]]:
        yield from ((index, self.image_of(row)) for index, row in self.read(indices))

    def image_of(self, row: Mapping[str, Any]) -> bytes | ImageRejected:
        """A row's image, or why it is missing."""
        return image_cell(row, self._columns)

    def mask_of(self, row: Mapping[str, Any]) -> bytes | None:
        """The mask of a row's image; None without a mask."""
        found = _bytes(row[self.mask]) if self.mask else None
        return found if isinstance(found, bytes) else None

    def facts(self, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
        """The other columns (only those in `columns`, if given), row by row, without decoding images."""
        kept = [name for name in self.features if name not in self._kinds and (columns is None or name in columns)]
        if not kept:  # a selection of no columns has no rows
            yield from ({} for _ in self._rows)
            return
        yield from self._rows.select_columns(kept)

    def cluster(self, index: int) -> str:
        """Rows of equal cluster are read together."""
        return str(index)

    @property
    def columns(self) -> list[str]:
        """The columns of `facts`; the fields of a struct as "column.field"."""
        found = []
        for name, feature in self.features.items():
            if name not in self._kinds:
                found += [f"{name}.{key}" for key in feature] if isinstance(feature, dict) else [name]
        return found

    def class_names(self) -> dict[str, list[str]]:
        """The class names of ClassLabel columns."""
        return {name: list(feature.names) for name, feature in self.features.items() if hasattr(feature, "names")}

    def column(self, name: str) -> list[Any]:
        return list(self._rows[name])

    def paths(self) -> list[str]:
        """The file names of the images within the dataset."""
        images = self._rows.data.table.column(self._columns[0]).combine_chunks()
        return [str(path) for path in images.field("path").to_pylist()]


def image_columns(features: Mapping[str, Any], column: str, name: str) -> list[str]:
    """The column with images, or the several of which each row fills one; `column` names it, `name` is the file's."""
    return _choose(_kinds(features), list(features), column, name)


def image_cell(row: Mapping[str, Any], columns: Sequence[str]) -> bytes | ImageRejected:
    """The image of a row in one of `columns`, or why it is missing."""
    return _bytes(next((row[name] for name in columns if row[name] is not None), None))


def _kinds(features: Mapping[str, Any]) -> dict[str, Kind]:
    return {key: kind for key, feature in features.items() if (kind := _kind(feature)) is not None}


def _kind(feature: Any) -> Kind | None:
    """The form in which a column may hold images; None if it cannot."""
    import datasets

    # parquet not written by `datasets` has the same {bytes, path} without the feature type Image
    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and {"bytes", "path"} == set(feature)):
        return "image"
    if isinstance(feature, datasets.List) and _kind(feature.feature) == "image":
        return "list"
    is_bytes = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary", "binary_view")
    return "bytes" if is_bytes else None


def _choose(kinds: Mapping[str, Kind], columns: Sequence[str], column: str, name: str) -> list[str]:
    """The image column; several if columns are named by file suffix and each row fills one of them."""
    if column:
        chosen = [key for key in kinds if key.lower() == column.lower()]
    else:
        images = [key for key in kinds if kinds[key] != "bytes" and key not in MASK_COLUMNS]
        raw = [key for key in kinds if kinds[key] == "bytes" and key not in MASK_COLUMNS]
        by_suffix = [key for key in images if f".{key.lower()}" in SUFFIXES]
        named = [key for key in (*images, *raw) if key.lower() in ("image", "images")]
        called = [key for key in raw if _IMAGE_WORDS.search(key)]
        chosen = by_suffix or named[:1] or images[:1] or called[:1] or (raw if len(raw) == 1 else [])
    if not chosen:
        have = ", ".join(kinds) or "none"
        raise UserError(
            f"{name}: no image column {column or 'recognized'} (with images: {have}; all: "
            f"{', '.join(columns)}): name one with --image_column, or as ID:CONFIG:SPLIT:COLUMN"
        )
    return chosen


def _bytes(cell: Any) -> bytes | ImageRejected:
    if isinstance(cell, list | tuple):
        several = [one for one in cell if one is not None]
        if len(several) > 1:
            return ImageRejected("several_images", f"{len(several)} images in one row")
        cell = several[0] if several else None
    if isinstance(cell, Mapping):
        if not cell.get("bytes") and cell.get("path"):
            try:
                return read_named(cell["path"])
            except ImageRejected as rejected:
                return rejected
        cell = cell.get("bytes")
    return bytes(cell) if cell else ImageRejected("empty", "no image")


def split_spec(spec: str) -> tuple[str, str, str, str]:
    """(id, config, split, column) of `id:config:split:column`; omitted parts are empty."""
    name, config, split, column = (*spec.split(":", 3), "", "", "")[:4]
    return name, config, split, column


def is_dataset(folder: Path) -> bool:
    """Whether a folder contains a dataset: saved by `datasets`, or files of rows."""
    saved = any((folder / name).exists() for name in _DATASET_FILES)
    return saved or any(path.suffix in _DATA_SUFFIXES for path in folder.rglob("*"))


def open_all_splits(spec: str, *, streaming: bool, **columns: str) -> dict[str, DatasetRows]:
    """Each split of a Hub dataset (streamed or downloaded) or of a local one; only one if `spec` names it.

    `columns` are passed to `DatasetRows`.
    """
    name, config, split, column = split_spec(spec)
    opened = _open(name, config or None, streaming=streaming)
    splits = opened if isinstance(opened, dict) else {"train": opened}
    if split and split not in splits:
        raise UserError(f"{spec}: has no split {split} (has {', '.join(splits)})")
    columns["column"] = columns.get("column") or column
    return {key: DatasetRows(rows, name, **columns) for key, rows in splits.items() if split in ("", key)}


def open_split(name: str, config: str | None, split: str, limit: int | None, column: str) -> tuple[DatasetRows, int]:
    """(the rows of one split, their number); a Hub dataset is streamed."""
    opened = _open(name, config, streaming=True)
    splits = opened if isinstance(opened, dict) else {"train": opened}
    if split not in splits:
        raise UserError(f"{name}: cannot be read as a dataset: no split {split} (it has {', '.join(splits)})")
    rows = splits[split]
    known = len(rows) if hasattr(rows, "__len__") else _stated_length(rows, split)
    if not known and limit is None and not hasattr(rows, "__len__"):
        raise UserError(f"{name}: the Hub does not report the number of rows of {split}; give --limit N")
    return DatasetRows(rows, name, column), known or limit or 0


def open_hub_dataset(name: str) -> Mapping[str, Any]:
    """The `datasets.Dataset` of each split, fetched whole; with HF_HUB_OFFLINE=1 from the local cache."""
    found = _open(name, None, streaming=False)
    return found if isinstance(found, dict) else {"train": found}


def _stated_length(rows: Any, split: str) -> int:
    return rows.info.splits[split].num_examples if rows.info.splits and split in rows.info.splits else 0


def _open(name: str, config: str | None, *, streaming: bool) -> Any:
    """A DatasetDict, or a single dataset; with `streaming` a Hub dataset is iterable."""
    import datasets

    path = Path(name).expanduser()
    if is_here := path.exists():
        may_name(path if path.is_dir() else path.parent)
    if not is_here and not is_offline():
        ask_hub(name)
    try:
        if any((path / saved).exists() for saved in _DATASET_FILES):
            return datasets.load_from_disk(str(path))
        if path.is_file():
            if (builder := _DATA_SUFFIXES.get(path.suffix.lower())) is None:
                raise UserError(f"{name}: rows are read from {', '.join(_DATA_SUFFIXES)} files and from folders")
            return load_dataset(builder, data_files=str(path))
        return load_dataset(name, config, streaming=streaming and not is_here and not is_offline())
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        offline = "; HF_HUB_OFFLINE is set, so only the local cache is read" if is_offline() else ""
        raise UserError(f"{name}: cannot be read as a dataset: {first_line(error)}{offline}") from error


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids network access to the Hub."""
    import datasets

    return bool(datasets.config.HF_HUB_OFFLINE)


def load_dataset(*arguments: Any, **options: Any) -> Any:
    """`datasets.load_dataset`, without progress bars if stderr is not a terminal, and never with stale rows of a
    folder.

    datasets 5.2 identifies a cached folder only by its name: another folder of that name, or an earlier state of this
    one, would be returned. A separate cache for each state of the folder avoids that.
    """
    import datasets

    if (folder := Path(arguments[0])).is_dir():
        check_folder(folder)
        may_name(folder)
        options["cache_dir"] = str(Path(datasets.config.HF_DATASETS_CACHE) / "folders" / _state_of(folder))
    with no_bars_in_logs("datasets"):
        return datasets.load_dataset(*arguments, **options)


def _state_of(folder: Path) -> str:
    """A digest of a folder's path and of the names, sizes and times of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(folder.resolve()), facts)).encode()).hexdigest()[:32]


def ask_hub(name: str) -> None:
    """Raise `UserError` if the Hub does not give access to this dataset, at once instead of after `load_dataset`'s
    retries."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    try:
        if huggingface_hub.dataset_info(name, timeout=20).gated:
            huggingface_hub.auth_check(name, repo_type="dataset")
    except GatedRepoError as error:
        raise UserError(
            f"{name}: a gated dataset: accept its terms at https://huggingface.co/datasets/{name}, then run `hf auth "
            "login`"
        ) from error
    except Exception as error:  # the Hub client passes on the errors of its HTTP library, whichever that is
        raise UserError(
            f"{name}: neither a local folder nor an accessible Hub dataset ({first_line(error)}); check the name, "
            "the network (HF_HUB_OFFLINE=1 uses only the local cache), and `hf auth login` if it is private"
        ) from error
