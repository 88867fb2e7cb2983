"""What files say of themselves: each place that a generator writes to, and nothing from hostile or silent files."""

from __future__ import annotations

import datetime
import functools
import io
import json
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from vlm_detect.images.content_credentials import _source_types
from vlm_detect.images.decode import ImageRejected, decode_image
from vlm_detect.images.provenance import MAX_TEXT, provenance

SIGNED = Path(__file__).parents[1] / "golden" / "provenance" / "signed.png"
TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GRAPH = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20}}})
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
    assert claims(png(prompt=GRAPH, workflow='{"nodes": []}')) == [("PNG text", "generated")] * 2
    assert claims(png(prompt="Press Enter", workflow="approved", parameters="width=100")) == [("PNG text", None)] * 3
    assert claims(png(Software="gnome-screenshot")) == [("PNG text", None)]
    assert claims(png(Unknown="ComfyUI")) == []


def test_exif_tags() -> None:
    assert claims(jpeg(Make="Canon", Model="EOS R5")) == [("EXIF", "captured")] * 2
    assert claims(jpeg(Software="Adobe Firefly")) == [("EXIF", "generated")]
    assert claims(jpeg(ImageDescription="a garden")) == [("EXIF", None)]


def user_comment(value: bytes) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = value
    return encoded("JPEG", exif=exif)


@pytest.mark.parametrize("beginning", ["a dog", "猫 cat", "Ünder", "\n", "ʻokina", "🐈"])
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-16", "ascii", "none", "unnamed"])
def test_generator_settings_in_the_user_comment(beginning: str, encoding: str) -> None:
    """In either byte order, whatever the first letter is; also without the eight bytes that name the encoding."""
    text = f"{beginning}\n{SETTINGS}"
    if encoding.startswith("utf-16"):
        data = user_comment(b"UNICODE\0" + text.encode(encoding))
    else:
        code = {"ascii": b"ASCII\0\0\0", "none": bytes(8), "unnamed": b""}[encoding]
        data = user_comment(code + text.encode())
    (fact,) = provenance(data)
    assert fact.text.startswith("UserComment: " + " ".join(f"{beginning} a dog on a beach Negative".split())[:20])
    assert fact.claim == "generated"


def test_comments_by_people_claim_nothing() -> None:
    assert claims(user_comment(b"ASCII\0\0\0Stable Diffusion of gases")) == [("EXIF", None)]
    photo = jpeg(ImageDescription="A firefly on a leaf", Artist="Imagen Flux", Make="NIKON", Model="D850")
    assert claims(photo) == [("EXIF", "captured")] * 2 + [("EXIF", None)] * 2
    assert claims(jpeg(ImageDescription="Imagen de la boda", Make="Canon")) == [("EXIF", "captured"), ("EXIF", None)]
    assert claims(jpeg(ImageDescription="Solar flux", Software="JHelioviewer")) == [("EXIF", None)] * 2
    assert claims(jpeg(Make="Hawkeye", Model="Firefly 8SE")) == [("EXIF", "captured")] * 2
    assert (
        claims(png(Title="Midjourney", Description="made by Stable Diffusion", Author="Firefly"))
        == [("PNG text", None)] * 3
    )
    assert claims(png(Description="a cat --v 6 Job ID: 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9")) == [
        ("PNG text", "generated")
    ]


def test_workflows_in_camera_fields() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = 'workflow:{"nodes": []}', f"prompt:{GRAPH}"
    assert claims(encoded("WEBP", exif=exif)) == [("EXIF", "generated")] * 2
    keywords = Image.Exif()
    keywords[ExifTags.Base.XPComment] = SETTINGS.encode("utf-16-le")
    assert claims(encoded("JPEG", exif=keywords)) == [("EXIF", "generated")]


@pytest.mark.parametrize("file_format", ["JPEG", "GIF"])
def test_comments_of_files(file_format: str) -> None:
    for text, claim in {
        "Steps: 20, Sampler: Euler a, Stable Diffusion": "generated",
        "Generated with Stable Diffusion": "generated",
        "CREATOR: gd-jpeg v1.0 (using IJG JPEG v62), quality = 90": None,
        "Solar flux at noon": None,
    }.items():
        assert claims(encoded(file_format, comment=text.encode())) == ([("comment", claim)] if claim else [])


def test_credits_of_xmp_and_iptc() -> None:
    for packet, claim in {
        '<rdf:Description photoshop:Credit="Made with Google AI"/>': "generated",
        "<photoshop:Credit>Edited with Google AI</photoshop:Credit>": "edited",
        "<photoshop:Credit>NASA, solar flux</photoshop:Credit>": None,
    }.items():
        assert claims(encoded("JPEG", xmp=packet.encode())) == [("XMP", claim)]
        assert claims(png(**{"XML:com.adobe.xmp": packet})) == [("XMP", claim)]
    record = b"\x1c\x02\x6e" + len(b"Made with Google AI").to_bytes(2, "big") + b"Made with Google AI"
    block = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(record).to_bytes(4, "big") + record + b"\0" * (len(record) % 2)
    plain = encoded("JPEG")
    assert claims(plain[:2] + b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block + plain[2:]) == [
        ("IPTC", "generated")
    ]


def test_only_the_beginning_of_a_workflow_of_megabytes_is_read() -> None:
    info = PngInfo()
    info.add_text("workflow", '{"nodes": [' + "1, " * 700_000 + "1]}", zip=True)
    (fact,) = provenance(encoded("PNG", pnginfo=info))
    assert fact.text.startswith('workflow: {"nodes": [1, 1,')
    assert fact.claim == "generated"


def test_the_digital_source_type_of_xmp() -> None:
    kind = f"{TYPES}compositeWithTrainedAlgorithmicMedia"
    packet = f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{kind}" xmp:CreatorTool="Midjourney 7"/>'
    assert claims(encoded("JPEG", xmp=packet.encode())) == [("XMP", "edited"), ("XMP", "generated")]


def test_content_credentials() -> None:
    pytest.importorskip("c2pa", reason="needs the extra serve")
    made, kind = provenance(SIGNED.read_bytes())
    assert "signed by vlm-detect tests: signature valid, signer not on a trust list" in made.text
    assert (kind.source, kind.claim) == ("C2PA", "generated")
    changed = SIGNED.read_bytes().replace(b"trainedAlgorithmicMedia", b"digitalCapture" + b"X" * 9)
    assert "signature NOT valid" in provenance(changed)[0].text


@pytest.mark.parametrize(
    ("relation", "claim"), [("parentOf", "generated"), ("componentOf", "edited"), ("inputTo", None), ("", "generated")]
)
def test_ingredients_keep_their_claim(relation: str, claim: str | None) -> None:
    """A generator's image that an editor opened, pasted or was given, and saved with credentials of its own."""
    pytest.importorskip("c2pa", reason="needs the extra serve")
    pytest.importorskip("cryptography", reason="needs cryptography, to sign")
    generated = signed(encoded("JPEG"), "SomeGenerator", kind="trainedAlgorithmicMedia")
    saved = signed(encoded("JPEG"), "SomeEditor", ingredient=generated, relation=relation) if relation else generated
    made, *facts = provenance(saved)
    assert made.text.startswith(f"Made with {'SomeEditor' if relation else 'SomeGenerator'}")
    assert [fact.claim for fact in facts] == ([claim] if relation in ("", "parentOf") else [None, claim])
    if relation == "parentOf":
        assert facts[0].text == (
            "Digital source type of an earlier version (made with SomeGenerator): trainedAlgorithmicMedia"
        )
        twice = signed(encoded("JPEG"), "Another", ingredient=saved, relation="parentOf")
        assert "generated" in [fact.claim for fact in provenance(twice)]


def test_circular_ingredients_are_visited_once() -> None:
    kind = {"digitalSourceType": f"{TYPES}digitalCapture"}
    manifests = {
        name: {"assertions": [kind], "ingredients": [{"active_manifest": other, "relationship": "parentOf"}]}
        for name, other in (("a", "b"), ("b", "a"))
    }
    assert [fact.claim for fact in _source_types(manifests, "a")] == ["captured"] * 2


def signed(
    data: bytes, tool: str, *, kind: str | None = None, ingredient: bytes | None = None, relation: str = "parentOf"
) -> bytes:
    """`data`, a JPEG, with content credentials of a signer that nobody trusts."""
    import c2pa

    actions: list[dict[str, object]] = [{"action": "c2pa.created" if kind else "c2pa.opened"}]
    if kind:
        actions[0]["digitalSourceType"] = TYPES + kind
    elif relation == "parentOf":
        actions[0]["parameters"] = {"ingredientIds": ["one"]}
    else:
        actions = [{"action": "c2pa.created", "digitalSourceType": f"{TYPES}digitalCreation"}]
        placed = {"action": "c2pa.placed", "parameters": {"ingredientIds": ["one"]}}
        actions += [placed] if relation == "componentOf" else []
    manifest = {
        "claim_generator_info": [{"name": tool, "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": actions}}],
    }
    chain, key = certificates()
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain, private_key=key, ta_url=None))
    out = io.BytesIO()
    with c2pa.Builder(json.dumps(manifest)) as builder:
        if ingredient is not None:
            about = {"title": "one", "relationship": relation, "label": "one", "instance_id": "one"}
            builder.add_ingredient(json.dumps(about), "image/jpeg", io.BytesIO(ingredient))
        builder.sign(signer, "image/jpeg", io.BytesIO(data), out)
    return out.getvalue()


@functools.cache
def certificates() -> tuple[bytes, bytes]:
    """(chain of certificates, private key) of a signer made for these tests, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]) for name in ("Test CA", "Test signer")]
    pem = b""
    for is_ca in (True, False):
        own, key_uses = (0, (False, True, True)) if is_ca else (1, (True, False, False))
        signs, certifies, revokes = key_uses
        builder = (
            x509.CertificateBuilder(names[0], names[own], keys[own].public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), True)
            .add_extension(x509.KeyUsage(signs, False, False, False, False, certifies, revokes, False, False), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[own].public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), False)
        )
        if not is_ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        pem = builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + pem
    private = serialization.PrivateFormat.PKCS8
    return pem, keys[1].private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption())


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
