"""What a run says, put into frames in order: the names of keys before their numbers, and the time of each call."""

from __future__ import annotations

import os
import threading
import weakref
from struct import Struct
from typing import TYPE_CHECKING, Any, final
from zlib import crc32

from mlkit._clock import current
from mlkit.errors import ConfigurationError, ParamConflictError, RunClosedError
from mlkit.telemetry import Sample, emit, register
from mlkit.tracking import _frames
from mlkit.tracking._series import SeriesTable
from mlkit.tracking._values import as_step, numbers_of, same
from mlkit.tracking._writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import SupportsFloat

    from mlkit.tracking._series import Series

__all__ = ["Journal"]

# Of a call with many points: what other threads wait for, and what a full disk takes at once.
_ROWS_AT_ONCE = 5000


@final
class Journal:
    """Keeps what a run says in this process's own file of the run.

    Thread-safe, also against a signal handler that logs. After a fork the child goes on in a file
    of its own. Not picklable. A write that fails is counted in `lost`, never raised.

    Args:
        run_id: The run, for errors and events.
        folder: Where journal files are.
        durability: `"process"`, `"group"` or `"record"`.
        prefix: What is put before the names of metrics.
    """

    run_id: str
    params: dict[str, Any]
    closed: bool

    def __init__(self, run_id: str, folder: Path, durability: str, prefix: str = "") -> None:
        self.run_id = run_id
        self.params = {}
        """What the run's params are, as far as this process knows."""
        self.closed = False
        """Whether `close` was called."""
        self._writer = Writer(folder, durability)
        self._news = self._writer.news
        self._table = SeriesTable(prefix)
        self._known = self._table.known
        self._lock = threading.RLock()
        self._last = 0
        _journals.add(self)
        register(self)

    @property
    def path(self) -> Path | None:
        """The file of this process."""
        return self._writer.path

    @property
    def records(self) -> int:
        """Records this process wrote to files it can still see."""
        return self._writer.records

    @property
    def lost(self) -> int:
        """Records that could not be written."""
        return self._writer.lost

    @property
    def removed(self) -> bool:
        """Whether somebody has removed the file of this process."""
        path = self._writer.path
        return path is not None and (self._writer.removed or not path.exists())

    @property
    def step(self) -> int | None:
        """The step of the call that was the last by its time, if this process has logged any."""
        return max(
            ((series.last, series.step) for series in list(self._known.values())),
            default=(0, None),
        )[1]

    def open(self) -> None:
        """Make the file of this process.

        Raises:
            OSError: If that cannot be done.
        """
        with self._lock:
            if not self._writer.epoch:
                self._writer.open()

    def metrics(self, metrics: Mapping[str, SupportsFloat], step: int) -> None:
        """Append one point per key."""
        try:
            series = self._known[tuple(metrics)]
            values = series.pack(*metrics.values())
        except Exception:  # noqa: BLE001 - the slow path finds out what it is and says it
            keys, numbers = numbers_of("Run.log_metrics", metrics)
            series = self._table.of(keys)
            values = series.pack(*numbers)
        if type(step) is not int or not -0x8000000000000000 <= step < 0x8000000000000000:
            step = as_step("Run.log_metrics(step=...)", step)
        with self._lock:
            now = series.stamp(step, int(current().time() * 1e6))
            data = _METRICS_HEAD(series.length, _METRICS, series.number, step, now) + values
            data += _CRC(crc32(data))
            if series.epoch == self._writer.epoch:
                self._writer.append(data, len(values) >> 3)
            else:
                self._introduce(series, data, len(values) >> 3)
        if self._news:
            self._tell()

    def points(
        self,
        keys: tuple[str, ...],
        rows: Sequence[tuple[int, tuple[float, ...]]],
        times: Sequence[int] | None = None,
    ) -> None:
        """Append many points: of each row its step and one value per key, as if logged one row after the other.

        Args:
            keys: The names of the metrics.
            rows: The points.
            times: When each row was, in microseconds; kept as it is.
        """
        series = self._table.of(keys)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            with self._lock:
                pieces = []
                for index, (step, values) in enumerate(some, start):
                    if times is None:
                        now = series.stamp(step, int(current().time() * 1e6))
                    else:
                        series.step = step
                        now = series.last = times[index]
                    head = _METRICS_HEAD(series.length, _METRICS, series.number, step, now)
                    piece = head + series.pack(*values)
                    pieces += [piece, _CRC(crc32(piece))]
                self._introduce(series, b"".join(pieces), len(some) * len(keys))
        self._tell()

    def add(self, kind: int, content: dict[str, Any], records: int) -> bool:
        """Append a frame of JSON, and return whether it was written.

        Raises:
            ConfigurationError: If it is longer than a frame may be.
        """
        with self._lock:
            written = self._add(kind, content, records)
        self._tell()
        return written

    def add_params(self, flat: dict[str, Any]) -> None:
        """Append those of *flat* that are new.

        Raises:
            ParamConflictError: If one has another value already; then none is appended.
        """
        fresh = {}
        with self._lock:
            for key, value in flat.items():
                if key not in self.params:
                    fresh[key] = value
                elif not same(self.params[key], value):
                    raise ParamConflictError(key, self.params[key], value)
            if fresh and self._add(_frames.PARAMS, fresh, len(fresh)):
                self.params.update(fresh)
        self._tell()

    def sync(self) -> None:
        """Bring to the disk what has been written, whatever the durability."""
        with self._lock:
            self._writer.sync()
        self._tell()

    def count_lost(self, error: Exception, records: int) -> None:
        """Note records that were lost before they came here."""
        with self._lock:
            self._writer.failed(error, records)
        self._tell()

    def close(self, status: str = "") -> None:
        """Write how the run ended and let go of the file; what is written later raises `RunClosedError`."""
        with self._lock:
            if self.closed:
                return
            if status:
                self._add(_frames.STATUS, {"status": status}, 1)
            self.closed = True
            self._known.clear()
            self._writer.close()
        self._tell()

    def samples(self) -> Iterable[Sample]:
        """Return how much was written and lost, for `telemetry.collect`."""
        return (
            Sample("tracking_records_total", (), self.records),
            Sample("tracking_lost_records_total", (), self.lost),
        )

    def _add(self, kind: int, content: dict[str, Any], records: int) -> bool:
        # The last of two tags is the later one, also when the clock has gone back between them.
        now = self._last = max(int(current().time() * 1e6), self._last + 1)
        data = _frames.json_frame(kind, now, content)
        if len(data) > _frames.MAX_PAYLOAD:
            raise ConfigurationError(
                "Run.log_params(...) or Run.set_tags(...)",
                f"{len(data)} bytes",
                "at most 16 MiB",
                hint="log it as an artifact",
            )
        return self._is_ready(records) and self._writer.append(data, records)

    def _introduce(self, series: Series, data: bytes, records: int) -> None:
        """Append points, behind the names of their keys where the file does not have them."""
        if self._is_ready(records):
            epoch = self._writer.epoch  # appending may end the file
            names = b"" if series.epoch == epoch else series.definition
            if self._writer.append(names + data, records):
                series.epoch = epoch

    def _is_ready(self, records: int) -> bool:
        """Return whether there is a file; there is none after a fork, or when the old one could not be kept whole."""
        if self.closed:
            raise RunClosedError(self.run_id)
        return self._writer.ready(records)

    def _tell(self) -> None:
        """Emit what has happened; never under the lock, for a listener may wait for one who logs."""
        while self._news:
            try:
                kind, fields = self._news.pop(0)
            except IndexError:  # another thread was faster
                return
            emit(kind, self.run_id, **fields)

    def _begin_in_child(self) -> None:
        """After a fork: another thread of the parent may have held the lock, and the file is the parent's."""
        self._lock = threading.RLock()
        self._writer.begin_in_child()


# Bound once: the hot path looks up no attribute of a module.
_METRICS = _frames.METRICS
_METRICS_HEAD = _frames.METRICS_HEAD.pack
_CRC = Struct("<I").pack
_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork() -> None:
    for journal in list(_journals):
        journal._begin_in_child()  # noqa: SLF001 - the module's own class


os.register_at_fork(after_in_child=_after_fork)
