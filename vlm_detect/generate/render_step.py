"""The second step: render the twins of captioned photos (`vlm-detect render`).

Each kind of twin has its own weakness, so a dataset has several: `caption` twins, rendered from the caption only,
differ in photographic style (arXiv 2602.12381); `vae` twins are the photo itself, reconstructed by the generator's
autoencoder, and generalize little to other generators (arXiv 2605.14486). `instruct` twins are the photo, changed as a
whole by an editing model and an instruction.
"""

from __future__ import annotations

import functools
import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Features, Image, List, Value
from PIL import Image as PILImage

from vlm_detect.columns import EDIT_FEATURES
from vlm_detect.config import CONFIGS
from vlm_detect.errors import UserError, first_line
from vlm_detect.generate.caption_step import PHOTO_FEATURES
from vlm_detect.generate.choices import EditOperations
from vlm_detect.generate.edit_step import EditSubject, donor_groups, random_edits
from vlm_detect.generate.endpoint_generator import SIDE as ENDPOINT_SIDE
from vlm_detect.generate.endpoint_generator import EndpointGenerator
from vlm_detect.generate.generator import Generator, Overflow
from vlm_detect.generate.options import RenderConfig
from vlm_detect.generate.presets import with_given_file, with_preset
from vlm_detect.generate.prompts import PromptBook
from vlm_detect.generate.renderer import bucket, find_generator
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.images.edits import EDITS, Place
from vlm_detect.images.encode import crop_size, fit, is_blank
from vlm_detect.infer.endpoint_client import Unavailable
from vlm_detect.jobs.executors import run_shards
from vlm_detect.jobs.launch import Launch
from vlm_detect.jobs.shards import Plan, count, counted, read_rejects, read_rows, write_shard
from vlm_detect.machine import free_memory, has_failed
from vlm_detect.models.registry import NANO_NAMES, ResolvedModel
from vlm_detect.records import Reject, TwinKind

INSTRUCTIONS = CONFIGS / "generators" / "instructions.yaml"
_THREADS = 2  # threads that decode and encode while the device renders

# One row per photo, with its twins.
RENDER_FEATURES = Features(
    {
        **PHOTO_FEATURES,
        "twins": List(
            {
                "kind": Value("string"),
                "image": Image(),  # PNG at the rendered size
                "prompt": Value("string"),
                "seed": Value("int64"),
                "batch": Value("string"),  # index / batch size: bits are reproducible only there
                "edit": EDIT_FEATURES,
            }
        ),
        "generator": Value("string"),
        "generator_revision": Value("string"),
        "steps": Value("int32"),
        "guidance": Value("float32"),
        "scheduler": Value("string"),
        "dtype": Value("string"),
        "quantization": Value("string"),
    }
)


def complete(config: RenderConfig, presets: Path) -> RenderConfig:
    """The complete configuration: the generator that `auto` selects, with its preset."""
    config = with_given_file(config)
    if config.generator_endpoint:
        return _at_endpoint(config)
    config = replace(config, edit_operations=config.edit_operations or EditOperations.all_own())
    return with_preset(replace(config, generator=find_generator(config.generator)[1].name), presets)


def _at_endpoint(config: RenderConfig) -> RenderConfig:
    """Squares, which every server renders, and no inpainting, for which photos are sent, unless these are given."""
    own = EditOperations.all_own().operations
    operations = config.edit_operations or EditOperations(",".join(name for name in own if not EDITS[name].needs_paint))
    return replace(
        config,
        edit_operations=operations,
        render_size=config.render_size or ENDPOINT_SIDE,
        aspect=config.aspect or "square",
    )


def check_generator(config: RenderConfig) -> None:
    """Raise `UserError` for an unavailable generator, before hours of captioning."""
    cls, model = _source_of(config)
    cls.check(model)
    cls.check_kinds(model, config.twins.kinds)
    if "edit" in config.twins.kinds and all(EDITS[name].needs_paint for name in config.edit_operations.operations):
        cls.check_inpainting(model)


def derive_seed(seed: int, photo_id: str, kind: str) -> int:
    """63 bits from the run's seed, the photo and the kind, independent of the order of work."""
    digest = hashlib.sha256(f"{seed}/{photo_id}/{kind}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def plan_renders(captions: Plan, config: RenderConfig) -> Plan:
    """The shards of the caption step, one to one."""
    settings = asdict(config)
    del settings["api_key_env"]  # does not affect the result
    if config.generator_endpoint is None:
        del settings["generator_endpoint"]  # so that runs begun without the option continue
    if "instruct" in config.twins.kinds:
        settings["instructions_sha256"] = _instructions(config).sha256
    return Plan("render", captions.items, captions.shard_size, captions.inputs, settings)


def render_twins(
    captions: Path,
    config: RenderConfig,
    plan: Plan,
    folder: Path,
    launch: Launch | None = None,
    after: str | None = None,
) -> str | None:
    """Run the shards; returns the result of `run_shards`: None when all is done."""
    launch = (launch or Launch()).with_models(config.generator_endpoint is None and config.generator not in NANO_NAMES)
    try:
        return run_shards(RenderShard(captions, config, plan, folder), plan, folder, launch, after)
    finally:
        _loaded.cache_clear()  # the next generator, of the same process, needs its memory
        free_memory()


@dataclass
class _Photo:
    """A photo in progress; filled with `rendered` and then `twins`."""

    row: dict[str, Any]
    size: tuple[int, int]  # width, height of its twins
    pixels: Future[PILImage.Image]  # the photo at that size, decoded while others are rendered
    prompt: str
    instruction: str = ""  # of an edit by instruction
    instructed: dict[str, Any] = field(default_factory=dict)  # the pipeline's arguments for the instruction
    arguments: dict[str, Any] = field(default_factory=dict)  # the pipeline's arguments for the prompt
    rendered: list[tuple[dict[str, Any], Future[bytes | None] | Exception]] = field(default_factory=list)
    twins: list[dict[str, Any]] = field(default_factory=list)

    @property
    def fitted(self) -> PILImage.Image:
        return self.pixels.result()


@dataclass(frozen=True)
class RenderShard:
    """Process one shard; called in any process."""

    captions: Path
    config: RenderConfig
    plan: Plan
    folder: Path

    def __call__(self, shard: int) -> None:
        name, revision, renderer = _load_renderer(self.config)
        rejects = read_rejects(self.captions, shard)
        kinds, n_shapes = self.config.twins.kinds, renderer.compiled_shapes
        # Photos are decoded before and twins encoded after rendering, in threads: PIL releases the GIL for both.
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="images") as pool:
            photos = list(self._photos(read_rows(self.captions, shard), renderer, rejects, pool))
            edits = [EDITS[name] for name in self.config.edit_operations.operations] if "edit" in kinds else []
            paints = renderer.can_inpaint and any(one.needs_paint for one in edits)
            if "caption" in kinds or paints:
                for photo, arguments in zip(photos, renderer.encode_prompts([p.prompt for p in photos]), strict=True):
                    photo.arguments = arguments
            if "instruct" in kinds:
                for photo, arguments in zip(
                    photos, renderer.encode_prompts([p.instruction for p in photos]), strict=True
                ):
                    photo.instructed = arguments
            for batch in _batches(counted(photos), self.config.render_batch or 1):
                for kind in kinds:
                    if kind != "edit":
                        self._draw(renderer, kind, batch, pool)
        for photo in photos:
            self._take(photo, rejects)
        if "edit" in kinds:
            self._edit(renderer if paints else None, photos, rejects)
        if renderer.compiled_shapes > n_shapes:
            print(f"{name}: compiled, {renderer.compiled_shapes} shapes so far", file=sys.stderr)
        facts = {
            "generator": name + renderer.sampling.variant,
            "generator_revision": revision,
            "steps": renderer.steps,
            "guidance": renderer.guidance,
            "scheduler": renderer.scheduler,
            "dtype": renderer.dtype,
            "quantization": renderer.sampling.quantization,
        }
        rows = [photo.row | {"twins": photo.twins} | facts for photo in photos if photo.twins]
        write_shard(self.folder, shard, rows, RENDER_FEATURES, rejects)

    def _photos(
        self, rows: Iterable[dict[str, Any]], renderer: Generator, rejects: list[Reject], pool: ThreadPoolExecutor
    ) -> Iterator[_Photo]:
        book = _instructions(self.config) if "instruct" in self.config.twins.kinds else None
        side, multiple = self.config.render_size or renderer.native_side, renderer.size_multiple
        for row in rows:
            if not self.config.share.has(row["group"]):
                count(1)
                continue
            photo_size = row["source"]["width"], row["source"]["height"]
            size = bucket(photo_size, side, multiple, square=self.config.aspect == "square")
            width, height = crop_size(photo_size, size)
            if width < size[0] and not self.config.allow_small:
                detail = f"{width}x{height} pixels of it for a twin of {size[0]}x{size[1]}"
                rejects.append(Reject(row["source"]["path_or_id"], "render", "too_small", detail))
            else:
                prompt = f"{row['caption']} {self.config.prompt_suffix}".strip()
                instruction = book.sample(derive_seed(self.config.seed, row["id"], "instruction")) if book else ""
                yield _Photo(row, size, pool.submit(_fitted, row["image"]["bytes"], size), prompt, instruction)

    def _draw(self, renderer: Generator, kind: TwinKind, batch: Sequence[_Photo], pool: ThreadPoolExecutor) -> None:
        seeds = [derive_seed(self.config.seed, photo.row["id"], kind) for photo in batch]
        # A compiled denoiser meets full batches only: one shape for each size, and not one for each number of photos.
        fills = kind == "caption" and renderer.sampling.compile
        rows = (self.config.render_batch or 1) if fills else 1

        def render(places: Sequence[int]) -> list[PILImage.Image]:
            if kind == "vae":
                return renderer.reconstruct([batch[i].fitted for i in places])
            if kind == "instruct":
                return [renderer.instruct(batch[i].fitted, seeds[i], batch[i].instructed) for i in places]
            filled = [*places, *[places[-1]] * (rows - len(places))]
            arguments = [batch[i].arguments for i in filled]
            return renderer.render(arguments, [seeds[i] for i in filled], batch[places[0]].size)[: len(places)]

        for place, (image, batch_of) in enumerate(_render_or_split(render, range(len(batch)), rows)):
            photo = batch[place]
            prompt = {"caption": photo.prompt, "instruct": photo.instruction}.get(kind)
            twin = {"kind": kind, "prompt": prompt, "seed": seeds[place], "batch": batch_of}
            finished = image if isinstance(image, Exception) else pool.submit(_finished, image)
            photo.rendered.append((twin | {"edit": None}, finished))

    def _take(self, photo: _Photo, rejects: list[Reject]) -> None:
        """The results for a photo: twins, or rejects with their reason."""
        where = photo.row["source"]["path_or_id"]
        for twin, rendered in photo.rendered:
            if isinstance(rendered, Exception):
                detail = f"{twin['kind']}: {type(rendered).__name__}: {rendered}"
                rejects.append(Reject(where, "render", "renderer_failed", detail))
            elif (data := rendered.result()) is None:
                rejects.append(Reject(where, "render", "blank", f"{twin['kind']}: a single colour"))
            else:
                photo.twins.append(twin | {"image": {"bytes": data, "path": None}})

    def _edit(self, painter: Generator | None, photos: Sequence[_Photo], rejects: list[Reject]) -> None:
        """An edit of each photo and of its first twin."""
        partners = donor_groups(photo.row["group"] for photo in photos)
        for photo in photos:
            images = {"photo": photo.fitted}
            images |= {
                twin["kind"]: PILImage.open(io.BytesIO(twin["image"]["bytes"]))
                for twin in photo.twins[:1]
                if twin["kind"] != "instruct"
            }
            if self.config.edits_on != "both":
                images = {
                    of: image for of, image in images.items() if (of == "photo") == (self.config.edits_on == "photos")
                }
            donors = [other for other in photos if other.row["group"] == partners.get(photo.row["group"])]
            paint = functools.partial(_paint, painter, photo.arguments) if painter else None
            subjects = []
            for of, image in images.items():
                seed = derive_seed(self.config.seed, photo.row["id"], f"edit/{of}")
                donor = donors[seed % len(donors)] if donors else None
                subjects.append(EditSubject(of, image, seed, (donor.row["id"], donor.fitted) if donor else None, paint))
            for subject, edit, edited in random_edits(subjects, self.config.edit_operations.operations):
                if isinstance(edited, ImageRejected):
                    where = photo.row["source"]["path_or_id"]
                    rejects.append(Reject(where, "render", edited.reason, f"edit of the {subject.of}: {edited.detail}"))
                else:
                    prompt = photo.prompt if edit["operation"] == "inpaint" else None
                    twin = {"kind": "edit", "prompt": prompt, "seed": subject.seed, "batch": "0/1", "edit": edit}
                    photo.twins.append(twin | {"image": {"bytes": _png(edited), "path": None}})


def _instructions(config: RenderConfig) -> PromptBook:
    return PromptBook.read(Path(config.instructions) if config.instructions else INSTRUCTIONS)


def _batches(photos: Iterable[_Photo], size: int) -> Iterator[list[_Photo]]:
    """Batches of up to `size` photos of one width and height, in the order of first appearance."""
    by_size: dict[tuple[int, int], list[_Photo]] = {}
    for photo in photos:
        batch = by_size.setdefault(photo.size, [])
        batch.append(photo)
        if len(batch) == size:
            yield by_size.pop(photo.size)
    yield from by_size.values()


def _render_or_split(
    render: Callable[[Sequence[int]], list[PILImage.Image]], places: Sequence[int], rows: int = 1
) -> Iterator[tuple[PILImage.Image | Exception, str]]:
    """(image, "index/size" of its batch) for each place; a failed batch is retried one by one.

    `rows`: the size to which `render` fills a smaller batch.
    """
    try:
        images = render(places)
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory while rendering {len(places)} at a time; lower --render_batch") from error
    except (Unavailable, Overflow):  # another photo would fail alike
        raise
    except Exception as error:  # an exception for one prompt must not affect the others
        if has_failed(error):  # the photos are not to blame
            raise UserError(
                f"the accelerator failed: {first_line(error)}; run the same command again, which continues at this "
                "shard"
            ) from error
        if len(places) == 1:
            yield error, "0/1"
            return
        for place in places:
            yield from _render_or_split(render, [place], rows)
    else:
        yield from ((image, f"{i}/{max(rows, len(places))}") for i, image in enumerate(images))


def _paint(
    painter: Generator, arguments: Mapping[str, Any], image: PILImage.Image, place: Place, seed: int
) -> PILImage.Image:
    """`painter.inpaint`, of which an exception rejects this edit only."""
    ((painted, _),) = _render_or_split(lambda _: [painter.inpaint(image, place, seed, arguments)], [0])
    if isinstance(painted, Exception):
        raise ImageRejected("renderer_failed", f"{type(painted).__name__}: {painted}") from painted
    return painted


def _fitted(data: bytes, size: tuple[int, int]) -> PILImage.Image:
    return fit(decode_image(data).image, size)


def _finished(image: PILImage.Image) -> bytes | None:
    """The bytes of a twin, or None if it is blank."""
    return None if is_blank(image) else _png(image)


def _png(image: PILImage.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # between two steps: lossless, and speed over size
    return buffer.getvalue()


def _source_of(config: RenderConfig) -> tuple[type[Generator], ResolvedModel]:
    """The class of the generator, and its model: at the endpoint, or of the registry."""
    if config.generator_endpoint:
        return EndpointGenerator, ResolvedModel(config.generator, config.generator_endpoint)
    return find_generator(config.generator)


def _load_renderer(config: RenderConfig) -> tuple[str, str | None, Generator]:
    _, model = _source_of(config)
    return model.name, model.revision, _loaded(config)


@functools.cache
def _loaded(config: RenderConfig) -> Generator:
    """Cached per process."""
    cls, model = _source_of(config)
    return EndpointGenerator(model, config) if config.generator_endpoint else cls(model, config.sampling)
