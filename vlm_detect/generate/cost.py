"""The cost of a run before it starts: printed by `--dry_run`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from vlm_detect.generate.edits import ATTEMPTS_PER_OPERATION
from vlm_detect.generate.endpoint_generator import SIDE, disclosure, inpaints
from vlm_detect.generate.options import PackConfig, RenderConfig
from vlm_detect.images.encode_config import EncodeConfig
from vlm_detect.jobs.shards import Plan, missing

# Means over 38 photographs of at least 400 pixels: PNG between the steps, and JPEG of quality 96, 4:4:4.
PNG_BYTES_A_PIXEL = 1.75
JPEG_BYTES_A_PIXEL = 0.59


def describe_plan(
    captions: Plan,
    renders: Sequence[tuple[RenderConfig, Plan, str]],
    pack: PackConfig,
    encode: EncodeConfig,
    work: Path,
) -> str:
    """Upper bounds of images, denoising steps and bytes; rejects reduce them.

    Args:
        renders: of each generator the settings, the plan, and the name of its folder in `work`.
    """
    lines = [f"{captions.items} photos in {captions.shards} shards of {captions.shard_size}"]
    for name, plan in (("captions", captions), *((name, plan) for _, plan, name in renders)):
        lines.append(f"{name}: {len(missing(work / name, plan))} of {plan.shards} shards to run")
    for render, _, _ in renders:
        lines += _describe_renders(captions.items // render.share.shares, render, pack, encode, work)
    return "\n".join(lines)


def _describe_renders(
    photos: int, render: RenderConfig, pack: PackConfig, encode: EncodeConfig, work: Path
) -> list[str]:
    kinds = render.twins.kinds
    images = {kind: photos * (2 if kind == "edit" and render.edits_on == "both" else 1) for kind in kinds}
    lines = []
    listed = ", ".join(f"{count} {kind}" for kind, count in images.items())
    lines.append(f"twins: {listed}, by {render.generator}{render.sampling.variant}")
    rendered = sum(images.get(kind, 0) for kind in ("caption", "instruct"))
    if render.generator_endpoint:
        lines.append(_requests(rendered, images.get("edit", 0), render))
    elif rendered:
        lines.append(_denoising(rendered, render))
    if render.render_size:
        pixels = sum(images.values()) * render.render_size**2
        packed = sum(images.values()) * 2 * (pack.size or render.render_size) ** 2
        a_pixel = JPEG_BYTES_A_PIXEL if encode.encode == "jpeg" else PNG_BYTES_A_PIXEL
        lines.append(
            f"bytes: about {_size(pixels * PNG_BYTES_A_PIXEL)} of twins in addition to the photos in {work}, "
            f"about {_size(packed * a_pixel)} of dataset; {_size(_free(work))} are free there"
        )
    return lines


def _requests(images: int, edits: int, render: RenderConfig) -> str:
    """Prices are per image, or by its pixels; an unanswered request is repeated."""
    pixels = images * (render.render_size or SIDE) ** 2
    inpainted = ""
    if inpaints(render):
        share = len(render.edit_operations.operations)
        inpainted = f", and for about 1 in {share} of {edits} edits up to {ATTEMPTS_PER_OPERATION} requests each"
    return f"endpoint: {images} requests, {pixels / 1e6:.3g} megapixels{inpainted}; {disclosure(render)}"


def _denoising(images: int, render: RenderConfig) -> str:
    passes = 2 if render.sampling.guidance > 1 else 1
    steps = images * render.sampling.steps
    return f"denoising: {steps} steps, {steps * passes} passes of the denoiser"


def _free(folder: Path) -> int:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    return shutil.disk_usage(there).free


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
