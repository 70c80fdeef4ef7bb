"""Where the state of a breaker is kept when several breakers, or several processes, share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

from mlkit._arguments import seconds
from mlkit._clock import current
from mlkit.errors import ConfigurationError
from mlkit.resilience._locks import fork_safe_lock
from mlkit.resilience._machine import STATES, BreakerRecord

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["BreakerStorage", "FileStorage", "MemoryStorage"]

_PATIENCE = 0.25  # seconds; whoever holds the lock needs 0.1 ms


@runtime_checkable
class BreakerStorage(Protocol):
    """A place for the records of breakers, by name: one atomic compare-and-swap.

    Each process counts its own verdicts; what is stored is the state and the leases of the probes, so that all who share
    a storage open together, and admit no more probes together than one would alone.

    Laws: (1) what was never swapped in reads as None; (2) `swap` stores *new* if and only if *old* is what is stored, and
    says so, as one step among all threads and processes; (3) `read` returns what the last successful swap stored, equal
    in every field; (4) names do not affect each other, whatever characters they have. An error of a storage is not an
    error of the call: the breaker says so once and goes on alone until the storage answers again.

    `mlkit.testing.BreakerStorageContract` tests these laws.

    Attributes:
        refresh: For how many seconds a breaker may go by what it last read.
    """

    @property
    def refresh(self) -> float:
        """For how many seconds a breaker may go by what it last read."""
        ...

    def read(self, name: str) -> BreakerRecord | None:
        """Return the record of *name*, or None. Must not block for long."""
        ...

    def swap(self, name: str, old: BreakerRecord | None, new: BreakerRecord) -> bool:
        """Store *new* if *old* is what is stored, and return whether it was."""
        ...


@final
class MemoryStorage:
    """Records in this process, for breakers of one name that should act as one. Thread-safe; a pickled one is empty.

    Examples:
        >>> from mlkit.resilience import Breaker
        >>> storage = MemoryStorage()
        >>> one, other = (Breaker(name="ranker", storage=storage) for _ in range(2))
        >>> one.trip()
        >>> other.acquire() is None, other.state
        (True, 'open')
    """

    __slots__ = ("_lock", "_records")

    def __init__(self) -> None:
        self._lock = fork_safe_lock()
        self._records: dict[str, BreakerRecord] = {}

    @property
    def refresh(self) -> float:
        """0: reading costs nothing."""
        return 0.0

    def read(self, name: str) -> BreakerRecord | None:
        """Return the record of *name*, or None."""
        return self._records.get(name)

    def swap(self, name: str, old: BreakerRecord | None, new: BreakerRecord) -> bool:
        """Store *new* if *old* is what is stored, and return whether it was."""
        with self._lock:
            if self._records.get(name) != old:
                return False
            self._records[name] = new
            return True

    def __reduce__(self) -> tuple[Any, ...]:
        return MemoryStorage, ()

    def __repr__(self) -> str:
        return f"MemoryStorage({sorted(self._records)})"


@final
class FileStorage:
    """Records in a folder, for the processes of one host: one small JSON file a name, and a lock file.

    A file is replaced as a whole, so that a reader needs no lock and a killed process leaves no half of one; the lock is
    the operating system's, which frees it when its holder dies. Times are those of the host's monotonic clock, which its
    processes share; after a restart of the host they are corrected. Not for network file systems or several hosts.

    Thread-safe, fork-safe and picklable: it holds nothing but its settings.

    Args:
        folder: Where; made if it is not there.
        refresh: For how many seconds a breaker may go by what it last read, at least 0: how late one process may notice
            that another has opened it. A look costs about 20 us.

    Raises:
        ConfigurationError: If *refresh* is out of range, or the platform has no `fcntl` (Windows).

    Examples:
        >>> import tempfile
        >>> from mlkit.resilience import Breaker
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Breaker(name="ranker", storage=FileStorage(folder)).trip()
        ...     Breaker(name="ranker", storage=FileStorage(folder)).acquire() is None
        True
    """

    __slots__ = ("_folder", "_refresh")

    def __init__(self, folder: str | PathLike[str], *, refresh: float = 0.1) -> None:
        from pathlib import Path

        try:
            import fcntl  # noqa: F401 - whether it is there
        except ImportError:
            raise ConfigurationError(
                "FileStorage(folder)", folder, "a platform with fcntl: Linux, macOS or another Unix"
            ) from None
        try:
            self._folder = Path(folder)
        except TypeError:
            raise ConfigurationError(
                "FileStorage(folder)", folder, "the path of a folder"
            ) from None
        self._refresh = seconds("FileStorage(refresh=...)", refresh, zero=True)

    @property
    def refresh(self) -> float:
        """For how many seconds a breaker may go by what it last read."""
        return self._refresh

    def read(self, name: str) -> BreakerRecord | None:
        """Return the record of *name*, or None if there is none, or the file is not one of ours."""
        import json

        try:
            fields = json.loads(self._path(name).read_bytes())
            leases = tuple((int(n), float(end)) for n, end in fields.pop("leases"))
            record = BreakerRecord(**fields, leases=leases)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None  # damaged from outside, or cut off by a power failure: the next swap replaces it
        return record if _is_sound(record) else None

    def swap(self, name: str, old: BreakerRecord | None, new: BreakerRecord) -> bool:
        """Store *new* if *old* is what is stored, and return whether it was."""
        import json

        path = self._path(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: a descriptor that a fork has inherited would share its lock.
        with path.with_suffix(".lock").open("ab") as lock:
            self._take(lock.fileno())
            if self.read(name) != old:
                return False
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(new._asdict()))
            fresh.replace(path)
            return True

    def _take(self, lock: int) -> None:
        """Take the lock, or raise if somebody, such as a process that was stopped, does not let go of it."""
        from fcntl import LOCK_EX, LOCK_NB, flock

        clock = current()
        until = clock.monotonic() + _PATIENCE
        while True:
            try:
                flock(lock, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                if clock.monotonic() >= until:
                    raise
                clock.sleep(0.001)
            else:
                return

    def _path(self, name: str) -> Any:
        from mlkit._digest import digest_bytes

        digest = digest_bytes(name.encode("utf-8", "surrogatepass")).rpartition(":")[2]
        return self._folder / f"breaker-{digest[:32]}.json"

    def __repr__(self) -> str:
        return f"FileStorage({str(self._folder)!r}, refresh={self._refresh:g})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _file_storage, (str(self._folder), self._refresh)


def _is_sound(record: BreakerRecord) -> bool:
    counts = record.version, record.era, record.serial, record.settled
    verdicts = record.ok, record.bad, record.slow
    if not all(type(n) is int for n in (*counts, *verdicts)):
        return False
    return type(record.until) in {int, float} and record.state in STATES


def _file_storage(folder: str, refresh: float) -> FileStorage:
    return FileStorage(folder, refresh=refresh)
