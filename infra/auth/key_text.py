"""The text of an API key: a format that people and scanners for leaked keys recognise.

    slk_ + 43 characters for 256 random bits + 6 for a checksum, all of 0-9 A-Z a-z

The checksum is the CRC-32 of the 43 characters. A scanner that finds it correct has found a key, and no other random
text. It protects nothing.
"""

from __future__ import annotations

import string
import zlib
from typing import Final

PREFIX: Final = "slk_"
RANDOM_BYTES: Final = 32
RANDOM_CHARACTERS: Final = 43
CHECKSUM_CHARACTERS: Final = 6

_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase


def key_text(random: bytes) -> str:
    """Return the text of a key for 32 random bytes."""
    drawn = _in_base_62(int.from_bytes(random), RANDOM_CHARACTERS)
    return PREFIX + drawn + _in_base_62(zlib.crc32(drawn.encode()), CHECKSUM_CHARACTERS)


def _in_base_62(number: int, characters: int) -> str:
    written = ""
    for _ in range(characters):
        number, digit = divmod(number, len(_DIGITS))
        written = _DIGITS[digit] + written
    return written
