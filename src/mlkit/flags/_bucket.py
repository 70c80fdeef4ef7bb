"""Which bucket a unit falls into: flagd's `fractional`, in the two generations that are in use.

| generation | hashed bytes | in use by |
| --- | --- | --- |
| `v2` | UTF-8 of `flagKey + targetingKey`, or of the text given | flagd-core 1.x for Python |
| `v3` | canonical CBOR of `[flagKey, targetingKey]`, or of any value given | flagd-core 2.x for Python |

Both then take `bucket = (murmur3_x86_32(bytes) * total_weight) >> 32`. The CBOR encoding is RFC 8949, section 4.2.1,
with whole floats written as integers, as flagd-core does.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.flags._coerce import MAX_TEXT, LimitError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "GENERATIONS",
    "MAX_WEIGHT",
    "Split",
    "cbor",
    "hash_bytes",
    "parse_split",
    "text_head",
    "unit_payload",
    "unit_prefix",
]

GENERATIONS = ("v2", "v3")
MAX_WEIGHT = 2**31 - 1
_SHORT_TEXT = [bytes([0x60 + length]) for length in range(24)]


class Split(NamedTuple):
    """Weighted outcomes.

    Attributes:
        total: Sum of the weights, at least 1.
        edges: First bucket after each outcome, never decreasing; the last one is *total*.
        outcomes: What each range of buckets gives.
    """

    total: int
    edges: tuple[int, ...]
    outcomes: tuple[Any, ...]

    def bucket(self, hashed: int) -> int:
        """Return the bucket of an unsigned 32-bit hash."""
        return (hashed * self.total) >> 32

    def table(self) -> list[Any]:
        """Return the outcome of each bucket."""
        made: list[Any] = []
        for edge, outcome in zip(self.edges, self.outcomes, strict=True):
            made += [outcome] * (edge - len(made))
        return made

    def choose(self, hashed: int) -> Any:
        """Return the outcome of an unsigned 32-bit hash."""
        bucket = (hashed * self.total) >> 32
        for edge, outcome in zip(self.edges, self.outcomes, strict=True):
            if bucket < edge:
                return outcome
        return None


def parse_split(pairs: Sequence[Any]) -> Split | None:
    """Return the split of evaluated `[outcome, weight]` pairs, or None if flagd would take none of it.

    Args:
        pairs: Lists of one or two items; the weight is a whole number, 1 if absent, negative counts as 0.
    """
    edges: list[int] = []
    outcomes: list[Any] = []
    total = 0
    for pair in pairs:
        if type(pair) is not list or not 1 <= len(pair) <= 2:
            return None
        weight = pair[1] if len(pair) == 2 else 1
        if type(weight) is float and weight.is_integer():
            weight = int(weight)  # JSON has one number type: 50.0 is 50
        if type(weight) is not int:
            return None
        total += max(weight, 0)
        edges.append(total)
        outcomes.append(pair[0])
    if not 0 < total <= MAX_WEIGHT:
        return None
    return Split(total, tuple(edges), tuple(outcomes))


def hash_bytes(payload: bytes) -> int:
    """Return the 32-bit MurmurHash3 (x86) of *payload*, unsigned, seed 0."""
    from mmh3 import mmh3_32_uintdigest

    return mmh3_32_uintdigest(payload)


def unit_prefix(flag_key: str, generation: str) -> bytes:
    """Return the bytes that go before the unit's own when a split gives no key.

    Raises:
        UnicodeEncodeError: If the key holds half a surrogate pair.
    """
    return flag_key.encode() if generation == "v2" else b"\x82" + _cbor_text(flag_key)


def text_head(length: int) -> bytes:
    """Return what goes before a text of *length* bytes in CBOR."""
    return _SHORT_TEXT[length] if length < 24 else _head(3, length)


def unit_payload(unit: str, prefix: bytes, generation: str) -> bytes:
    """Return the bytes to hash for *unit*."""
    body = unit.encode()
    if generation == "v2":
        return prefix + body
    return prefix + text_head(len(body)) + body


def cbor(value: Any) -> bytes:
    """Return the canonical CBOR of plain data.

    Raises:
        UnicodeEncodeError: If a text holds half a surrogate pair.
        LimitError: If it would be longer than 64 KiB.
    """
    out: list[bytes] = []
    room = [MAX_TEXT]
    _encode(value, out, room)
    return b"".join(out)


def _encode(value: Any, out: list[bytes], room: list[int]) -> None:
    kind = type(value)
    if kind is str:
        part = _cbor_text(value)
    elif kind is bool:
        part = b"\xf5" if value else b"\xf4"
    elif value is None:
        part = b"\xf6"
    elif kind is int:
        part = _cbor_int(value)
    elif kind is float:
        whole = value.is_integer() and -(2.0**63) <= value <= 2.0**64 - 1
        # float(2**64 - 1) is 2**64: the one value that passes the test and does not fit.
        part = _cbor_int(int(value)) if whole else _cbor_float(value)
    elif kind is list:
        part = _head(4, len(value))
    else:
        part = _head(5, len(value))
    out.append(part)
    room[0] -= len(part)
    if room[0] < 0:
        raise LimitError("the value to hash is too long")
    if kind is list:
        for item in value:
            _encode(item, out, room)
    elif kind is dict:
        for key in sorted(value, key=_cbor_text):
            out.append(_cbor_text(key))
            _encode(value[key], out, room)


def _cbor_text(value: str) -> bytes:
    body = value.encode()
    return text_head(len(body)) + body


def _cbor_int(value: int) -> bytes:
    major, magnitude = (0, value) if value >= 0 else (1, -1 - value)
    if magnitude < 2**64:
        return _head(major, magnitude)
    body = magnitude.to_bytes((magnitude.bit_length() + 7) // 8, "big")
    return bytes([0xC2 + major]) + _head(2, len(body)) + body


def _cbor_float(value: float) -> bytes:
    if value != value:  # noqa: PLR0124 - NaN test
        return b"\xf9\x7e\x00"
    for form, lead in ((">e", b"\xf9"), (">f", b"\xfa")):
        try:
            packed = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, packed)[0] == value:
            return lead + packed
    return b"\xfb" + struct.pack(">d", value)


def _head(major: int, length: int) -> bytes:
    lead = major << 5
    if length < 24:
        return bytes([lead + length])
    for extra, size in ((24, 1), (25, 2), (26, 4)):
        if length < 1 << (8 * size):
            return bytes([lead + extra]) + length.to_bytes(size, "big")
    return bytes([lead + 27]) + length.to_bytes(8, "big")
