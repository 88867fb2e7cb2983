"""Decoding in a process of its own: the same pixels, and an end to whatever does not end by itself."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.factories import photo
from vlm_detect.images import decode
from vlm_detect.images.bounds import ImageRejected
from vlm_detect.images.data_url import bytes_of_data_url
from vlm_detect.images.decode import decode_here, decode_image, decoded_of
from vlm_detect.images.isolated import IsolatedDecoder, shared_decoder
from vlm_detect.images.provenance import Fact, provenance

posix = pytest.mark.skipif(sys.platform == "win32", reason="no such signals or limits there")


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def decoder() -> IsolatedDecoder:
    return IsolatedDecoder()


def rejection(decoder: IsolatedDecoder, data: bytes, **options: Any) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        decoder.decode(data, **options)
    return caught.value


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "JPEG2000", "AVIF"])
def test_isolated_decoding_equals_decoding_in_process(decoder: IsolatedDecoder, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Ye Olde Camera"
    data = saved(photo(1), file_format, **({"exif": exif} if file_format == "JPEG" else {}))
    reply, here = decoder.decode(data, with_facts=True), decode_here(data)
    assert {**vars(decoded_of(reply)), "image": None} == {**vars(here), "image": None}
    np.testing.assert_array_equal(reply.image, here.image)
    assert tuple(Fact(**fact) for fact in reply.header["facts"]) == provenance(data)
    assert file_format != "JPEG" or "Ye Olde Camera" in str(reply.header["facts"])


def test_data_urls_are_decoded_in_isolation_too(decoder: IsolatedDecoder) -> None:
    data = saved(photo(1), "PNG")
    url = b"data:image/png;base64," + base64.b64encode(data)
    for sent, encoding in ((url, "data_url"), (json.dumps(url.decode()).encode()[1:-1], "json_data_url")):
        reply = decoder.decode(memoryview(sent), encoding=encoding)
        np.testing.assert_array_equal(reply.image, photo(1))
    assert rejection(decoder, b"data:image/png;base64,!!", encoding="data_url").reason == "invalid_base64"


def test_rejects_have_their_reason(decoder: IsolatedDecoder) -> None:
    for data in (b"", b"no image", saved(photo(1), "PNG")[:-100], saved(photo(1), "TIFF")[:-100]):
        with pytest.raises(ImageRejected) as here:
            decode_here(data)
        assert rejection(decoder, data).args == here.value.args
    assert rejection(decoder, saved(photo(1), "PNG"), max_pixels=10).reason == "too_large"


@posix
def test_a_decoder_that_hangs_can_be_stopped(decoder: IsolatedDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    data, converse, hangs = saved(photo(1), "PNG"), IsolatedDecoder._converse, threading.Event()

    def hang(process: Any, *args: Any) -> Any:
        process.send_signal(signal.SIGSTOP)
        hangs.set()
        return converse(process, *args)

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(str(rejection(decoder, data))))
    with monkeypatch.context() as patch:
        patch.setattr(IsolatedDecoder, "_converse", staticmethod(hang))
        thread.start()
        assert hangs.wait(60)
        decoder.stop()
        thread.join(60)
    assert found == ["too_slow: its decoding was stopped"]
    assert decoder.decode(data).image.size == photo(1).size


@posix
def test_a_decoder_that_crashes_is_a_rejection_and_the_next_image_is_read(
    decoder: IsolatedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, converse = saved(photo(1), "PNG"), IsolatedDecoder._converse

    def crash(process: Any, *args: Any) -> Any:
        process.send_signal(signal.SIGSEGV)
        return converse(process, *args)

    with monkeypatch.context() as patch:
        patch.setattr(IsolatedDecoder, "_converse", staticmethod(crash))
        refused = rejection(decoder, data)
    assert (refused.reason, "crashed" in refused.detail) == ("unreadable", True)
    assert decoder.decode(data).image.size == photo(1).size


@posix
def test_a_cpu_time_limit_ends_a_hanging_decoder() -> None:
    slow = b"P3 4000 4000 255 " + b"1 " * 48_000_000  # numbers in text are read by Python
    refused = rejection(IsolatedDecoder(), slow, max_seconds=0.1)
    assert refused.reason == "too_slow"
    assert "0.1 s of CPU time" in refused.detail


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_decoder_memory_is_bounded_by_the_pixel_limit() -> None:
    import resource

    decoder = IsolatedDecoder()
    decoder.decode(saved(photo(1), "PNG"), max_pixels=1 << 20)
    process = decoder._process
    assert process is not None
    assert resource.prlimit(process.pid, resource.RLIMIT_AS)[0] == (2 << 30) + (64 << 20)
    decoder.stop()


def test_output_of_libraries_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(saved(photo(1), "TIFF", compression="tiff_lzw"))
    data[8:400] = os.urandom(392)
    with contextlib.suppress(ImageRejected):
        decode_here(bytes(data))
    heard = capfd.readouterr().err
    with pytest.raises(ImageRejected):
        decode_image(bytes(data))
    assert capfd.readouterr() == ("", "")
    assert heard, "libtiff has become silent: choose another file for this test"


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG2000", "AVIF"])
def test_decoders_without_incremental_reading_never_run_in_process(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "decode_here", lambda *args, **options: pytest.fail("decoded here"))
    assert decode_image(saved(photo(1), file_format)).format == file_format
    for big_endian in (b"MM\0*", b"MM\0+", b"II+\0"):
        with pytest.raises(ImageRejected):
            decode_image(big_endian + b"\0" * 20)


def _size_of(data: bytes) -> tuple[int, int]:
    return decode_image(data).image.size


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing is forked there")
def test_a_forked_process_has_a_decoder_of_its_own() -> None:
    data = saved(photo(1), "TIFF")
    decode_image(data)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_size_of, [data] * 8) == [photo(1).size] * 8
    with shared_decoder() as one, shared_decoder() as other:
        assert one is not other
    assert decode_image(data).image.size == photo(1).size


DATA = bytes(range(256))
PLAIN = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("="),
        "\n".join(PLAIN[i : i + 76] for i in range(0, len(PLAIN), 76)) + "\r\n",
        PLAIN.replace("+", "-").replace("/", "_"),
        PLAIN.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
    ],
)
@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:;base64,", "DATA:IMAGE/PNG;Charset=x;BASE64,"])
def test_base64_as_clients_write_it(head: str, text: str) -> None:
    assert bytes_of_data_url((head + text).encode()) == DATA


def test_base64_as_json_escapes_it() -> None:
    escaped = f"data:image/png;base64,{PLAIN}".replace("/", "\\/").replace("A", "\\u0041")
    assert bytes_of_data_url(escaped.encode(), escaped=True) == DATA


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "not_a_data_url"),
        ("http://127.0.0.1/x.png", "not_a_data_url"),
        ("file:///etc/passwd", "not_a_data_url"),
        (PLAIN, "not_a_data_url"),
        ("data:image/png,abc", "not_a_data_url"),
        (f"data:image/png;{'a' * 300};base64,{PLAIN}", "not_a_data_url"),
        (f"data:image/png;base64,{PLAIN}é", "invalid_base64"),
        (f"data:image/png;base64,{PLAIN[:9]}", "invalid_base64"),
        ("data:image/png;base64,ab=cd", "invalid_base64"),
    ],
)
def test_an_invalid_data_url_is_reported(url: str, reason: str) -> None:
    with pytest.raises(ImageRejected) as caught:
        bytes_of_data_url(url.encode())
    assert caught.value.reason == reason
