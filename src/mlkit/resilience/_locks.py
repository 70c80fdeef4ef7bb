"""Locks that a forked child finds free: whoever held one at that moment is a thread of the parent."""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["fork_safe_lock"]

_made: weakref.WeakSet[threading.Lock] = weakref.WeakSet()


def fork_safe_lock() -> threading.Lock:
    """Return a lock that is free in a forked child."""
    lock = threading.Lock()
    _made.add(lock)
    return lock


def _forked() -> None:
    for lock in list(_made):
        lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading` itself does for its own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
