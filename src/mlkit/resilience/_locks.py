"""What a forked child finds as if nobody had used it: whoever did at that moment is a thread of the parent."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["CountsThreads", "forget_when_forked", "fork_safe_lock"]


class CountsThreads(Protocol):
    """What counts threads or calls of this process."""

    def forget(self) -> None:
        """Count none, in a child that has none of them."""


_made: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
_counting: weakref.WeakSet[CountsThreads] = weakref.WeakSet()


def fork_safe_lock() -> threading.Lock:
    """Return a lock that is free in a forked child."""
    lock = threading.Lock()
    _made.add(lock)
    return lock


def forget_when_forked(one: CountsThreads) -> None:
    """Let *one* count from nothing in a forked child."""
    _counting.add(one)


def _forked() -> None:
    for lock in list(_made):
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading` itself does for its own
    for one in list(_counting):
        one.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
