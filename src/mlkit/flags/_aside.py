"""The flags of a file that cannot be used: the first hundreds are looked at and told one by one, more are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from mlkit._suggest import clip
from mlkit.errors import FlagFileError
from mlkit.flags._body import MAX_FLAG_BYTES, look_closely, too_long
from mlkit.flags._check import RuleError
from mlkit.flags._document import Problem

if TYPE_CHECKING:
    from collections.abc import Container

    from msgspec import Raw

    from mlkit.flags._body import Body

__all__ = ["Aside"]

_MAX, _MAX_BYTES = 2_000, 2**19
# A closer look takes about 40 ns a byte, and 10 us for saying what is wrong; a hint at what was meant takes ten times that.
_ROOM, _EACH = 256 * 2**10, 2**9
_HINTS = 20
_UNREAD = "too many flags before it cannot be used, so it was not looked at"


@final
class Aside:
    """What is set aside while one file is read.

    Args:
        source: Where the file comes from, for messages.
        old: The flags that have a last good definition.
    """

    def __init__(self, source: str, old: Container[str]) -> None:
        self._source, self._old = source, old
        self._room, self._n_unread, self._n_bytes = _ROOM, 0, 0
        self._found: list[Problem] = []
        self.texts: dict[str, bytes] = {}
        self.broken: dict[str, str] = {}

    def look(self, text: bytes, raw: Raw) -> Body:
        """Return what a flag says that was not found good at a glance.

        Args:
            text: The flag, or its beginning if it is too long.
            raw: The whole of it.

        Raises:
            RuleError: If it is no flag that can be used, or there is no time left to look.
        """
        if len(text) > MAX_FLAG_BYTES:
            raise too_long(memoryview(raw).nbytes)
        if self._room <= 0:
            raise RuleError("", _UNREAD)
        return look_closely(text)

    def add(self, key: str, text: bytes, error: RuleError) -> None:
        """Set a flag aside.

        Args:
            key: The flag.
            text: What it says.
            error: Why.

        Raises:
            FlagFileError: If so many cannot be used that the file is not one with a mistake, but another kind of file.
        """
        if len(self.texts) >= _MAX or self._n_bytes > _MAX_BYTES:
            first = self._found[0]
            n = f"more than {len(self.texts) - 1} of its flags cannot be used"
            raise FlagFileError(self._source, f"{n}; the first is {first.pointer}: {first.message}")
        error.under(key)
        error.under("flags")
        pointer, kept = clip(error.pointer, 200), key in self._old
        if self._room > 0:
            message = error.reason if len(self._found) < _HINTS else error.brief
            self._found.append(Problem(key, pointer, message, kept))
        else:
            message = error.brief
            self._n_unread += 1
        self._room -= _EACH
        if len(text) > MAX_FLAG_BYTES:
            text = b"null"
        else:
            self._room -= len(text)
            self._n_bytes += len(text)
        self.texts[key] = text
        if not kept:
            self.broken[key] = f"{pointer}: {message}"

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong, in the order of the file."""
        if not self._n_unread:
            return tuple(self._found)
        message = f"{self._n_unread} more flags cannot be used, or were not looked at for these"
        return (*self._found, Problem(None, "/flags", message, kept=bool(self._old)))
