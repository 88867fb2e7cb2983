"""What files say of themselves: each place that a generator writes to, and nothing from hostile or silent files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.images.provenance import MAX_TEXT, provenance

SIGNED = Path(__file__).parents[1] / "golden" / "provenance" / "signed.png"
SETTINGS = "a dog on a beach\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7"


def encoded(format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "orange").save(buffer, format, **options)
    return buffer.getvalue()


def png(**texts: str) -> bytes:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    return encoded("PNG", pnginfo=info)


def jpeg(**tags: str) -> bytes:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[ExifTags.Base[name]] = value
    return encoded("JPEG", exif=exif)


def claims(data: bytes) -> list[tuple[str, str | None]]:
    return [(fact.source, fact.claim) for fact in provenance(data)]


def test_generator_settings_in_png_text() -> None:
    (fact,) = provenance(png(parameters=SETTINGS, Author=""))[:1]
    assert fact.text.startswith("parameters: a dog on a beach Negative prompt: blurry Steps: 20")
    assert (fact.source, fact.claim) == ("PNG text", "generated")
    assert claims(png(Software="NovelAI")) == [("PNG text", "generated")]
    assert claims(png(Software="gnome-screenshot")) == [("PNG text", None)]
    assert claims(png(Unknown="ComfyUI")) == []


def test_exif_tags() -> None:
    assert claims(jpeg(Make="Canon", Model="EOS R5")) == [("EXIF", "captured")] * 2
    assert claims(jpeg(Software="Adobe Firefly")) == [("EXIF", "generated")]
    assert claims(jpeg(ImageDescription="a garden")) == [("EXIF", None)]


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le"])
def test_generator_settings_in_the_user_comment(encoding: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + SETTINGS.encode(encoding)
    (fact,) = provenance(encoded("JPEG", exif=exif))
    assert fact.text.startswith("UserComment: a dog on a beach")
    assert fact.claim == "generated"


def test_the_digital_source_type_of_xmp() -> None:
    kind = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    packet = f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{kind}" xmp:CreatorTool="Midjourney 7"/>'
    assert claims(encoded("JPEG", xmp=packet.encode())) == [("XMP", "edited"), ("XMP", "generated")]


def test_content_credentials() -> None:
    pytest.importorskip("c2pa", reason="needs the extra serve")
    made, kind = provenance(SIGNED.read_bytes())
    assert "signed by vlm-detect tests: signature valid, signer not on a trust list" in made.text
    assert (kind.source, kind.claim) == ("C2PA", "generated")
    changed = SIGNED.read_bytes().replace(b"trainedAlgorithmicMedia", b"digitalCapture" + b"X" * 9)
    assert "signature NOT valid" in provenance(changed)[0].text


def test_text_of_the_file_is_one_short_printable_line() -> None:
    (fact,) = provenance(png(Comment="\x1b[31mred\x07\n" + "x" * 5000))
    assert fact.text.isprintable()
    assert len(fact.text) == MAX_TEXT


@pytest.mark.parametrize("data", [b"", b"c2pa", b"\x89PNG\r\n\x1a\n" + b"c2pa" * 99, b"\xff\xd8\xff\xe1c2pa"])
def test_broken_files_state_nothing(data: bytes) -> None:
    assert [fact.claim for fact in provenance(data)] in ([], [None])
    with pytest.raises(ImageRejected):
        decode_image(data)


def test_a_plain_file_states_nothing() -> None:
    assert provenance(encoded("PNG")) == provenance(encoded("JPEG")) == ()
