"""One sink of one run: from the journal to the backend, with what happens when the backend does not play along."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from contextlib import contextmanager, suppress
from errno import ENOSPC
from typing import TYPE_CHECKING, Any, final

from mlkit import telemetry
from mlkit._clock import current
from mlkit._suggest import clip
from mlkit.errors import SinkUnavailableError
from mlkit.tracking._delivery import Cursor, given_up
from mlkit.tracking._records import Record, Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mlkit.tracking._folder import Folder
    from mlkit.tracking._sink import Sink

__all__ = ["Lane"]

_POLL = 0.1
_LONGEST_BACKOFF = 5.0
_LONGEST_WISH = 60.0  # a backend that asks for more is asked again nevertheless
_TRANSIENT = (SinkUnavailableError, OSError)


class _GivenUpError(Exception):
    """The lane was told to stop, or nobody is left to wait for."""


@final
class Lane:
    """Delivers one run to one sink.

    `run` is to be called once, from any one thread; `stop` from any other.

    Args:
        folder: The run.
        key: The sink's name in the folder.
        make: Makes the sink; called in the lane's thread.
        once: Whether to end when there is nothing left to read, instead of when nobody writes any
            more.
        patience: Seconds for which a backend may be away once nobody writes any more.
    """

    def __init__(
        self,
        folder: Folder,
        key: str,
        make: Callable[[], Sink],
        *,
        once: bool = False,
        patience: float = 30.0,
    ) -> None:
        self.folder, self.key = folder, key
        self._make, self._once, self._patience = make, once, patience
        self._place = folder.sinks / key
        self._given_up = given_up(folder, key)
        self._wake = threading.Condition()
        self._stopped = False
        self._down_since: float | None = None
        self._sink: Sink | None = None
        self._opened = False
        self._tails: dict[str, Tail] = {}
        self._dead: set[str] = set()
        self._jitter = int.from_bytes(key.encode()[-2:], "big") / 65536

    def stop(self) -> None:
        """End soon; what is not delivered stays in the journal."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()

    def run(self) -> None:
        """Deliver until there is nothing more to come, `stop` is called, or the backend stays away for too long."""
        try:
            self._place.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._cursor = Cursor(self._place)
                self._dead = self._read_dead()
                self._run_alone()
        except _GivenUpError:
            return
        except Exception as error:  # noqa: BLE001 - the run's folder is gone, say; nobody is there to raise to
            telemetry.emit("tracking.shipper.failed", self.key, error=type(error).__name__)

    def _run_alone(self) -> None:
        self._given_up.unlink(missing_ok=True)
        try:
            self._deliver_all()
        except _GivenUpError:
            self._tell_waiting()
        except Exception as error:  # noqa: BLE001 - the backend refuses the run: say so where people look
            self._note(error)
            self._tell_waiting()
        finally:
            if self._sink is not None:
                self._sink.close()

    def _deliver_all(self) -> None:
        while True:
            self._end_if_stopped()
            # Asked before reading: who dies between the two has written before the reading.
            alive = self.folder.alive()
            if self._pump():
                continue
            if not alive:
                self._tell_killed()
            if not alive or self._once:
                return
            self._pause(_POLL)

    def _end_if_stopped(self) -> None:
        with self._wake:
            if self._stopped:
                raise _GivenUpError

    def _pump(self) -> bool:
        """Deliver one batch, and return whether there was one."""
        batch, places = self._next_batch(self._max_records())
        if not batch:
            return False
        self._deliver(batch)
        self._cursor.places |= places
        for record in batch:
            if record.kind == "status":
                self._cursor.status = str(record.value)
        self._cursor.dead = len(self._dead)
        self._insist(self._save)
        return True

    def _next_batch(self, limit: int) -> tuple[list[Record], dict[str, tuple[int, int]]]:
        """Return the next records, and where the cursor stands in each file behind them.

        A file is read to its end before the next, for that may be the same writer's: of two tags the
        later one is to be sent later.
        """
        batch: list[Record] = []
        places: dict[str, tuple[int, int]] = {}
        for path in self.folder.writers():
            start, before = self._cursor.places.get(path.name, (0, 0))
            tail = self._tails.get(path.name)
            if tail is None:
                tail = self._tails[path.name] = Tail(path, self.folder.artifacts, start)
            found = tail.read(limit - len(batch))
            if batch and len(batch) + len(found) > limit:
                tail.offset = start  # one call's records stay together: they are the next batch's
                break
            if found:
                batch += found
                places[path.name] = (tail.offset, before + len(found))
            if tail.more:
                break
        return batch, places

    def _tell_killed(self) -> None:
        """Tell the sink of a run whose writers have died without a word."""
        if self._cursor.status == "RUNNING":
            self._deliver([Record("killed", "status", "status", "KILLED", time=current().time())])
            self._cursor.status = "KILLED"
            self._insist(self._save)

    def _max_records(self) -> int:
        if self._sink is None:
            self._sink = self._make()
        return max(1, self._sink.max_records)

    def _deliver(self, records: Sequence[Record]) -> None:
        sink = self._sink
        if sink is None:
            self._max_records()
            sink = self._sink
        if sink is None:
            return
        if not self._opened:
            info, _ = self.folder.load()
            self._insist(lambda: sink.open(info))
            self._opened = True
        todo = [records]
        while todo:
            batch = todo.pop()
            try:
                self._insist(lambda batch=batch: sink.send(batch))  # type: ignore[misc]
            except _GivenUpError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a backend raises must not stop the others
                if len(batch) == 1:
                    self._set_aside(batch[0], error)
                else:
                    middle = len(batch) // 2
                    todo += [batch[middle:], batch[:middle]]

    def _insist(self, call: Callable[[], None]) -> None:
        """Do *call*, again and again while the backend is away.

        Raises:
            _GivenUpError: If it stays away for too long.
        """
        import tenacity

        tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TRANSIENT),
            wait=self._backoff,
            sleep=self._pause,
            before_sleep=self._away,
        )(call)
        if self._down_since is not None:
            self._down_since = None
            self._cursor.error = ""
            telemetry.emit("tracking.sink.recovered", self.key)

    def _backoff(self, state: Any) -> float:
        # Spread by the sink's name, not by chance: the user's generators are not ours to draw from.
        delay: float = min(_LONGEST_BACKOFF, 0.1 * 2 ** min(state.attempt_number, 10))
        wish = getattr(state.outcome.exception(), "retry_after", 0.0)
        return max(delay * (0.75 + self._jitter / 2), min(wish, _LONGEST_WISH))

    def _away(self, state: Any) -> None:
        """Before a retry: note the outage, and give up if nobody is left to wait for."""
        error = state.outcome.exception()
        now = current().monotonic()
        if self._down_since is None:
            self._down_since = now
            self._note(error)
            telemetry.emit("tracking.sink.unavailable", self.key, error=type(error).__name__)
        waited = now - self._down_since
        if waited >= self._patience and (self._once or not self.folder.alive()):
            raise _GivenUpError

    def _tell_waiting(self) -> None:
        """Tell those who wait for the sink that nobody works on it any more; whoever comes next takes it back."""
        with suppress(OSError):
            self._given_up.touch()

    def _note(self, error: BaseException) -> None:
        self._cursor.error = clip(f"{type(error).__name__}: {error}", 300)
        with suppress(OSError):  # a disk that is full, say; it is said again with the next batch
            self._cursor.save()

    def _save(self) -> None:
        """Write down how far the sink is.

        Raises:
            OSError: If that is not possible now.
            _GivenUpError: If the run's folder is gone.
        """
        try:
            self._cursor.save()
        except FileNotFoundError as error:
            telemetry.emit("tracking.shipper.failed", self.key, error=type(error).__name__)
            raise _GivenUpError from error

    def _pause(self, seconds: float) -> None:
        with self._wake:
            if not self._stopped:
                current().wait(self._wake, seconds)
            if self._stopped:
                raise _GivenUpError

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lane's lock, so that no other process or thread delivers the same."""
        descriptor = os.open(self._place / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._pause(_POLL)
            _locks.add(descriptor)
            yield
        finally:
            _locks.discard(descriptor)
            os.close(descriptor)

    def _read_dead(self) -> set[str]:
        try:
            lines = (self._place / "dead.jsonl").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return set()
        return {line.partition('"id": "')[2].partition('"')[0] for line in lines}

    def _set_aside(self, record: Record, error: Exception) -> None:
        if record.id in self._dead:
            return
        reason = clip(f"{type(error).__name__}: {error}", 500)
        line = json.dumps({"id": record.id, **record._asdict(), "reason": reason}) + "\n"
        self._insist(lambda: _append(self._place / "dead.jsonl", line.encode()))
        self._dead.add(record.id)
        telemetry.emit("tracking.record.dead_lettered", self.key, kind=record.kind)


def _append(path: Path, line: bytes) -> None:
    """Append a line, all of it or nothing.

    Raises:
        OSError: If that is not possible now.
    """
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):
                raise OSError(ENOSPC, "no space left on device")
        except OSError:
            file.truncate(before)
            raise


# A forked child must not hold the locks of its parent's lanes when the parent is gone.
_locks: set[int] = set()


def _after_fork() -> None:
    while _locks:
        os.close(_locks.pop())


os.register_at_fork(after_in_child=_after_fork)
