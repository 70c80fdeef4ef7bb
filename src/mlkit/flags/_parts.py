"""A flag file taken apart: the bytes of each flag, of the evaluators and of the metadata. Nothing in them is read yet.

What a file may cost is bounded before it is paid: by its size, and by how many members its flags account for.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._suggest import listing
from mlkit.errors import FlagFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from msgspec import Raw

__all__ = ["MAX_BYTES", "Parts", "column", "split"]

MAX_BYTES = 6 * 2**20
MAX_HEAD_BYTES = 256 * 2**10
_MEMBERS, _MEMBERS_PER_FLAG = 2**15, 100
_SHORTEST_MEMBER = len('"":0,')
_CHUNK = 2**16
_INNER = bytes(range(0x80, 0xC0))


class Parts(NamedTuple):
    """The parts of a flag file, as they are written.

    Attributes:
        flags: Each flag by its key, in the order of the file.
        head: The evaluators and the metadata of the set.
    """

    flags: Mapping[str, Raw]
    head: tuple[bytes, bytes]


def split(data: bytes, source: str) -> Parts:
    """Return the parts of a flag file.

    Args:
        data: The file.
        source: Where it comes from, for messages.

    Raises:
        FlagFileError: If it is no JSON, or not an object of flags.
    """
    from msgspec import DecodeError, ValidationError

    if len(data) > MAX_BYTES:
        raise FlagFileError(source, f"{len(data)} bytes; a flag file has at most {MAX_BYTES}")
    _check_text(data, source)
    _check_members(data, source)
    try:
        try:
            top = _decoder()(data)
        except ValidationError:
            top = _slowly(data, source)
    except ValidationError as error:
        raise FlagFileError(source, f"an object of flags by key is expected: {error}") from None
    except (DecodeError, RecursionError) as error:
        raise FlagFileError(source, _where(data, error)) from None
    if "" in top.flags:
        raise FlagFileError(source, "/flags: a flag has an empty key")
    head = bytes(top.evaluators), bytes(top.metadata)
    for name, text in zip(("$evaluators", "metadata"), head, strict=True):
        if len(text) > MAX_HEAD_BYTES:
            reason = f"/{name}: {len(text)} bytes; it has at most {MAX_HEAD_BYTES}"
            raise FlagFileError(source, reason)
    return Parts(top.flags, head)


@cache
def _decoder() -> Callable[[bytes], Any]:
    from msgspec import Raw, defstruct
    from msgspec.json import Decoder

    fields: list[Any] = [
        ("flags", dict[str, Raw]),
        ("evaluators", Raw, Raw(b"{}")),
        ("metadata", Raw, Raw(b"{}")),
    ]
    return Decoder(defstruct("File", fields, rename={"evaluators": "$evaluators"})).decode


def _slowly(text: bytes, source: str) -> Any:
    """Return the same of a file that is not of the usual form, or say what is wrong with it."""
    from msgspec import Raw
    from msgspec.json import decode, encode

    top = decode(text, type=dict[str, Raw])
    if "flags" not in top:
        has = f"; it has {listing(top)}" if top else ""
        raise FlagFileError(source, f"expected an object with a key 'flags'{has}")
    if bytes(top["flags"])[:1] == b"[" and b"#flagdImport" in bytes(top.get("$schema", b"")):
        top["flags"] = Raw(_keyed(top["flags"], source))
    return _decoder()(encode(top))


def _check_members(data: bytes, source: str) -> None:
    """Refuse a file that may have tens of thousands of flags which are none, before each takes its room.

    Counted are the members beside the first of their object. A rule has none of them, however large: it is one bad flag. Ten
    thousand flags have some fifty thousand.
    """
    most = _MEMBERS + _MEMBERS_PER_FLAG * data.count(b'"state"')
    if len(data) // _SHORTEST_MEMBER <= most:
        return
    members = data.count(b":") - data.count(b"{") + data.count(b"{}")
    if members > most:
        reason = f"about {members} members in large objects; a file with as many flags has at most {most}"
        raise FlagFileError(source, reason)


def _check_text(data: bytes, source: str) -> None:
    """Refuse what is no UTF-8: msgspec skips over texts that it is not asked for."""
    if data[:3] == b"\xef\xbb\xbf":
        reason = "line 1, column 1: begins with a byte order mark; save it as UTF-8 without one"
        raise FlagFileError(source, reason)
    if data.isascii():
        return
    from codecs import getincrementaldecoder

    # A text of it all may take four times the room.
    decode, done = getincrementaldecoder("utf-8")().decode, 0
    try:
        for begin in range(0, len(data), _CHUNK):
            decode(data[begin : begin + _CHUNK], begin + _CHUNK >= len(data))
            done = begin + _CHUNK
    except UnicodeDecodeError as error:
        start = data.index(error.object[error.start :], max(0, done - 4))
        raise FlagFileError(source, f"{place(data, start)}: not UTF-8: {error.reason}") from None


def place(data: bytes, offset: int) -> str:
    """Return the line and column of a byte, in words."""
    line = data.count(b"\n", 0, offset) + 1
    begin = data.rfind(b"\n", 0, offset) + 1
    return f"line {line}, column {column(data, begin, offset)}"


def column(data: bytes, begin: int, offset: int) -> int:
    """Return the column of a byte in characters, from 1, of a line that begins at *begin*."""
    n = 1
    for chunk in range(begin, offset, _CHUNK):
        part = data[chunk : min(chunk + _CHUNK, offset)]
        # Every byte begins a character but those of the form 10xxxxxx.
        n += len(part) - (0 if part.isascii() else len(part) - len(part.translate(None, _INNER)))
    return n


def _where(data: bytes, error: Exception) -> str:
    found = re.search(r"\(byte (\d+)\)", str(error))
    if found is not None:
        reason = str(error)[: found.start()].strip()
        return f"{place(data, int(found[1]))}: not JSON that can be read: {reason}"
    if isinstance(error, RecursionError):
        return "not JSON that can be read: nested too deeply"
    return f"{place(data, len(data))}: not JSON that can be read: {error}"


def _keyed(flags: Raw, source: str) -> bytes:
    """Return flags that come as a list with their keys inside as an object, which is what the list stands for."""
    from msgspec import Raw
    from msgspec.json import decode, encode

    made: dict[str, Any] = {}
    for index, raw in enumerate(decode(flags, type=list[Raw])):
        flag = decode(raw)
        key = flag.get("key") if type(flag) is dict else None
        if type(key) is not str or not key:
            raise FlagFileError(source, f"/flags/{index}: a flag of a list has its key in 'key'")
        made[key] = {name: item for name, item in flag.items() if name != "key"}
    return encode(made)
