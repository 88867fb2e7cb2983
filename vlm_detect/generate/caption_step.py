"""The first step: caption photos (`vlm-detect caption`).

Each photo is decoded once to check whether it is usable. Its original bytes are passed on with the facts of its source,
so that no later step has to read the source.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Features, Image, Value

from vlm_detect.columns import SOURCE_FEATURES
from vlm_detect.data.sources import Source, SourcePhoto, open_source, report_skipped
from vlm_detect.errors import UserError
from vlm_detect.generate.captions import clean_caption
from vlm_detect.generate.options import FROM_COLUMN, CaptionConfig, SourceConfig
from vlm_detect.generate.prompts import PromptBook
from vlm_detect.generate.usable import check_usable, source_facts
from vlm_detect.images.decode import DecodedImage, ImageRejected, decode_image
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, counted, write_shard
from vlm_detect.machine import free_memory
from vlm_detect.models.registry import NANO_NAMES, check_reachable, load_vlm, resolve_id
from vlm_detect.records import FROM_PROMPTS, Reject

_MAX_NEW_TOKENS = 128  # maximum, for an answer to a question

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
    """A decoded photo to be captioned."""

    id: str
    photo: SourcePhoto
    decoded: DecodedImage


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
        usable = list(self._usable(shard, rejects))
        captioner, revision, raw_captions = self._captions(usable)
        rows = []
        for item, raw in zip(usable, raw_captions, strict=True):
            caption = raw if captioner == FROM_PROMPTS else clean_caption(raw)  # prompts are not cleaned
            if caption:
                rows.append(_row(item, caption, raw, captioner, revision))
            else:
                rejects.append(Reject(item.photo.path_or_id, "caption", "no_content", f"the caption was {raw!r}"))
        write_shard(self.folder, shard, rows, PHOTO_FEATURES, rejects)

    def _usable(self, shard: int, rejects: list[Reject]) -> Iterator[Usable]:
        start, stop = self.plan.span(shard)
        photos = _source(self.source.images, self.source.limit, self.source.caption_column).read(start, stop)
        for found in counted(photos):
            path_or_id, rejected = found if isinstance(found, tuple) else (found.path_or_id, None)
            try:
                if rejected:
                    raise rejected
                decoded = decode_image(found.data)
                check_usable(decoded, self.config.min_side)
            except ImageRejected as error:
                rejects.append(Reject(path_or_id, "decode", error.reason, error.detail))
            else:
                yield Usable(decoded.sha256[:16], found, decoded)

    def _captions(self, usable: list[Usable]) -> tuple[str, str | None, list[str]]:
        """(the captioner's name, its revision, one caption per photo)."""
        if self.config.captioner == FROM_COLUMN:
            missing = [item.photo.path_or_id for item in usable if not item.photo.caption]
            if missing:
                raise UserError(
                    f"--captioner {FROM_COLUMN}: {len(missing)} photos have no caption, the first is {missing[0]}; "
                    "add captions to the metadata or choose a captioner"
                )
            return FROM_COLUMN, None, [str(item.photo.caption) for item in usable]
        if self.config.prompts:
            book = PromptBook.read(Path(self.config.prompts))
            return FROM_PROMPTS, book.sha256, [book.sample(int(item.id, 16)) for item in usable]
        name, revision, engine = _load_captioner(self.config.captioner)
        captions: list[str] = []
        for start in range(0, len(usable), self.config.caption_batch):
            batch = [item.decoded.image for item in usable[start : start + self.config.caption_batch]]
            if question := self.config.caption_question:
                answers = engine.generate(batch, [[question]] * len(batch), max_new_tokens=_MAX_NEW_TOKENS)
                captions += [answer for (answer,) in answers]
            else:
                captions += engine.caption(batch, length=self.config.caption_length)
        return name, revision, captions


def _row(item: Usable, caption: str, raw: str, captioner: str, revision: str | None) -> dict[str, Any]:
    photo, decoded = item.photo, item.decoded
    return {
        "id": item.id,
        "group": photo.group or item.id,
        "image": {"bytes": photo.data, "path": None},
        "object_class": photo.object_class,
        "caption": caption,
        "caption_raw": raw,
        "captioner": captioner,
        "captioner_revision": revision,
        "source": source_facts(photo.path_or_id, decoded, photo.licence, jpeg_quality=photo.jpeg_quality),
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
