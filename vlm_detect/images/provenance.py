"""What a file says about where it comes from: C2PA content credentials, and generator text in PNG, EXIF and XMP.

    for fact in provenance(path.read_bytes()): print(fact.source, fact.text, fact.claim)

These are claims of the file, to be read beside a verdict and never part of one: text is written and removed by anyone,
and most files say nothing. A C2PA signature proves that nobody changed the manifest since, not that it is true. Nothing
is fetched: a manifest that lies elsewhere is not read.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from PIL import ExifTags

from vlm_detect.images.bounds import ImageRejected, open_bounded

Claim = Literal["generated", "captured", "edited"]
MAX_TEXT = 200
_HEADER_BYTES = 4 << 20  # metadata further inside a file than this is not looked for by text search

_GENERATORS = re.compile(
    r"stable.?diffusion|sdxl|midjourney|dall.?e\b|firefly|\bflux\b|comfyui|invokeai|novelai|automatic1111|\bimagen\b|"
    r"gpt-?4o|gpt-image|gemini|leonardo\.ai|ideogram|dreamstudio|negative prompt|\bsteps: \d+, sampler",
    re.IGNORECASE,
)
_PNG_KEYS = frozenset(  # where generators and their front ends write
    ["parameters", "prompt", "workflow", "sd-metadata", "invokeai_metadata", "dream", "generation_data"]
)
_PNG_TEXT_KEYS = _PNG_KEYS | {"software", "comment", "description", "source", "title", "author"}
_EXIF_TAGS = ("Software", "Make", "Model", "ImageDescription", "Artist", "HostComputer")
_DIGITAL_SOURCE: Mapping[str, Claim] = {  # https://cv.iptc.org/newscodes/digitalsourcetype/
    "trainedAlgorithmicMedia": "generated",
    "algorithmicMedia": "generated",
    "compositeWithTrainedAlgorithmicMedia": "edited",
    "compositeSynthetic": "edited",
    "digitalCapture": "captured",
    "computationalCapture": "captured",
}
_SOURCE_TYPE = re.compile(r"digitalsourcetype/(\w+)")


@dataclass(frozen=True)
class Fact:
    """One statement of the file; `claim` is what it comes to, None where it says nothing about real or generated."""

    source: Literal["C2PA", "PNG text", "EXIF", "XMP"]
    text: str
    claim: Claim | None = None


def provenance(data: bytes) -> tuple[Fact, ...]:
    """What the bytes of an image file state about its origin; () where they state nothing or cannot be read."""
    return tuple(dict.fromkeys([*_c2pa_facts(data), *_metadata_facts(data)]))


def _metadata_facts(data: bytes) -> Iterator[Fact]:
    try:
        with open_bounded(data) as opened:
            info, exif = dict(opened.info), opened.getexif()
            details = exif.get_ifd(ExifTags.IFD.Exif)
    except ImageRejected:  # a file that cannot be read states nothing
        return
    for key, value in info.items():
        if isinstance(value, str) and str(key).lower() in _PNG_TEXT_KEYS:
            named = str(key).lower() in _PNG_KEYS or _GENERATORS.search(value)
            yield Fact("PNG text", _short(f"{key}: {value}"), "generated" if named else None)
    for name in _EXIF_TAGS:
        if value := exif.get(ExifTags.Base[name]):
            captured: Claim | None = "captured" if name in ("Make", "Model") else None
            yield Fact("EXIF", _short(f"{name}: {value}"), "generated" if _GENERATORS.search(str(value)) else captured)
    if comment := _user_comment(details.get(ExifTags.Base.UserComment)):
        yield Fact("EXIF", _short(f"UserComment: {comment}"), "generated" if _GENERATORS.search(comment) else None)
    xmp = info.get("xmp", b"")
    packet = xmp[:_HEADER_BYTES].decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)[:_HEADER_BYTES]
    for name in _SOURCE_TYPE.findall(packet):
        yield Fact("XMP", _short(f"DigitalSourceType: {name}"), _DIGITAL_SOURCE.get(name))
    if tool := re.search(r"CreatorTool(?:=\"|>)([^\"<]{1,200})", packet):
        yield Fact("XMP", _short(f"CreatorTool: {tool[1]}"), "generated" if _GENERATORS.search(tool[1]) else None)


def _user_comment(value: Any) -> str:
    """EXIF's UserComment: eight bytes that name the encoding, then text."""
    if not isinstance(value, bytes):
        return str(value or "")
    code, text = value[:8], value[8:]
    if not code.startswith(b"UNICODE"):
        return text.decode("utf-8", "replace").strip("\0 ")
    # The standard leaves the byte order open; ASCII letters tell it.
    return text.decode("utf-16-be" if text[:1] == b"\0" else "utf-16-le", "replace").strip("\0 ")


def _c2pa_facts(data: bytes) -> Iterator[Fact]:
    if b"c2pa" not in data:  # the label of a manifest store; most files have none and spare the reader
        return
    if find_spec("c2pa") is None:
        yield Fact("C2PA", "It has content credentials, unread: pip install 'vlm-detect[serve]'")
        return
    import c2pa

    settings = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(settings))
        with c2pa.Reader(None, io.BytesIO(data), context=context) as reader:
            store = json.loads(reader.json())
            state = str(reader.get_validation_state() or "unknown")
    except c2pa.C2paError as error:
        if "ManifestNotFound" not in str(type(error).__name__) + str(error):
            yield Fact("C2PA", _short(f"Content credentials that cannot be read: {error}"))
        return
    manifest = store.get("manifests", {}).get(store.get("active_manifest"), {})
    generator = manifest.get("claim_generator") or next(
        (entry.get("name") for entry in manifest.get("claim_generator_info", [])), "an unnamed tool"
    )
    issuer = (manifest.get("signature_info") or {}).get("issuer") or "an unnamed signer"
    trust = {"Trusted": "signature valid and trusted", "Valid": "signature valid, signer not on a trust list"}
    yield Fact("C2PA", _short(f"Made with {generator}, signed by {issuer}: {trust.get(state, 'signature NOT valid')}"))
    for name in dict.fromkeys(_SOURCE_TYPE.findall(json.dumps(manifest.get("assertions", [])))):
        yield Fact("C2PA", _short(f"Digital source type: {name}"), _DIGITAL_SOURCE.get(name))


def _short(text: str) -> str:
    """One printable line of at most `MAX_TEXT` characters: the file's text must not reach a terminal as commands."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MAX_TEXT]).split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
