"""Presets of published detection sets: one YAML a set, in `configs/datasets`, each of them a layout for `--from`.

    vlm-detect import-images --from sid hub --out data/sid            # the preset's own Hub dataset
    vlm-detect import-images --from aigibench AIGIBench/ --out data/aigibench

    title: SID_Set                       # what it is, where it is, and under which terms
    source: https://huggingface.co/datasets/saberzl/SID_Set
    licence: CC-BY-4.0
    verified: [dataset card]             # where the layout was read
    unverified: [the generators]         # what could not be
    hub: saberzl/SID_Set                 # the SRC that "hub" stands for
    rows: {labels: {0: real, 1: generated, 2: edited}}     # one of rows, files and tables

`rows` describes a Hub dataset, `files` image files by regular expressions on their paths, `tables` files listed in
CSVs. A path's named groups `label`, `generator`, `object_class` and `split` give these facts; `mask` and `group` are
built from groups. Flags of the command line override a preset's columns and labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from vlm_detect.config import CONFIGS
from vlm_detect.data.image_sets import IMPORTERS, ImageSet, folder_of, in_folders
from vlm_detect.data.labelled_rows import RowLayout, hub_rows, word_of
from vlm_detect.data.layouts import listed_files
from vlm_detect.data.selection import Entry, Selection
from vlm_detect.data.splits import SPLIT_WORDS, SPLITS, Split
from vlm_detect.errors import UsageError, UserError
from vlm_detect.images.decode import SUFFIXES
from vlm_detect.records import Label

PRESETS = CONFIGS / "datasets"
HUB_WORD = "hub"  # as SRC: the preset's own Hub dataset

T = TypeVar("T")


@dataclass(frozen=True)
class Rows(RowLayout):
    """Rows of a Hub dataset; an empty column is detected."""

    image_column: str = ""
    label_column: str = ""
    mask_column: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """Image files whose path within SRC ends in a match of `path`; unset facts are in the path's groups."""

    path: str
    label: Label | None = None
    generator: str = ""
    split: Split | None = None
    group: str = ""  # format of the path's groups
    mask: str = ""  # likewise: the mask's path without suffix, next to the matched part

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?:^|(?<=/))(?:{self.path})$")


@dataclass(frozen=True)
class Table:
    """Files listed in a table called `table`; `file` is the format of a file's path, relative to the table."""

    table: str
    file: str
    split: Split | None = None


@dataclass(frozen=True)
class Published:
    """A published set, and how it is read: importer of its images."""

    name: str
    title: str
    source: str  # address of its page
    licence: str
    verified: Sequence[str]
    unverified: Sequence[str] = ()
    terms: str = ""  # restrictions, in a sentence
    redistribute: bool = True  # whether the licence permits to pass the images on
    hub: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)  # of words in paths and tables
    rows: Rows | None = None
    files: Sequence[Files] = ()
    tables: Sequence[Table] = ()

    def __call__(self, src: str, selection: Selection) -> ImageSet:
        src = self._resolved(src)
        labels = {**self.labels, **(self.rows.labels if self.rows else {}), **dict(selection.labels)}
        selection = replace(selection, labels=tuple(labels.items()))
        if self.rows is not None:
            columns = {name: getattr(selection, name) or getattr(self.rows, name) for name in _COLUMNS}
            images: ImageSet = hub_rows(src, replace(selection, **columns), self.rows)
        elif self.files:
            images = in_folders(folder_of(src), self._entry, selection, layout=self.name)
        else:
            rules = {rule.table: (rule.file, rule.split) for rule in self.tables}
            images = listed_files(folder_of(src), selection, rules)
        images.entries = [replace(entry, licence=entry.licence or self.licence) for entry in images.entries]
        return images

    def described(self) -> str:
        """One line: what it is, where, and under which terms."""
        return f"{self.title}: {self.source}, {self.licence}{f'; {self.terms}' if self.terms else ''}"

    def check_upload(self, repository: str | None) -> None:
        """Raises UsageError if the licence does not permit to upload the imported dataset."""
        if repository is not None and not self.redistribute:
            raise UsageError(
                f"--push_to_hub {repository}: {self.title} may not be passed on ({self.licence}; {self.terms}); leave "
                "the flag out"
            )

    def _resolved(self, src: str) -> str:
        if src != HUB_WORD:
            return src
        if not self.hub:
            raise UserError(f"--from {self.name} {src}: its files have to be downloaded and unpacked: {self.source}")
        return self.hub

    def _entry(self, path: Path, parts: Sequence[str], words: Mapping[str, Label]) -> Entry | None:
        within = "/".join((*parts, path.name))
        for rule in self.files:
            if found := rule.pattern.search(within):
                said = {name: value or "" for name, value in found.groupdict().items()}
                label = rule.label or words.get(word_of(said["label"]))
                generator = rule.generator or said.get("generator", "")
                return Entry(
                    str(path),
                    label,
                    generator if label != "real" else "",
                    said.get("object_class", ""),
                    group=rule.group.format(**said) or None,
                    split=rule.split or SPLIT_WORDS.get(word_of(said.get("split", ""))),
                    mask_file=_with_suffix(path.parents[len(Path(found.group()).parts) - 1], rule.mask.format(**said)),
                )
        return None


_COLUMNS = ("image_column", "label_column", "mask_column")


def _with_suffix(folder: Path, name: str) -> str:
    """The image file `name` of any suffix; where there is none, the name, so that the reject says it."""
    if not name:
        return ""
    found = (folder / f"{name}{suffix}" for suffix in sorted(SUFFIXES))
    return str(next((path for path in found if path.is_file()), folder / name))


def read_published(path: Path) -> Published:
    """The preset in a YAML file.

    Raises:
        UserError: for a file that is no preset, an unknown key, and an unknown label or split.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise TypeError(f"contains a {type(values).__name__}, not a preset")
        rows = values.pop("rows", None)
        values["rows"] = None if rows is None else _made(Rows, _labelled(rows))
        values["files"] = tuple(_made(Files, one) for one in values.get("files") or ())
        values["tables"] = tuple(_made(Table, one) for one in values.get("tables") or ())
        preset = _made(Published, {"name": path.stem, **_labelled(values)})
        if sum(map(bool, (preset.rows is not None, preset.files, preset.tables))) != 1:
            raise ValueError("has to have one of rows, files and tables")
        for rule in (preset, preset.rows, *preset.files, *preset.tables):
            _check_words(rule)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError, re.error) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    return preset


def _labelled(values: Mapping[str, Any]) -> dict[str, Any]:
    """YAML reads 0 and true as other types than a text; as words of a set they are "0" and "true"."""
    words = {str(word).lower() if isinstance(word, bool) else str(word): x for word, x in _labels(values).items()}
    return {**values, "labels": words}


def _labels(values: Mapping[str, Any]) -> Mapping[Any, Any]:
    found = values.get("labels") or {}
    if not isinstance(found, Mapping):
        raise TypeError("labels: give WORD: LABEL")
    return found


def _made(kind: type[T], values: Any) -> T:
    if not isinstance(values, Mapping):
        raise TypeError(f"{values!r} is not a {kind.__name__.lower()} with keys")
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            raise ValueError(f"unknown key {key}; {f'did you mean {near[0]}? Known' if near else 'known'} are {known}")
    return kind(**values)


def _check_words(rule: Any) -> None:
    facts = asdict(rule) if rule is not None else {}
    labels = {*(facts.get("labels") or {}).values(), facts.get("label")} - {None}
    if unknown := labels - set(get_args(Label)):
        raise ValueError(f"{unknown.pop()} is not a label; known are {', '.join(get_args(Label))}")
    splits = {*(facts.get("splits") or {}).values(), facts.get("split")} - {None}
    if unknown := splits - set(SPLITS):
        raise ValueError(f"{unknown.pop()} is not a split; known are {', '.join(SPLITS)}")
    if isinstance(rule, Files):
        named = rule.pattern.groupindex
        if rule.label is None and "label" not in named:
            raise ValueError(f"{rule.path}: gives no label; add one, or a group (?P<label>...)")
        said = dict.fromkeys(named, "")
        for text in (rule.group, rule.mask):
            try:
                text.format(**said)
            except KeyError as error:
                raise ValueError(f"{text}: {error} is no group of {rule.path}") from error


def presets() -> Iterator[Published]:
    """The presets of this package."""
    for path in sorted(PRESETS.glob("*.yaml")):
        yield read_published(path)


def published(layout: str) -> Published | None:
    """The preset of a layout's name; None for a layout that is no preset."""
    found = IMPORTERS[layout]
    return found if isinstance(found, Published) else None


for _preset in presets():
    IMPORTERS.add(_preset.name, _preset)
