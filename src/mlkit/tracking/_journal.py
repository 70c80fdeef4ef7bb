"""The writer: one append-only file a process, one `write` a call, and no failure that reaches the caller."""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
import weakref
from errno import ENOSPC
from struct import Struct
from typing import TYPE_CHECKING, Any, final
from zlib import crc32

from mlkit._clock import current
from mlkit.errors import ConfigurationError, ParamConflictError, RunClosedError
from mlkit.telemetry import Sample, emit, register
from mlkit.tracking import _frames
from mlkit.tracking._folder import sync_path
from mlkit.tracking._values import as_step, check_key, same

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import SupportsFloat

__all__ = ["Journal"]

_SYNC_EVERY = {"record": 0.0, "group": 0.05}
_MAX_SERIES = 1000
_SEGMENT = 64 << 20  # bytes after which a writer goes on in a new file
_ROWS_AT_ONCE = (
    5000  # of a call with many: what other threads wait for, and what a full disk takes at once
)


@final
class _Series:
    """The keys of one kind of metric call, and when it was made last."""

    __slots__ = ("definition", "epoch", "head", "last", "length", "number", "pack", "step")

    def __init__(self, number: int, keys: tuple[str, ...], prefix: str) -> None:
        self.number = number
        self.pack = Struct(f"<{len(keys)}d").pack
        self.length = _frames.METRICS_FIXED + 8 * len(keys)
        self.definition = _frames.series_frame(number, [prefix + key for key in keys])
        self.epoch = 0  # of the file in which the definition was written last
        self.step = 0
        self.last = 0


@final
class Journal:
    """Appends frames to this process's own file of a run.

    Thread-safe, also against a signal handler that logs. After a fork the child goes on in a file
    of its own. Not picklable. A write that fails is counted in `lost`, never raised.

    Args:
        run_id: The run, for errors and events.
        folder: Where journal files are.
        durability: `"process"`, `"group"` or `"record"`.
        prefix: What is put before the names of metrics.
    """

    records: int
    lost: int

    def __init__(self, run_id: str, folder: Path, durability: str, prefix: str = "") -> None:
        self.run_id = run_id
        self._prefix = prefix
        self.path: Path | None = None
        self.records = 0
        """Records this process wrote to files it can still see."""
        self.lost = 0
        """Records that could not be written."""
        self.params: dict[str, Any] = {}
        """What the run's params are, as far as this process knows."""
        self._folder = folder
        self._sync_every = _SYNC_EVERY.get(durability)
        self._synced = 0.0
        self._lock = threading.RLock()
        self._file = -1
        self._epoch = 0
        self._size = self._opened = 0
        self._last = 0
        self._failing = False
        self._news: list[tuple[str, dict[str, str | float]]] = []
        self._closed = False
        self._series: dict[tuple[str, ...], _Series] = {}
        self._numbers = itertools.count(1)
        _journals.add(self)
        register(self)

    def open(self) -> None:
        """Make the file of this process.

        Raises:
            OSError: If that cannot be done.
        """
        with self._lock:
            if self._file < 0:
                self._open()

    def metrics(self, metrics: Mapping[str, SupportsFloat], step: int) -> None:
        """Append one point per key."""
        try:
            series = self._series[tuple(metrics)]
            values = series.pack(*metrics.values())
        except Exception:  # noqa: BLE001 - the slow path finds out what it is and says it
            series, values = self._look_closely(metrics)
        if type(step) is not int or not -0x8000000000000000 <= step < 0x8000000000000000:
            step = as_step("Run.log_metrics(step=...)", step)
        with self._lock:
            # Points that are equal but for their time must differ in the milliseconds that backends
            # keep.
            now = int(current().time() * 1e6)
            if step == series.step and now < series.last + 1000:
                now = series.last + 1000
            series.step, series.last = step, now
            data = _METRICS_HEAD(series.length, _METRICS, series.number, step, now) + values
            data += _CRC(crc32(data))
            self._place(series, data, len(values) >> 3)
        if self._news:
            self._tell()

    def points(self, keys: tuple[str, ...], rows: Sequence[tuple[int, tuple[float, ...]]]) -> None:
        """Append many points: of each row its step and one value per key, as if logged one row after the other."""
        series = self._series_of(keys)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            with self._lock:
                pieces = []
                for step, values in some:
                    now = int(current().time() * 1e6)
                    if step == series.step and now < series.last + 1000:
                        now = series.last + 1000
                    series.step, series.last = step, now
                    head = _METRICS_HEAD(series.length, _METRICS, series.number, step, now)
                    piece = head + series.pack(*values)
                    pieces += [piece, _CRC(crc32(piece))]
                self._place(series, b"".join(pieces), len(some) * len(keys))
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
            self._sync()
        self._tell()

    def count_lost(self, error: Exception, records: int) -> None:
        """Note records that were lost before they came here."""
        with self._lock:
            self._failed(error, records)
        self._tell()

    def close(self, status: str = "") -> None:
        """Write how the run ended and let go of the file; what is written later raises `RunClosedError`."""
        with self._lock:
            if self._closed:
                return
            if status:
                self._add(_frames.STATUS, {"status": status}, 1)
            if self._sync_every is not None:
                self._sync()
            self._closed = True
            self._series.clear()
            self._drop()
        self._tell()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def samples(self) -> Iterable[Sample]:
        """Return how much was written and lost, for `telemetry.collect`."""
        return (
            Sample("tracking_records_total", (), self.records),
            Sample("tracking_lost_records_total", (), self.lost),
        )

    def _look_closely(self, metrics: Mapping[str, SupportsFloat]) -> tuple[_Series, bytes]:
        """Return what the fast path wanted, or raise what is wrong with the call."""
        from collections.abc import Mapping

        if not isinstance(metrics, Mapping) or not metrics:
            raise ConfigurationError(
                "Run.log_metrics(metrics)", metrics, "a non-empty mapping of names to numbers"
            )
        keys = tuple(check_key("Run.log_metrics(metrics)", key) for key in metrics)
        numbers = []
        for key, value in metrics.items():
            try:
                if isinstance(value, (str, bytes)):
                    raise TypeError("text is no number")
                numbers.append(float(value))
            except Exception as error:
                raise ConfigurationError(
                    f"Run.log_metrics({{{key!r}: ...}})", value, "one number"
                ) from error
        return (series := self._series_of(keys)), series.pack(*numbers)

    def _series_of(self, keys: tuple[str, ...]) -> _Series:
        series = self._series.get(keys)
        if series is None:
            series = _Series(next(self._numbers), keys, self._prefix)
            if series.length > _frames.MAX_PAYLOAD or len(series.definition) > _frames.MAX_PAYLOAD:
                raise ConfigurationError(
                    "Run.log_metrics(metrics)", f"{len(keys)} keys", "at most 16 MiB at once"
                )
            if len(self._series) >= _MAX_SERIES:
                self._series.clear()  # keys that never come again must not fill the memory
            # Threads whose first call this is must share one, or equal points would not stay apart.
            series = self._series.setdefault(keys, series)
        return series

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
        return (self._file >= 0 or self._reopen(records)) and self._append(data, records)

    def _place(self, series: _Series, data: bytes, records: int) -> None:
        """Append points, behind the names of their keys where the file does not have them."""
        if self._file >= 0 or self._reopen(records):
            epoch = self._epoch  # appending may end the file
            if series.epoch == epoch:
                self._append(data, records)
            elif self._append(series.definition + data, records):
                series.epoch = epoch

    def _append(self, data: bytes, records: int) -> bool:
        try:
            written = os.write(self._file, data)
            if written != len(data):
                self._take_back(written)
                raise OSError(ENOSPC, "no space left on device, or the file may not grow")
        except OSError as error:
            self._failed(error, records)
            return False
        self.records += records
        self._size += len(data)
        if self._size >= _SEGMENT:
            self._rotate()
        if self._failing:
            self._failing = False
            self._news.append(("tracking.journal.recovered", {"lost": self.lost}))
        if self._sync_every is not None:
            now = current().monotonic()
            if now - self._synced >= self._sync_every:
                self._sync()
                self._synced = now
        return True

    def _rotate(self) -> None:
        """Go on in a new file; one that cannot be made now is tried again a segment later."""
        if self._sync_every is not None:
            self._sync()  # nobody comes back to the old one
        try:
            self._open()
        except OSError:
            self._size = 0

    def _take_back(self, written: int) -> None:
        """Remove a part of a frame, behind which no reader would find anything."""
        try:
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
        except OSError:
            self._drop()

    def _failed(self, error: Exception, records: int) -> None:
        self.lost += records
        if not self._failing:
            self._failing = True
            fields: dict[str, str | float] = {"error": f"{type(error).__name__}: {error}"}
            self._news.append(("tracking.journal.failed", fields))

    def _tell(self) -> None:
        """Emit what has happened; never under the lock, for a listener may wait for one who logs."""
        while self._news:
            try:
                kind, fields = self._news.pop(0)
            except IndexError:  # another thread was faster
                return
            emit(kind, self.run_id, **fields)

    def _sync(self) -> None:
        if self._file >= 0:
            try:
                _fdatasync(self._file)
            except OSError as error:
                self._failed(error, 0)

    def _reopen(self, records: int) -> bool:
        """Open a file because there is none: after a fork, or when the old one could not be kept whole."""
        if self._closed:
            raise RunClosedError(self.run_id)
        try:
            self._open()
        except OSError as error:
            self._failed(error, records)
            return False
        return True

    def _open(self) -> None:
        # Readers go by the names' order, also when the clock has gone back since the last file.
        opened = max(int(current().time() * 1e6), self._opened + 1)
        stem = f"{opened:016d}-{os.getpid()}-{os.urandom(3).hex()}"
        fresh, path = self._folder / f"{stem}.new", self._folder / f"{stem}.mkj"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            # Nobody may see the file without its lock, or its writer would be taken for dead.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.write(descriptor, _frames.MAGIC) != len(_frames.MAGIC):
                raise OSError(ENOSPC, "no space left on device")
            fresh.rename(path)
            if self._sync_every is not None:
                sync_path(self._folder)
        except OSError:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        self._drop()
        self._file, self.path = descriptor, path
        self._size, self._opened = len(_frames.MAGIC), opened
        self._epoch += 1

    def _drop(self) -> None:
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError as error:
                self._failed(error, 0)

    def _begin_in_child(self) -> None:
        """After a fork: another thread of the parent may have held the lock, and the file is the parent's."""
        self._lock = threading.RLock()
        self._news.clear()
        self.records = self.lost = 0
        self.path = None
        self._drop()


# Bound once: the hot path looks up no attribute of a module.
_METRICS = _frames.METRICS
_METRICS_HEAD = _frames.METRICS_HEAD.pack
_CRC = Struct("<I").pack
_fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
_journals: weakref.WeakSet[Journal] = weakref.WeakSet()


def _after_fork() -> None:
    for journal in list(_journals):
        journal._begin_in_child()  # noqa: SLF001 - the module's own class


os.register_at_fork(after_in_child=_after_fork)
