"""Base58btc and the other bases that peer ids and certificate hashes are written in.

https://github.com/multiformats/multibase : the first character names the base. Peer ids are
also written in bare base58btc, without that character.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"

MAX_TEXT_CHARS: Final = 512
"""Ours: longer texts are refused, because base conversion takes quadratic time."""


def encode_base58(data: bytes) -> str:
    """Return `data` in base58btc, without a multibase prefix."""
    return _encode(data, _BASE58)


def decode_base58(text: str) -> bytes:
    """Return the bytes of a base58btc text. Raises ValueError naming what is wrong."""
    return _decode(text, _BASE58)


def encode_base64url(data: bytes) -> str:
    """Return `data` as multibase in base64url without padding (prefix "u")."""
    return "u" + base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str) -> bytes:
    """Return the bytes of a multibase text. Raises ValueError naming what is wrong.

    Understood: base16 (f, F), base32 (b, B), base36 (k), base58btc (z), base64url (u).
    """
    if len(text) > MAX_TEXT_CHARS:
        raise ValueError(f"it is longer than {MAX_TEXT_CHARS} characters")
    base, digits = text[:1], text[1:]
    if not digits.isascii():
        raise ValueError("it has a character that is not ASCII")
    try:
        match base:
            case "f" | "F":
                return base64.b16decode(digits.upper())
            case "b" | "B":
                return base64.b32decode(digits.upper() + "=" * (-len(digits) % 8))
            case "k":
                return _decode(digits, _BASE36)
            case "z":
                return _decode(digits, _BASE58)
            case "u":
                padded = digits + "=" * (-len(digits) % 4)
                return base64.b64decode(padded, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(f"it does not decode: {error}") from error
    raise ValueError(f'"{base}" begins no multibase that is known here')


def _encode(data: bytes, alphabet: str) -> str:
    base = len(alphabet)
    number = int.from_bytes(data, "big")
    digits: list[str] = []
    while number:
        number, digit = divmod(number, base)
        digits.append(alphabet[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return alphabet[0] * zeros + "".join(reversed(digits))


def _decode(text: str, alphabet: str) -> bytes:
    if len(text) > MAX_TEXT_CHARS:
        raise ValueError(f"it is longer than {MAX_TEXT_CHARS} characters")
    base = len(alphabet)
    number = 0
    for character in text:
        digit = alphabet.find(character)
        if digit < 0:
            raise ValueError(f'"{character}" is no digit of base {base}')
        number = number * base + digit
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
