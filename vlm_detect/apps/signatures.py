"""Detached Ed25519 signatures of files, by keys in PEM or OpenSSH form (RFC 8032; the library `cryptography`).

    key = read_private_key(Path("key.pem"))             # openssl genpkey -algorithm ed25519 -out key.pem
    signature = sign(key, data)                         # 64 bytes
    verifies(read_public_key(Path("key.pub")), data, signature)

A key with a passphrase is refused: a scan that runs for hours has nobody to ask.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_detect.errors import UserError
from vlm_detect.extras import require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """`UserError` where the file is no private Ed25519 key, or one with a passphrase."""
    require("sign", "cryptography", wanted_by="--sign_key")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    data = _content(path, "--sign_key")
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
    key = _loaded(load, data, path, "--sign_key", "private")
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"--sign_key {path}: is no Ed25519 key; {_MAKE}")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """`UserError` where the file is no public Ed25519 key."""
    require("sign", "cryptography", wanted_by="--public_key")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    data = _content(path, "--public_key")
    key = _loaded(
        load_ssh_public_key if data.startswith(b"ssh-") else load_pem_public_key, data, path, "--public_key", "public"
    )
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"--public_key {path}: is no Ed25519 key")
    return key


def sign(key: Ed25519PrivateKey, data: bytes) -> bytes:
    return key.sign(data)


def verifies(key: Ed25519PublicKey, data: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half of a key, in base64 of its 32 bytes."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def public_from_text(text: str) -> Ed25519PublicKey:
    """What `public_text` gives; ValueError for anything else."""
    require("sign", "cryptography", wanted_by="a signed case")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError(str(error)) from error


def _content(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror}") from error


def _loaded(load: Any, data: bytes, path: Path, flag: str, kind: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    options = {"password": None} if kind == "private" else {}
    try:
        return load(data, **options)
    except TypeError as error:  # by the library's documentation: of a key with a passphrase that was not given
        raise UserError(f"{flag} {path}: has a passphrase; give a key without one") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{flag} {path}: no {kind} key in PEM or OpenSSH form; {_MAKE}") from error
