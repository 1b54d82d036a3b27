"""Names that must be unique and need not be secret: of requests, records, spans and acts.

Leaves: UUIDs of version 7 (RFC 9562, section 5.7) and hexadecimal digits. They come from a generator of this process
that the operating system seeds, not from the operating system each time: each such question lets go of the
interpreter's lock, and then waits for it among all threads that compute. What must not be guessed comes from `secrets`.
"""

from __future__ import annotations

import os
import random
import time

_random = random.Random()  # of its own: whoever seeds the module's own one must not repeat names
os.register_at_fork(after_in_child=_random.seed)


def new_id() -> str:
    """A UUIDv7 in canonical form: 48 bits of milliseconds since 1970, then 74 random ones."""
    milliseconds = time.time_ns() // 1_000_000
    low = _random.getrandbits(74)
    value = milliseconds << 80 | 0x7 << 76 | (low >> 62) << 64 | 0b10 << 62 | low & (1 << 62) - 1
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def hex_digits(count: int) -> str:
    """So many random hexadecimal digits, not all of them zero."""
    return f"{_random.getrandbits(4 * count) or 1:0{count}x}"
