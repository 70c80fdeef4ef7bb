"""A condition variable for one waiting thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Bell"]


@final
class Bell:
    """As `threading.Condition`, for at most one thread that waits; that saves making a lock for each wait.

    Args:
        lock: The lock around what is waited for; by default one of its own.
    """

    __slots__ = ("_lock", "_rope", "_waits")

    def __init__(self, lock: threading.Lock | None = None) -> None:
        self._lock = lock or threading.Lock()
        self._rope = threading.Lock()  # free only from a ring to the end of the wait
        self._rope.acquire()
        self._waits = False

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    def wait(self, timeout: float | None = None) -> bool:
        """Let the lock, which the caller holds, go until somebody rings; return False if *timeout* seconds were over first."""
        self._waits = True
        self._lock.release()
        rang = False
        try:
            rang = self._rope.acquire(timeout=-1 if timeout is None else max(timeout, 0.0))
        finally:
            self._lock.acquire()
            # Rung after the time was over, or while a signal was handled.
            if not rang and not self._waits:
                rang = self._rope.acquire(blocking=False)
            self._waits = False
        return rang

    def notify(self) -> None:
        """Wake who waits, if anybody does; the caller holds the lock."""
        if self._waits:
            self._waits = False
            self._rope.release()

    notify_all = notify
