"""What the processes of a rollout have seen of the candidate, and what that is worth as evidence."""

from __future__ import annotations

import os
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit.errors import ConfigurationError
from mlkit.flags._chronicle import degraded
from mlkit.flags._evidence import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlkit.flags._guard import Guard
    from mlkit.flags._question import Trial
    from mlkit.flags._shared import Folder

__all__ = ["Witness"]

_SYNC_EVERY = 1.0  # seconds between two looks at what other processes saw
_NO_STATE = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError)


@final
class Witness:
    """The evidence of one process, and what it is told of that of others. Thread-safe.

    Args:
        key: The flag.
        guard: What must not happen; None for no evidence at all.
        folder: Where the processes tell each other, if they do.
    """

    def __init__(self, key: str, guard: Guard | None, folder: Folder | None) -> None:
        self._key, self._guard, self._folder = key, guard, folder
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        self._synced, self._pause = current().monotonic(), _SYNC_EVERY
        self._origin = os.urandom(6).hex()
        self._case = None if guard is None else Case(guard, self._origin)

    def add(self, trial: Trial) -> str | None:
        """Take in a request, and return the name of a metric that has seen enough to roll back."""
        with self._lock:
            return None if self._case is None else self._case.add(trial)

    def due(self) -> bool:
        """Return whether it is time to look into the folder."""
        due = current().monotonic() - self._synced >= self._pause
        return self._folder is not None and self._case is not None and due

    def enough(self) -> str | None:
        """Return the name of a metric that has seen enough to roll back, with what others saw."""
        with self._lock:
            return None if self._case is None else self._case.enough()

    def figures(self) -> Mapping[str, float]:
        """Return the figures of each metric."""
        with self._lock:
            return MappingProxyType({} if self._case is None else self._case.figures())

    def reason(self, found: str) -> str:
        """Return why the candidate is rolled back, in words."""
        threshold = self.figures()[f"{found}.threshold"]
        return f"{found} has an e-value of at least {threshold:g}; {self._guard}"

    def state(self) -> dict[str, Any]:
        """Return what this process has seen, as JSON data; empty without a guard."""
        with self._lock:
            return {} if self._case is None else self._case.state()

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what another process has seen.

        Raises:
            ConfigurationError: If it is no such state, or of another guard.
        """
        if not state:
            return
        try:
            self._take_in(state)
        except _NO_STATE as error:
            raise ConfigurationError(
                "Rollout.merge(state)",
                type(state).__name__,
                "the state of an equal guard",
                hint=f"{type(error).__name__}: {error}",
            ) from error

    def share(self, follow: Callable[[Mapping[str, Any] | None], object]) -> bool:
        """Tell the other processes what this one has seen, and take in what they have.

        Args:
            follow: Is told first how far the others say that the rollout is.

        Returns:
            Whether it was done; it is not where another thread is at it, or there is nobody to tell.
        """
        folder = self._folder
        if folder is None or not self._syncing.acquire(blocking=False):
            return False
        try:
            self._synced = current().monotonic()
            follow(folder.state())
            if self._case is None:
                return False
            state = self.state()
            # Written before the others' is read: of two that do so at once, one has seen all that the other has.
            if state["n"]:
                folder.keep_evidence(self._origin, state)
            for news in folder.news(self._origin):
                try:
                    self._take_in(news)
                except _NO_STATE as error:
                    degraded("cannot take in the evidence of another process", self._key, error)
            self._pause = max(_SYNC_EVERY, 20.0 * (current().monotonic() - self._synced))
        except (OSError, ValueError) as error:
            degraded("cannot share its evidence", self._key, error)
        finally:
            self._syncing.release()
        return True

    def after_fork(self) -> None:
        """Make a child's copy usable: with a folder, it is one more process."""
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        if self._case is not None and self._guard is not None and self._folder is not None:
            before, self._origin = self._case.state(), os.urandom(6).hex()
            self._case = Case(self._guard, self._origin)
            self._case.merge(before)
            self._folder.forget()

    def _take_in(self, state: Mapping[str, Any]) -> None:
        with self._lock:
            if self._case is not None:
                self._case.merge(state)
