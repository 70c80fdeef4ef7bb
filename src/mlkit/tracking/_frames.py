"""The bytes of a journal: how a frame is written, and how it is known to be whole.

A file is `MAGIC` and frames. A frame is `length:u32 kind:u8 payload crc:u32`, little-endian;
*length* counts the kind and the payload, *crc* is the CRC-32 of all before it. A metric frame is
packed doubles behind the number of its series, whose keys a frame before it has named; the rest is
JSON. Changing any of this is a new `MAGIC`.

| kind | payload |
| --- | --- |
| `SERIES` | `series:u32`, JSON list of keys |
| `METRICS` | `series:u32 step:i64 microseconds:i64`, one double per key |
| `PARAMS`, `TAGS` | JSON `[microseconds, {key: value}]` |
| `ARTIFACT` | JSON `[microseconds, {"name": ..., "digest": ..., "size": ...}]` |
| `STATUS` | JSON `[microseconds, {"status": ...}]` |
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, final
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "ARTIFACT",
    "MAGIC",
    "MAX_PAYLOAD",
    "METRICS",
    "METRICS_HEAD",
    "PARAMS",
    "SERIES",
    "STATUS",
    "TAGS",
    "Frame",
    "count_records",
    "frame",
    "frames",
    "json_frame",
    "metric_values",
    "series_frame",
]

MAGIC = b"mlkitj1\n"
SERIES, METRICS, PARAMS, TAGS, ARTIFACT, STATUS = range(1, 7)
MAX_PAYLOAD = 16 << 20
"""A longer payload is refused when written and taken for damage when read."""

METRICS_HEAD = Struct("<IBIqq")
"""Length, kind, series, step, microseconds: how a metric frame begins."""
METRICS_FIXED = METRICS_HEAD.size - 4  # what `length` counts besides the doubles

_HEAD = Struct("<IB")
_CRC = Struct("<I")
_SERIES_NUMBER = Struct("<I")
_POINT = Struct("<Iqq")


@final
class Frame:
    """One whole frame.

    Args:
        kind: What it holds.
        payload: Its content.
        end: Offset of the byte behind it.
    """

    __slots__ = ("end", "kind", "payload")

    def __init__(self, kind: int, payload: bytes, end: int) -> None:
        self.kind, self.payload, self.end = kind, payload, end


def frame(kind: int, payload: bytes) -> bytes:
    """Return the bytes of a frame."""
    head = _HEAD.pack(1 + len(payload), kind) + payload
    return head + _CRC.pack(crc32(head))


def json_frame(kind: int, microseconds: int, content: dict[str, Any]) -> bytes:
    """Return a frame of JSON. Floats keep every bit; NaN and infinities are written as Python reads them."""
    import json

    return frame(kind, json.dumps([microseconds, content], separators=(",", ":")).encode("ascii"))


def series_frame(number: int, keys: Sequence[str]) -> bytes:
    """Return the frame that names the keys of a series."""
    import json

    return frame(SERIES, _SERIES_NUMBER.pack(number) + json.dumps(list(keys)).encode("ascii"))


def frames(data: bytes, *, base: int = 0) -> Iterator[Frame]:
    """Yield the whole frames at the beginning of *data*, and stop at the first that is not whole.

    Args:
        data: Bytes of a file from a frame's start on.
        base: Offset of the first byte in the file.
    """
    start, size = 0, len(data)
    while start + 5 <= size:
        length, kind = _HEAD.unpack_from(data, start)
        end = start + 4 + length
        if not 1 <= length <= MAX_PAYLOAD + 1 or end + 4 > size:
            return
        if crc32(memoryview(data)[start:end]) != _CRC.unpack_from(data, end)[0]:
            return
        yield Frame(kind, data[start + 5 : end], base + end + 4)
        start = end + 4


def series_keys(payload: bytes) -> tuple[int, list[str]]:
    """Return the number and the keys of a `SERIES` payload."""
    import json

    return _SERIES_NUMBER.unpack_from(payload)[0], json.loads(payload[4:])


def metric_values(payload: bytes) -> tuple[int, int, int, tuple[float, ...]]:
    """Return series, step, microseconds and values of a `METRICS` payload."""
    series, step, microseconds = _POINT.unpack_from(payload)
    values = Struct(f"<{(len(payload) - _POINT.size) // 8}d").unpack_from(payload, _POINT.size)
    return series, step, microseconds, values


def count_records(one: Frame) -> int:
    """Return how many records a frame holds; a frame that names keys holds none."""
    if one.kind == METRICS:
        return (len(one.payload) - _POINT.size) // 8
    if one.kind in {PARAMS, TAGS}:
        import json

        return len(json.loads(one.payload)[1])
    return 1 if one.kind in {ARTIFACT, STATUS} else 0
