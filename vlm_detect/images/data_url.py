"""Parse images from data URLs: `data:image/jpeg;base64,/9j/4AAQ...`.

Line breaks, missing padding, the URL-safe alphabet and percent-encoding are accepted, because clients send all of them;
any other character is rejected.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from urllib.parse import unquote_to_bytes

from vlm_detect.images.bounds import ImageRejected

WANTED = "data:image/jpeg;base64,..."
DATA_URL = re.compile(rb"data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
LONGEST_HEAD = 256
_BLANKS = b" \t\r\n\f"
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/]")


def bytes_of_data_url(url: bytes, *, escaped: bool = False) -> bytes:
    """The bytes of a data URL; raises `ImageRejected` for anything else.

    `escaped`: the characters are the content of a JSON string.
    """
    if escaped and b"\\" in url:
        try:
            url = json.loads(b'"' + url + b'"', strict=False).encode("latin-1", "replace")
        except ValueError as error:
            raise ImageRejected("not_a_data_url", f"not a JSON string: {error}") from error
    head = DATA_URL.match(url, 0, LONGEST_HEAD)
    if not head:
        raise ImageRejected("not_a_data_url", f"give the image as {WANTED}: URLs and paths are not opened")
    text = url[head.end() :]
    if b"%" in text:
        text = unquote_to_bytes(text)
    text = text.translate(bytes.maketrans(b"-_", b"+/"), _BLANKS).rstrip(b"=")
    if foreign := _FOREIGN.search(text):
        found = foreign[0].decode("latin-1")
        raise ImageRejected("invalid_base64", f"character {found!r} at position {foreign.start()} is not base64")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise ImageRejected("invalid_base64", f"the data URL is truncated: {error}") from error
