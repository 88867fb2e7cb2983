"""Images as data URLs, as clients write them: `data:image/jpeg;base64,/9j/4AAQ...`.

Line breaks, missing padding, the URL-safe alphabet and percent-encoding are read, for clients write all of them; a
character that belongs to no base64 is refused.
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
    """The bytes that a data URL holds; `ImageRejected` where it is none, or no base64.

    `escaped`: the characters stand as in a JSON string, between its quotes.
    """
    if escaped and b"\\" in url:
        try:
            url = json.loads(b'"' + url + b'"', strict=False).encode("latin-1", "replace")
        except ValueError as error:
            raise ImageRejected("not_a_data_url", f"no JSON string: {error}") from error
    head = DATA_URL.match(url, 0, LONGEST_HEAD)
    if not head:
        raise ImageRejected("not_a_data_url", f"give the image as {WANTED}: no address and no path is opened")
    text = url[head.end() :]
    if b"%" in text:
        text = unquote_to_bytes(text)
    text = text.translate(bytes.maketrans(b"-_", b"+/"), _BLANKS).rstrip(b"=")
    if foreign := _FOREIGN.search(text):
        found = foreign[0].decode("latin-1")
        raise ImageRejected("invalid_base64", f"character {found!r} at place {foreign.start()} is none of base64")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise ImageRejected("invalid_base64", f"the data URL was cut off: {error}") from error
