"""Marks: lines of a history that say what the lines before them add up to, so that those need not be read."""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING

from mlkit.models._plain import dump
from mlkit.models._state import MARK, TAIL, State

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["marked", "read_mark"]


def marked(data: bytes, state: State) -> bytes:
    """Return the line that says what the lines before it add up to, without its end.

    Args:
        data: The lines before it.
        state: What they add up to.
    """
    said = state.to_mark()
    body = dump(said | {"steps": _packed(said["steps"])})
    return MARK + _sum_of_mark(data, body) + b'","state":' + body + TAIL


def read_mark(data: bytes, begin: int, end: int) -> State | None:
    """Return the state after a mark, or None if the line is not what its writer wrote after these lines.

    Args:
        data: The history.
        begin: Where the mark begins.
        end: Where it ends, without its line end.
    """
    body = data[begin + len(MARK) + 64 + len(b'","state":') : end - len(TAIL)]
    before = memoryview(data)[:begin]
    if data[begin:end] != MARK + _sum_of_mark(before, body) + b'","state":' + body + TAIL:
        return None
    import json

    try:
        said = json.loads(body)
        begins = accumulate(_unpacked(said["steps"], begin))
        numbers = chain.from_iterable(range(first, end) for first, end in said["runs"])
        state = State(
            data,
            end + 1,
            said["sum"],
            n_changes=said["changes"],
            last=said["last"],
            saved=dict(zip(numbers, begins, strict=True)),
            signed={number: tuple(lines) for number, *lines in said["signed"]},
            holders={alias: tuple(held) for alias, held in said["holders"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    state.marked_at = state.n_changes
    return state


def _packed(steps: list[int]) -> str:
    """Return numbers below 2**32 as text; the lines of a history are alike, so a thousand take little more than 1 kB."""
    import sys
    import zlib
    from array import array
    from binascii import b2a_base64

    numbers = array("I", steps)
    if sys.byteorder == "big":
        numbers.byteswap()
    return b2a_base64(zlib.compress(numbers.tobytes()), newline=False).decode("ascii")


def _unpacked(text: str, n_bytes: int) -> Iterable[int]:
    """Return the numbers that were packed, of which there are fewer than bytes before the mark."""
    import sys
    import zlib
    from array import array
    from binascii import a2b_base64

    numbers = array("I")
    try:
        numbers.frombytes(zlib.decompressobj().decompress(a2b_base64(text), n_bytes))
    except zlib.error:
        raise ValueError("steps") from None
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _sum_of_mark(before: bytes | memoryview, body: bytes) -> bytes:
    from hashlib import sha256

    hasher = sha256(before)
    hasher.update(body)
    return hasher.hexdigest().encode("ascii")
