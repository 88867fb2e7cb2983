"""The first step: caption photos (`vlm-detect caption`).

Each photo is decoded once to check whether it is usable. Its original bytes are passed on with the facts of its source,
so that no later step has to read the source.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Features, Image, Value

from vlm_detect.ahead import ahead
from vlm_detect.columns import SOURCE_FEATURES
from vlm_detect.data.sources import Source, SourcePhoto, open_source, report_skipped
from vlm_detect.errors import UserError
from vlm_detect.generate.captions import clean_caption
from vlm_detect.generate.options import FROM_COLUMN, CaptionConfig, SourceConfig
from vlm_detect.generate.prompts import PromptBook
from vlm_detect.generate.usable import check_usable, source_facts
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, counted, write_shard
from vlm_detect.machine import free_memory
from vlm_detect.models.registry import NANO_NAMES, check_reachable, load_vlm, resolve_id
from vlm_detect.records import FROM_PROMPTS, Reject

_MAX_NEW_TOKENS = 128  # maximum, for an answer to a question
_DECODERS = 4
_PrepareAhead = Callable[[Sequence[PIL.Image.Image]], None]

# One row per photo.
PHOTO_FEATURES = Features(
    {
        "id": Value("string"),  # the first 16 hexadecimal digits of the SHA-256 of its bytes
        "group": Value("string"),
        "image": Image(),  # the original bytes
        "object_class": Value("string"),
        "caption": Value("string"),  # cleaned: content only
        "caption_raw": Value("string"),  # the captioner's output
        "captioner": Value("string"),
        "captioner_revision": Value("string"),
        "source": SOURCE_FEATURES,
    }
)


@dataclass(frozen=True)
class Usable:
    """A decoded photo to be captioned; `facts` are those of its source."""

    id: str
    photo: SourcePhoto
    image: PIL.Image.Image
    facts: dict[str, Any]


def name_captioner(captioner: str, prompts: str | None = None) -> str:
    """The captioner's name: `auto` is replaced by what fits this machine."""
    if prompts:
        return FROM_PROMPTS
    return captioner if captioner == FROM_COLUMN else resolve_id(captioner, "captioner").name


def check_captioner(captioner: str) -> None:
    """`UserError` where there is no such model; loads nothing."""
    if captioner not in (FROM_COLUMN, FROM_PROMPTS):
        check_reachable(resolve_id(captioner, "captioner"))


def plan_captions(source: SourceConfig, config: CaptionConfig) -> Plan:
    """The source's photos in shards; raises `UserError` if there are none."""
    photos = open_source(source.images, source.limit, caption_column=source.caption_column)
    report_skipped(source.images, photos.skipped)
    settings = asdict(config)
    if config.prompts:
        settings["prompts_sha256"] = PromptBook.read(Path(config.prompts)).sha256
    return Plan("caption", len(photos), source.shard_size, photos.fingerprint, settings)


def caption_photos(
    source: SourceConfig, config: CaptionConfig, plan: Plan, folder: Path, launch: Launch | None = None
) -> str | None:
    """Run the shards; returns the result of `run_shards`: None when all is done."""
    try:
        launch = (launch or Launch()).with_models(config.captioner not in (*NANO_NAMES, FROM_COLUMN, FROM_PROMPTS))
        return run_shards(CaptionShard(source, config, plan, folder), plan, folder, launch)
    finally:
        _load_captioner.cache_clear()  # the renderer, of the same process, needs its memory
        free_memory()


@dataclass(frozen=True)
class CaptionShard:
    """Process one shard; called in any process."""

    source: SourceConfig
    config: CaptionConfig
    plan: Plan
    folder: Path

    def __call__(self, shard: int) -> None:
        rejects: list[Reject] = []
        captioner, revision, captioned = self._captioned(shard, rejects)
        rows = []
        for item, raw in captioned:
            caption = raw if captioner == FROM_PROMPTS else clean_caption(raw)  # prompts are not cleaned
            if caption:
                rows.append(_row(item, caption, raw, captioner, revision))
            else:
                rejects.append(Reject(item.photo.path_or_id, "caption", "no_content", f"the caption was {raw!r}"))
        write_shard(self.folder, shard, rows, PHOTO_FEATURES, rejects)

    def _usable(
        self, shard: int, rejects: list[Reject], prepare_ahead: _PrepareAhead = lambda images: None
    ) -> Iterator[Usable]:
        """The photos, decoded and checked in threads while earlier ones are captioned; `prepare_ahead` begins them."""
        start, stop = self.plan.span(shard)
        photos = _source(self.source.images, self.source.limit, self.source.caption_column).read(start, stop)

        def opened(found: SourcePhoto | tuple[str, ImageRejected]) -> Usable | Reject:
            if isinstance(found, tuple):
                return _rejected(*found)
            try:
                decoded = decode_image(found.data)
                check_usable(decoded, self.config.min_side)
            except ImageRejected as error:
                return _rejected(found.path_or_id, error)
            prepare_ahead([decoded.image])
            facts = source_facts(found.path_or_id, decoded, found.licence, jpeg_quality=found.jpeg_quality)
            return Usable(decoded.sha256[:16], found, decoded.image, facts)

        for item in ahead(opened, counted(photos), _DECODERS, waiting=self.config.caption_batch):
            if isinstance(item, Usable):
                yield item
            else:
                rejects.append(item)

    def _captioned(self, shard: int, rejects: list[Reject]) -> tuple[str, str | None, Iterable[tuple[Usable, str]]]:
        """(the captioner's name, its revision, each usable photo with its caption)."""
        if self.config.captioner == FROM_COLUMN:
            usable = list(self._usable(shard, rejects))
            missing = [item.photo.path_or_id for item in usable if not item.photo.caption]
            if missing:
                raise UserError(
                    f"--captioner {FROM_COLUMN}: {len(missing)} photos have no caption, the first is {missing[0]}; "
                    "add captions to the metadata or choose a captioner"
                )
            return FROM_COLUMN, None, [(item, str(item.photo.caption)) for item in usable]
        if self.config.prompts:
            book = PromptBook.read(Path(self.config.prompts))
            sampled = ((item, book.sample(int(item.id, 16))) for item in self._usable(shard, rejects))
            return FROM_PROMPTS, book.sha256, sampled
        name, revision, engine = _load_captioner(self.config.captioner)
        return name, revision, self._written(engine, self._usable(shard, rejects, engine.prepare_ahead))

    def _written(self, engine: Any, usable: Iterator[Usable]) -> Iterator[tuple[Usable, str]]:
        """Each photo with the captioner's answer, in batches."""
        while batch := list(islice(usable, self.config.caption_batch)):
            images = [item.image for item in batch]
            if question := self.config.caption_question:
                answers = engine.generate(images, [[question]] * len(images), max_new_tokens=_MAX_NEW_TOKENS)
                captions = [answer for (answer,) in answers]
            else:
                captions = engine.caption(images, length=self.config.caption_length)
            yield from zip(batch, captions, strict=True)


def _rejected(path_or_id: str, error: ImageRejected) -> Reject:
    return Reject(path_or_id, "decode", error.reason, error.detail)


def _row(item: Usable, caption: str, raw: str, captioner: str, revision: str | None) -> dict[str, Any]:
    return {
        "id": item.id,
        "group": item.photo.group or item.id,
        "image": {"bytes": item.photo.data, "path": None},
        "object_class": item.photo.object_class,
        "caption": caption,
        "caption_raw": raw,
        "captioner": captioner,
        "captioner_revision": revision,
        "source": item.facts,
    }


# A worker processes many shards: the listing and the model are cached per process.
@functools.cache
def _source(images: str, limit: int | None, caption_column: str) -> Source:
    return open_source(images, limit, caption_column=caption_column)


@functools.cache
def _load_captioner(captioner: str) -> tuple[str, str | None, Any]:
    from vlm_detect.infer.engine import Engine  # lazy: the following steps should not wait for these imports

    resolved = resolve_id(captioner, "captioner")
    return resolved.name, resolved.revision, Engine(load_vlm(captioner))
