"""The lock of a store: one writer at a time, for a limited time, and the name of whoever holds it."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mlkit._clock import SYSTEM
from mlkit.errors import StoreLockedError
from mlkit.models._folder import WRITABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlkit.models._folder import Folder

__all__ = ["locked"]

# The system lets a lock go when the last copy of its descriptor is closed, and a forked child has copies of all.
_OPEN: set[int] = set()
_MAX_HOLDER = 200
_LONGEST_STEP = 0.02


def _let_go() -> None:
    for descriptor in _OPEN:
        with suppress(OSError):
            os.close(descriptor)
    _OPEN.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Hold the lock of a store, whose folder exists, while the block runs.

    Args:
        folder: The store.

    Raises:
        StoreLockedError: If another writer held it for longer than the timeout of the folder.
    """
    from fcntl import LOCK_UN, flock

    path = folder.path("lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with folder.fit(WRITABLE):
        descriptor = os.open(path, flags, 0o666)
    _OPEN.add(descriptor)
    owner = os.getpid()
    try:
        _take(descriptor, path, folder)
        try:
            _sign(descriptor)
            yield
        finally:
            if os.getpid() == owner:
                # Before the descriptor is closed: a child that is forked now may not have closed its copy yet.
                with suppress(OSError):  # closing lets it go, too
                    flock(descriptor, LOCK_UN)
    finally:
        # A child that was forked within the block has closed it, and may have opened something else there.
        if os.getpid() == owner:
            _OPEN.discard(descriptor)
            with suppress(OSError):  # what was done under the lock was done
                os.close(descriptor)


def _take(descriptor: int, path: str, folder: Folder) -> None:
    from fcntl import LOCK_EX, LOCK_NB, flock

    if folder.timeout is None:
        flock(descriptor, LOCK_EX)
        return
    # Whoever holds it lives in real time, whatever a test has made of this context's.
    begin, step = SYSTEM.monotonic(), 0.0005
    while True:
        try:
            flock(descriptor, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            left = begin + folder.timeout - SYSTEM.monotonic()
            if left <= 0:
                holder = _holder(descriptor)
                raise StoreLockedError(path, timeout=folder.timeout, holder=holder) from None
            SYSTEM.sleep(min(step, left))
            step = min(2 * step, _LONGEST_STEP)
        else:
            return


def _sign(descriptor: int) -> None:
    """Say who holds the lock, for whoever waits in vain; a disk that is full must not be in the way of the rest."""
    name = f"process {os.getpid()} on {os.uname().nodename}\n".encode("utf-8", "replace")
    with suppress(OSError):
        os.pwrite(descriptor, name[:_MAX_HOLDER].ljust(_MAX_HOLDER), 0)


def _holder(descriptor: int) -> str:
    with suppress(OSError):
        return os.pread(descriptor, _MAX_HOLDER, 0).decode("utf-8", "replace").strip()
    return ""
