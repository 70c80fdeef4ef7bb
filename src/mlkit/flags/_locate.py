"""Where in a file a JSON pointer leads, and which keys an object has twice."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.flags._parts import column

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_SCANNED", "Scan", "scan"]

MAX_SCANNED = 4 * 2**20
# A text with what ends it, a colon if it is a key; or what begins and ends all else.
_TOKEN = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")\s*([:,\]}])|[{}\[\],]')
_ELEMENT = re.compile(rb"\s*(?=[^\s\]])")
_HERE = None  # the key under which a node of the tree of pointers keeps its own


class Scan(NamedTuple):
    """What was found.

    Attributes:
        places: Line and column of each pointer that was asked for, or of the nearest place above it.
        twice: The pointer of each key that its object has more than once, and where it is last.
    """

    places: dict[str, tuple[int, int]]
    twice: dict[str, tuple[int, int]]


@final
class _Frame:
    """An object or a list that is open: the part of the tree that is about it, and where in it one is."""

    __slots__ = ("child", "index", "key", "keys", "node")

    def __init__(self, node: Any, *, is_object: bool) -> None:
        self.node: dict[Any, Any] | None = node
        self.child: dict[Any, Any] | None = None
        self.keys: set[bytes] | None = set() if is_object else None
        self.key, self.index = b"", 0

    @property
    def step(self) -> str:
        """The step of a pointer to where one is."""
        return str(self.index) if self.keys is None else self.key.decode()


def scan(data: bytes, pointers: Iterable[str]) -> Scan:
    """Return where *pointers* lead in valid JSON. One pass, about 0.06 s a MiB.

    Args:
        data: The file.
        pointers: JSON pointers.
    """
    wanted = {pointer: _steps(pointer) for pointer in pointers}
    found: dict[tuple[str, ...], int] = {}
    twice: dict[str, int] = {}
    frame = _Frame(None, is_object=False)  # around the whole
    frame.child = _tree(wanted.values())
    frames: list[_Frame] = []
    for match in _TOKEN.finditer(data):
        token = match[2] or match[0]
        if token == b":" and frame.keys is not None:
            key = frame.key = _key(match[1])
            if key in frame.keys:
                twice[_pointer([*_path(frames), frame.step])] = match.start()
            frame.keys.add(key)
            if frame.node is not None:
                _enter(frame, frames, match.start(), found)
            continue
        if token == b",":
            frame.index += 1
        elif token in {b"{", b"["}:
            frames.append(frame)
            frame = _Frame(frame.child, is_object=token == b"{")
        else:
            frame = frames.pop()
            continue
        if frame.node is not None and frame.keys is None:
            start = _ELEMENT.match(data, match.end())
            if start is not None:  # an empty list has none
                _enter(frame, frames, start.end(), found)
    places = {pointer: _nearest(steps, found) for pointer, steps in wanted.items()}
    rows = _rows(data, {*places.values(), *twice.values()})
    return Scan(
        {pointer: rows[offset] for pointer, offset in places.items()},
        {pointer: rows[offset] for pointer, offset in twice.items()},
    )


def _enter(
    frame: _Frame, frames: list[_Frame], offset: int, found: dict[tuple[str, ...], int]
) -> None:
    """Go on to a member or an element, and note where it begins if that was asked for."""
    frame.child = None if frame.node is None else frame.node.get(frame.step)
    if frame.child is not None:
        found[*_path(frames), frame.step] = offset


def _path(frames: list[_Frame]) -> list[str]:
    return [frame.step for frame in frames[1:]]


def _tree(all_steps: Iterable[tuple[str, ...]]) -> dict[Any, Any]:
    tree: dict[Any, Any] = {}
    for steps in all_steps:
        node = tree
        for step in steps:
            node = node.setdefault(step, {})
        node[_HERE] = True
    return tree


def _steps(pointer: str) -> tuple[str, ...]:
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])


def _pointer(steps: list[str]) -> str:
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def _key(token: bytes) -> bytes:
    """Return a key in UTF-8, however it is spelt."""
    if b"\\" not in token:
        return token[1:-1]
    from msgspec.json import decode

    return decode(token, type=str).encode()


def _nearest(steps: tuple[str, ...], found: dict[tuple[str, ...], int]) -> int:
    for length in range(len(steps), 0, -1):
        offset = found.get(steps[:length])
        if offset is not None:
            return offset
    return 0


def _rows(data: bytes, offsets: set[int]) -> dict[int, tuple[int, int]]:
    """Return the line and column of each offset, columns in characters."""
    rows: dict[int, tuple[int, int]] = {}
    line = here = 1
    seen = 0
    for offset in sorted(offsets):  # each from the one before, as a file may be one line
        breaks = data.count(b"\n", seen, offset)
        if breaks:
            line += breaks
            here, seen = 1, data.rfind(b"\n", seen, offset) + 1
        here += column(data, seen, offset) - 1
        seen = offset
        rows[offset] = (line, here)
    return rows
