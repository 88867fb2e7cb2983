"""Provenance of a file from its metadata: content credentials, and what programs write.

    for fact in provenance(path.read_bytes()): print(fact.source, fact.text, fact.claim)

These are unverified claims, shown with a verdict and never part of it: anyone can write and remove text, and most files
have none. Text by people (titles, captions, authors) is never a claim; `generator_text.py` has the forms written by
software.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import ExifTags, Image, IptcImagePlugin

from vlm_detect.images.bounds import ImageRejected, open_bounded
from vlm_detect.images.claims import DIGITAL_SOURCE, MAX_TEXT, SOURCE_TYPE, Claim, Fact, one_line
from vlm_detect.images.content_credentials import c2pa_facts
from vlm_detect.images.generator_text import made_with, names_generator, states_settings
from vlm_detect.images.png_text import png_texts
from vlm_detect.images.strip_metadata import shown_chunks

__all__ = ["MAX_TEXT", "Claim", "Fact", "provenance"]

_HEADER_BYTES = 4 << 20  # the text search for metadata ends here
_XMP_KEY = "XML:com.adobe.xmp"
# Keys of PNG texts. Keys used only by generators are claims by themselves if they contain a record.
_GENERATORS_OWN = {"sd-metadata", "invokeai_metadata", "invokeai_graph", "generation_data"}
_PROGRAMS = {"software", "source"}
_PNG_KEYS = (
    _GENERATORS_OWN
    | _PROGRAMS
    | {
        *("parameters", "prompt", "workflow", "dream", "comment", "description", "title", "author", "usercomment"),
    }
)
_EXIF_TAGS = ("Software", "ProcessingSoftware", "Make", "Model", "ImageDescription", "Artist", "HostComputer")
_BY_PROGRAMS = {"Software", "ProcessingSoftware"}
_BY_CAMERAS = {"Make", "Model"}
_BY_PEOPLE = ("XPTitle", "XPComment", "XPSubject", "XPKeywords")  # of Windows; reported only if they contain settings
_IPTC_CREDIT = (2, 110)


def provenance(data: bytes) -> tuple[Fact, ...]:
    """The statements of an image file about its origin; () if there are none or it cannot be read."""
    return tuple(dict.fromkeys([*c2pa_facts(data), *_png_facts(data), *_metadata_facts(data)]))


def _png_facts(data: bytes) -> Iterator[Fact]:
    for key, text in png_texts(data):
        if key == _XMP_KEY:
            yield from _xmp_facts(text)
        elif key.lower() in _PNG_KEYS and text.strip():
            yield Fact("PNG text", one_line(f"{key}: {text}"), _png_claim(key.lower(), text))


def _png_claim(key: str, text: str) -> Claim | None:
    own = key in _GENERATORS_OWN and text.lstrip().startswith("{")
    settings = states_settings(text) or (key == "parameters" and "Negative prompt: " in text)
    return "generated" if own or settings or (key in _PROGRAMS and names_generator(text)) else None


def _metadata_facts(data: bytes) -> Iterator[Fact]:
    found = None
    for readable in (data, shown_chunks(data)):  # for a PNG also without its texts, which may make Pillow fail
        if found is None and readable is not None:
            found = _read(readable)
    if found is None:  # an unreadable file states nothing
        return
    info, exif, details, iptc = found
    for name in _EXIF_TAGS:
        if text := _as_text(exif.get(ExifTags.Base[name])):
            yield Fact("EXIF", one_line(f"{name}: {text}"), _exif_claim(name, text))
    for name in _BY_PEOPLE:
        if isinstance(value := exif.get(ExifTags.Base[name]), bytes):
            text = value[:_HEADER_BYTES].decode("utf-16-le", "replace").strip("\0")
            if states_settings(text):
                yield Fact("EXIF", one_line(f"{name}: {text}"), "generated")
    if comment := _user_comment(details.get(ExifTags.Base.UserComment), big_endian=exif.endian == ">"):
        yield Fact("EXIF", one_line(f"UserComment: {comment}"), "generated" if states_settings(comment) else None)
    # A comment without a claim is usually an encoder's signature.
    text = _as_text(info.get("comment"))
    if claim := "generated" if states_settings(text) or names_generator(text) else made_with(text):
        yield Fact("comment", one_line(text), claim)
    if credit := _as_text(iptc.get(_IPTC_CREDIT)):
        yield Fact("IPTC", one_line(f"Credit: {credit}"), made_with(credit))
    if not data.startswith(b"\x89PNG"):  # its packet is one of the texts
        yield from _xmp_facts(_as_text(info.get("xmp")))


_Read = tuple[dict[Any, Any], Image.Exif, Mapping[int, Any], Mapping[Any, Any]]


def _read(data: bytes) -> _Read | None:
    """(info, EXIF, its details, IPTC) of a file; None if it cannot be opened."""
    try:
        with open_bounded(data) as opened:
            exif = Image.Exif()
            details: Mapping[int, Any] = {}
            iptc: Mapping[Any, Any] = {}
            # Pillow's readers raise nearly any exception on an invalid block; the other blocks are still read.
            with contextlib.suppress(Exception):
                exif = opened.getexif()
                details = exif.get_ifd(ExifTags.IFD.Exif)
            with contextlib.suppress(Exception):
                iptc = IptcImagePlugin.getiptcinfo(opened) or {}
            return dict(opened.info), exif, details, iptc
    except ImageRejected:
        return None


def _exif_claim(name: str, text: str) -> Claim | None:
    if states_settings(text):  # ComfyUI stores its workflow as the camera's maker, its prompt as the model
        return "generated"
    if name in _BY_PROGRAMS:
        return "generated" if names_generator(text) else made_with(text)
    return "captured" if name in _BY_CAMERAS else None


def _xmp_facts(packet: str) -> Iterator[Fact]:
    packet = packet[:_HEADER_BYTES]
    for name in dict.fromkeys(SOURCE_TYPE.findall(packet)):
        yield Fact("XMP", one_line(f"DigitalSourceType: {name}"), DIGITAL_SOURCE.get(name))
    if tool := _property(packet, "CreatorTool"):
        yield Fact("XMP", one_line(f"CreatorTool: {tool}"), "generated" if names_generator(tool) else made_with(tool))
    if credit := _property(packet, "Credit"):
        yield Fact("XMP", one_line(f"Credit: {credit}"), made_with(credit))
    if states_settings(packet):
        yield Fact("XMP", "A generator's settings", "generated")


def _property(packet: str, name: str) -> str:
    """The value of a property, stored as an attribute or as an element."""
    found = re.search(rf":{name}(?:\s*=\s*[\"']|(?:\s[^<>]*)?>)\s*([^\"'<]{{1,200}})", packet)
    return found[1].strip() if found else ""


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, bytes):
        value = value[:_HEADER_BYTES].decode("utf-8", "replace")
    return str(value or "").strip("\0 \t\r\n")


def _user_comment(value: Any, *, big_endian: bool) -> str:
    """EXIF's UserComment: eight bytes for the encoding, then text; some programs omit the eight bytes."""
    if not isinstance(value, bytes):
        return _as_text(value)
    code, text = value[:8], value[8:]
    if code.startswith(b"UNICODE"):
        return _utf16(text, big_endian=big_endian)
    known = code.startswith((b"ASCII\0", b"JIS\0")) or code == bytes(8)
    return _as_text(text if known else value)


def _utf16(text: bytes, *, big_endian: bool) -> str:
    """Decode with the byte order (undefined in the standard) that gives more Latin letters, digits and spaces.

    For ties, as in text without any, the order of the EXIF block is used.
    """
    text = text[: _HEADER_BYTES & ~1]
    orders = ("utf-16-be", "utf-16-le") if big_endian else ("utf-16-le", "utf-16-be")
    decoded = [text.decode(order, "replace") for order in orders]
    best = max(decoded, key=lambda one: sum(character < "\u0250" and character != "\0" for character in one))
    return best.lstrip("\ufeff").strip("\0 \t\r\n")
