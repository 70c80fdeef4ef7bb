"""Where a flag file comes from, and the thread that looks whether it changed."""

from __future__ import annotations

import os
import threading
import weakref
from contextvars import copy_context
from typing import TYPE_CHECKING, NamedTuple, Protocol, final

from mlkit._clock import current

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["File", "Watcher"]

# Within this many seconds of a change, a second one may leave time stamps and size as they are.
_RACY = 2.0


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

    def __init__(self, path: str | os.PathLike[str], max_bytes: int) -> None:
        from pathlib import Path  # 5 ms that a program without a flag file need not pay

        self.path: Path = Path(path)
        self._max_bytes = max_bytes
        self._seen: _Signature | None = None
        self._settled = False

    def read(self) -> bytes:
        """Return its bytes, one more than allowed if there are more.

        Raises:
            OSError: If it cannot be read.
        """
        self._seen = None
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(self._max_bytes + 1)
        newest = max(status.st_mtime, status.st_ctime)
        self._settled = current().time() - newest > _RACY
        self._seen = _signature(status)
        return data

    def unchanged(self) -> bool:
        """Return whether it surely still has the bytes read last."""
        try:
            return self._settled and _signature(self.path.stat()) == self._seen
        except OSError:
            return False


class _Watched(Protocol):
    def poll(self) -> None:
        """Look once."""
        ...


@final
class Watcher:
    """A daemon thread that calls `poll` of an object every few seconds for as long as the object lives.

    A thread does not survive a fork; the child calls `restart`.

    Args:
        watched: The object; held weakly.
        interval: Seconds between two looks.
    """

    def __init__(self, watched: _Watched, interval: float) -> None:
        self._watched = weakref.ref(watched, self._gone)
        self.interval = interval
        self._begin()

    def _begin(self) -> None:
        self._wake = threading.Condition()
        self._stopped = False
        context = copy_context()
        # A daemon: a program ends without having closed its flags.
        self._thread = threading.Thread(
            target=context.run,
            args=(_watch, self._watched, self._wait),
            name="mlkit-flags",
            daemon=True,
        )
        self._thread.start()

    def _wait(self) -> bool:
        with self._wake:
            if not self._stopped:
                current().wait(self._wake, self.interval)
            return not self._stopped

    def _gone(self, _: object) -> None:
        # Runs wherever the garbage collector does, so it takes no lock; the thread ends after its present wait.
        self._stopped = True

    def close(self) -> None:
        """End the thread; it may be called more than once, and from the thread itself."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def restart(self) -> None:
        """Start anew after a fork, whose child has the object and not the thread."""
        if not self._stopped and self._watched() is not None:
            self._begin()


def _watch(watched: weakref.ref[_Watched], wait: Callable[[], bool]) -> None:
    while wait():
        alive = watched()
        if alive is None:
            return
        alive.poll()
        del alive


def _signature(status: os.stat_result) -> _Signature:
    return _Signature(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )
