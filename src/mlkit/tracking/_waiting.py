"""What a run that still goes on can say of its delivery: how its sinks stand, and a wait for them that ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from mlkit._clock import current
from mlkit.tracking._delivery import Delivery, delivery_of, merged, settled
from mlkit.tracking._sink import sink_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlkit.tracking._folder import Folder
    from mlkit.tracking._journal import Journal
    from mlkit.tracking._shipper import Shipper

__all__ = ["Waiting"]


@final
class Waiting:
    """Waits for the sinks of a run and of those nested in it. Thread-safe.

    Args:
        folder: The run.
        sinks: Addresses of its sinks.
        shipper: Who delivers.
        journal: What this process writes to the run.
    """

    __slots__ = ("_folder", "_journal", "_keys", "_shipper", "_sinks", "journals")

    journals: list[Journal]

    def __init__(
        self, folder: Folder, sinks: Sequence[str], shipper: Shipper, journal: Journal
    ) -> None:
        self._folder, self._sinks = folder, tuple(sinks)
        self._keys = tuple(sink_key(uri) for uri in sinks)
        self._shipper, self._journal = shipper, journal
        self.journals = [journal]
        """Of this process: the run's own and those of the runs nested in it."""

    def until(self, deadline: float) -> Delivery:
        """Return how things stand once every sink has what was logged, nobody is left to deliver it, or it is time."""
        pause = 0.005
        while not settled(self._folder, self._keys, self._journal.path):
            if current().monotonic() >= deadline or self._shipper.why_idle():
                break
            current().sleep(min(pause, max(0.0, deadline - current().monotonic())))
            pause = min(pause * 1.5, 0.05)
        return self._delivery()

    def _delivery(self) -> Delivery:
        """Say how things stand; a journal that somebody has removed is lost, not delivered."""
        lost = sum(
            journal.lost + (journal.records if journal.removed else 0) for journal in self.journals
        )
        idle = self._shipper.why_idle() if self._sinks else ""
        each = {
            str(folder.path): delivery_of(
                folder,
                self._sinks,
                self._keys,
                lost=lost if folder.path == self._folder.path else 0,
                reason=idle,
            )
            for folder in self._folder.family()
        }
        return merged(each, worst=False)
