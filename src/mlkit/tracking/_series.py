"""The keys of a metric call, kept so that the next call with the same keys only packs its numbers."""

from __future__ import annotations

import itertools
from struct import Struct
from typing import TYPE_CHECKING, final

from mlkit.errors import ConfigurationError
from mlkit.tracking import _frames

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Series", "SeriesTable"]

_MAX_SERIES = 1000


@final
class Series:
    """The keys of one kind of metric call, and when it was made last.

    Args:
        number: How its frames name it.
        keys: The names.
        prefix: What is put before each.
    """

    __slots__ = ("definition", "epoch", "last", "length", "number", "pack", "step")

    number: int
    pack: Callable[..., bytes]
    length: int
    definition: bytes
    epoch: int
    step: int
    last: int

    def __init__(self, number: int, keys: tuple[str, ...], prefix: str) -> None:
        self.number = number
        self.pack = Struct(f"<{len(keys)}d").pack
        self.length = _frames.METRICS_FIXED + 8 * len(keys)
        self.definition = _frames.series_frame(number, [prefix + key for key in keys])
        self.epoch = -1
        """The file in which the definition was written last."""
        self.step = 0
        self.last = 0

    def stamp(self, step: int, now: int) -> int:
        """Return the microseconds of a call at *step*.

        Points that are equal but for their time must differ in the milliseconds that backends keep.
        """
        if step == self.step and now < self.last + 1000:
            now = self.last + 1000
        self.step, self.last = step, now
        return now


@final
class SeriesTable:
    """The series of a journal by their keys. Thread-safe.

    Args:
        prefix: What is put before the names of metrics.
    """

    __slots__ = ("_numbers", "_prefix", "known")

    known: dict[tuple[str, ...], Series]

    def __init__(self, prefix: str) -> None:
        self.known = {}
        self._prefix = prefix
        self._numbers = itertools.count(1)

    def of(self, keys: tuple[str, ...]) -> Series:
        """Return the series of checked keys, made if need be.

        Raises:
            ConfigurationError: If they are too many for a frame.
        """
        series = self.known.get(keys)
        if series is None:
            series = Series(next(self._numbers), keys, self._prefix)
            if series.length > _frames.MAX_PAYLOAD or len(series.definition) > _frames.MAX_PAYLOAD:
                raise ConfigurationError(
                    "Run.log_metrics(metrics)", f"{len(keys)} keys", "at most 16 MiB at once"
                )
            if len(self.known) >= _MAX_SERIES:
                self.known.clear()  # keys that never come again must not fill the memory
            # Threads whose first call this is must share one, or equal points would not stay apart.
            series = self.known.setdefault(keys, series)
        return series
