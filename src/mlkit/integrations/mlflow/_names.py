"""What MLflow takes as a name or a text, and what ours become where it does not."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from mlkit._digest import digest_bytes, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["MAX_PARAM", "MAX_TAG", "artifact_path", "as_text", "chunks", "file_name", "safe_key"]

MAX_PARAM = 6000
MAX_TAG = 5000  # 8000 since MLflow 2.x; older servers and hosted ones cut earlier

_MAX_KEY = 250
_MAX_PER_CALL = 100
_MAX_CALL_BYTES = 500_000
_VALID_KEY = re.compile(r"[/\w.\- :]+")
_ARTIFACTS = "mlkit/artifacts/"
_MAX_PATH = 500
_LOST_IN_URL = re.compile(r"[#?;%:\x00-\x1f\x7f]|(?:^|/) ")
_MARKED_KEY = re.compile(r".*-[0-9a-f]{12}", re.DOTALL)


@lru_cache(4096)  # a batch has a thousand points of a few names
def safe_key(key: str) -> str:
    """Return a name that MLflow takes: *key* itself if it is one, else one that no other key is given."""
    if _is_key(key) and not _MARKED_KEY.fullmatch(key):
        return key
    mark = f"-{short(digest_bytes(key.encode('utf-8', 'surrogatepass')))}"
    body = re.sub(r"[^/\w.\- :]", "_", key)[: _MAX_KEY - len(mark)]
    if _is_key(body + mark):
        return body + mark
    return re.sub(r"[/.]", "_", body) + mark


def _is_key(key: str) -> bool:
    from posixpath import normpath

    plain = _VALID_KEY.fullmatch(key) is not None and len(key) <= _MAX_KEY
    return plain and normpath(key) == key and key != "." and not key.startswith(("/", ".."))


def file_name(key: str) -> str:
    """Return the name of the file that holds what is too long for the param or tag *key*."""
    return re.sub(r"[^\w.\-]", "_", key)[:100] + "-" + short(digest_bytes(key.encode()))


def artifact_path(name: str, *, in_url: bool) -> str:
    """Return the path of an artifact: *name* itself if MLflow keeps it, else one that no other name is given.

    Args:
        name: The artifact's name.
        in_url: Whether it is sent in an address. MLflow's client does not escape it, and what follows a `#` or a `?` would
            not arrive.
    """
    ours = name.startswith(_ARTIFACTS)
    too_long = len(name) > _MAX_PATH or any(len(part.encode()) > 255 for part in name.split("/"))
    if not (ours or too_long or (in_url and _LOST_IN_URL.search(name))):
        return name
    last = re.sub(r"[^\w.\-]", "_", name.rpartition("/")[2])[-60:]
    return f"{_ARTIFACTS}{short(digest_bytes(name.encode()))}/{last.lstrip('.') or '_'}"


def as_text(text: str) -> str:
    """Return *text* as UTF-8 can say it; a lone surrogate becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def chunks(entries: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Yield *entries* in lists that MLflow takes in one call: 100 of them, 1 MB."""
    some: list[tuple[str, str]] = []
    size = 0
    for entry in entries:
        more = 4 * len(entry[1]) + len(entry[0]) + 40
        if some and (len(some) == _MAX_PER_CALL or size + more > _MAX_CALL_BYTES):
            yield some
            some, size = [], 0
        some.append(entry)
        size += more
    if some:
        yield some
