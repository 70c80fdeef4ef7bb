"""How long attempts take: what a hedge waits for."""

from __future__ import annotations

from collections import deque
from typing import final

__all__ = ["Latencies"]

_KEPT, _EVERY = 256, 32


@final
class Latencies:
    """How long the last attempts took, and a quantile of it.

    An attempt that lost its race is noted with the time it was given, which is at least the quantile: what it would have
    taken makes no difference to where that lies.

    Thread-safe: one atomic append each. The quantile is looked up anew after every 32nd, which costs about 10 us.
    """

    __slots__ = ("_kept", "_noted", "_share", "value")

    def __init__(self, share: float) -> None:
        self._kept: deque[float] = deque(maxlen=_KEPT)
        self._noted = 0
        self._share = share
        self.value: float | None = None
        """The quantile, in seconds; None as long as fewer than 32 were noted."""

    def note(self, duration: float) -> None:
        """Take the seconds that one attempt took."""
        self._kept.append(duration)
        self._noted += 1  # one lost between threads only delays the next look
        if self._noted % _EVERY == 0:
            ordered = sorted(self._kept.copy())
            self.value = ordered[min(len(ordered) - 1, int(self._share * len(ordered)))]
