"""The thread that looks, again and again, whether a source changed."""

from __future__ import annotations

import os
import threading
import weakref
from contextvars import copy_context
from typing import TYPE_CHECKING, Protocol, final

from mlkit._clock import current

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Watcher"]


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
        spread: By which share of it a pause is shorter or longer, at most.
    """

    interval: float

    def __init__(self, watched: _Watched, interval: float, spread: float = 0.0) -> None:
        self._watched = weakref.ref(watched, self._gone)
        self.interval, self._spread = interval, spread
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
        pause = self.interval
        if self._spread:
            # From the system, not from a seed: forked workers, and hosts started as one, must differ.
            chance = int.from_bytes(os.urandom(4), "big") / 2**32
            pause *= 1 + self._spread * (2 * chance - 1)
        with self._wake:
            if not self._stopped:
                current().wait(self._wake, pause)
            return not self._stopped

    def _gone(self, _: object) -> None:
        # Runs wherever the garbage collector does, so it takes no lock; the thread ends after its present wait.
        self._stopped = True

    def close(self) -> None:
        """End the thread; it may be called more than once, and from the thread itself."""
        self._stopped = True
        for _ in range(100):
            with self._wake:
                # Again and again: virtual time waits in short slices, and between two of them nobody is notified.
                self._wake.notify_all()
            if self._thread is threading.current_thread():
                return
            self._thread.join(0.05)
            if not self._thread.is_alive():
                return

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
