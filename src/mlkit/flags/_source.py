"""Where a flag document comes from."""

from __future__ import annotations

import os
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final

from mlkit._clock import current
from mlkit.errors import FlagFileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["File", "Reading", "Source"]

# Within this many seconds of a change, a second one may leave time stamps and size as they are.
_RACY = 2.0


class Reading(NamedTuple):
    """What a look at a source gave.

    Attributes:
        data: The document, one byte more than allowed if it is larger; None if it is the one that the mark is of.
        mark: What tells this state of the source from others; None if nothing does.
    """

    data: bytes | None
    mark: Any


class Source(Protocol):
    """Where a document is read, again and again.

    Laws: `unchanged(mark)` is true only if a look would give the bytes that the mark is of; what `prepare` returns may
    be called from any thread, one at a time, and fails with `FlagFileError` alone. It pickles.

    Attributes:
        name: Where it is, for messages: without secrets.
        spread: By which share an interval between two looks varies, so that many processes do not come at once.
    """

    name: str
    spread: float

    def unchanged(self, mark: Any) -> bool:
        """Return at once whether the source surely has the bytes that *mark* is of."""
        ...

    def prepare(self) -> Callable[[Any], Reading]:
        """Return a function that looks, given the mark of the last reading; code of the user runs here, if any."""
        ...


class _Signature(NamedTuple):
    """What `stat` says of a file. Of the path, so that a swapped symbolic link (Kubernetes) is another file."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int


@final
class File:
    """A file on disk.

    Args:
        path: Where it is.
        max_bytes: Larger files are not read.
    """

    name: str
    path: Path
    spread: float = 0.0

    def __init__(self, path: str | os.PathLike[str], max_bytes: int) -> None:
        from pathlib import Path  # 5 ms that a program without a flag file need not pay

        self.path = Path(path)
        self.name = os.fspath(path)
        self._max_bytes = max_bytes

    def prepare(self) -> Callable[[Any], Reading]:
        """Return the function that reads it."""
        return self._read

    def _read(self, mark: Any) -> Reading:
        del mark  # whoever asks for a reading wants the bytes
        try:
            with open(self.path, "rb", opener=_at_once) as file:
                before = os.fstat(file.fileno())
                if not S_ISREG(before.st_mode):
                    raise FlagFileError(self.name, "cannot be read: it is no regular file")
                if before.st_size > self._max_bytes:
                    reason = f"{before.st_size} bytes; a flag file has at most {self._max_bytes}"
                    raise FlagFileError(self.name, reason)
                # As much as there is: `read` sets aside all the room that it is allowed.
                data = file.read(before.st_size + 1)
                if len(data) > before.st_size:  # it grows, or has no size
                    data += file.read(self._max_bytes + 1 - len(data))
                after = os.fstat(file.fileno())
        except OSError as error:
            reason = f"cannot be read: {error.strerror or type(error).__name__}"
            raise FlagFileError(self.name, reason) from error
        # Written to meanwhile, or so lately that it may be again within one tick: look at the bytes the next time.
        newest = max(after.st_mtime, after.st_ctime)
        settled = _signature(before) == _signature(after) and current().time() - newest > _RACY
        return Reading(data, _signature(after) if settled else None)

    def unchanged(self, mark: Any) -> bool:
        """Return whether it surely still has the bytes that *mark* is of."""
        try:
            return mark is not None and _signature(self.path.stat()) == mark
        except OSError:
            return False

    def __reduce__(self) -> tuple[Any, ...]:
        return File, (self.name, self._max_bytes)


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe in place of the file must not hold up whoever looks."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _signature(status: os.stat_result) -> _Signature:
    return _Signature(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )
