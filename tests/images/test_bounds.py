"""What a file may cost: small files that ask for minutes of work are refused before it, ordinary ones are not."""

from __future__ import annotations

import io
import itertools
import os
import stat
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.data.factories import photo
from vlm_detect.images import bounds
from vlm_detect.images.bounds import ImageRejected, count_scans, open_bounded, read_bounded
from vlm_detect.images.decode import decode_image


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def many_scans(image: Image.Image, scans: int, *, progressive: bool = True) -> bytes:
    """A JPEG whose last scan is repeated until there are `scans`."""
    data = saved(image, "JPEG", progressive=progressive)
    tables = data.rindex(b"\xff\xc4") if progressive else data.index(b"\xff\xda")
    return data[:-2] + data[tables:-2] * (scans - count_scans(data)) + data[-2:]


def rejection(data: bytes | Path) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        decode_image(data)
    return caught.value


@pytest.mark.parametrize("progressive", [True, False])
def test_a_jpeg_of_hundreds_of_scans_is_refused_before_it_is_decoded(
    progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for scans in (bounds.MAX_SCANS + 1, 2000):
        refused = rejection(many_scans(photo(1).convert("L"), scans, progressive=progressive))
        assert (refused.reason, str(scans) in refused.detail) == ("too_slow", True)


def test_usual_numbers_of_scans_are_read() -> None:
    plain = saved(photo(1), "JPEG", progressive=True)
    assert 2 < count_scans(plain) < 20
    for data in (plain, many_scans(photo(1), bounds.MAX_SCANS)):
        np.testing.assert_array_equal(decode_image(data).image, Image.open(io.BytesIO(data)))


def test_scans_of_a_large_image_count_by_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = many_scans(photo(1), 20)
    pixels = photo(1).width * photo(1).height
    monkeypatch.setattr(bounds, "MAX_SCANNED_PIXELS", 20 * pixels)
    decode_image(data)
    monkeypatch.setattr(bounds, "MAX_SCANNED_PIXELS", 20 * pixels - 1)
    assert rejection(data).reason == "too_slow"


def test_bytes_that_look_like_a_scan_do_not_count() -> None:
    inner = many_scans(photo(2).resize((16, 16)), 60)
    outer = saved(photo(1), "JPEG")
    segment = b"\xff\xe5" + struct.pack(">H", len(inner) + 2) + inner
    for data in (outer[:2] + segment + outer[2:], outer + inner * 10):  # a thumbnail in front, a film behind
        assert data.count(b"\xff\xda") > 60
        assert count_scans(data) == 1
        assert decode_image(data).width == photo(1).width
    assert count_scans(b"") == count_scans(b"\xff\xd8") == 0
    assert count_scans(b"\xff\xd8\xff\xda\xff\xda") == 1  # cut inside the header of its scan


def test_the_frames_of_an_animation_are_not_iterated(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("P", (8, 8), i % 200) for i in range(3000)]
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False)
    tiff = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:20])
    reads: list[int | None] = []
    read = bounds._TimedBytes.read
    monkeypatch.setattr(bounds._TimedBytes, "read", lambda self, size=-1: (reads.append(size), read(self, size))[1])
    for data in (gif, tiff):
        reads.clear()
        decode_image(data)
        assert len(reads) < 200


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000"])
def test_a_decoder_that_runs_too_long_is_stopped(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(photo(1), file_format)
    with pytest.raises(ImageRejected) as caught, open_bounded(data, max_seconds=-1):
        pass
    assert caught.value.reason == "too_slow"


def test_decoders_written_in_python_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = b"P3 1000 1000 255 " + b" ".join(b"%d" % (i % 256) for i in range(3_000_000))
    plain = saved(photo(1), "PNG")
    chunk = struct.pack(">I4sI", 0, b"aaAa", zlib.crc32(b"aaAa"))
    run = struct.pack("<2sIIIIIIHHIIIIII", b"BM", 0, 0, 58, 40, 1000, 1000, 1, 8, 1, 0, 0, 0, 1, 0) + b"\0" * 4
    for data in (numbers, plain[:33] + chunk * 1000 + plain[33:], run + b"\1\7" * 1_000_000):
        spent = itertools.count()
        monkeypatch.setattr(bounds.time, "thread_time", lambda spent=spent: float(next(spent)))  # a second a reading
        with pytest.raises(ImageRejected) as caught, open_bounded(data, max_seconds=20) as opened:
            opened.load()
        assert caught.value.reason == "too_slow"
        assert next(spent) < 30


def test_a_tile_larger_than_any_image_is_refused() -> None:
    def tiled(side: int) -> bytes:
        pixels = zlib.compress(bytes(16 * 16))
        entries = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (322, side), (323, side), (324, 200)]
        entries.append((325, len(pixels)))
        directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0)
        return head.ljust(200, b"\0") + pixels

    assert decode_image(tiled(16)).width == 16
    assert rejection(tiled(60_000)).reason == "too_large"


def test_only_regular_files_are_read_and_only_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    assert read_bounded(path, 8) == b"12345678"
    with pytest.raises(ImageRejected, match="too_large"):
        read_bounded(path, 7)
    for name in (tmp_path, Path("/dev/zero"), tmp_path / "nobody", Path("a\0b")):
        with pytest.raises(ImageRejected, match="unreadable"):
            read_bounded(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_without_a_writer_does_not_block(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(rejection(pipe).reason), daemon=True)
    reader.start()
    reader.join(60)
    assert found == ["unreadable"]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    fstat = os.fstat
    monkeypatch.setattr(bounds.os, "fstat", lambda fd: (fstat(fd), path.write_bytes(b"1" * 100))[0])
    with pytest.raises(ImageRejected, match="too_large"):
        read_bounded(path, 8)
