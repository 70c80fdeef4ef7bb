"""Time limits of coroutines: one timer of the event loop for all that have the same limit."""

from __future__ import annotations

import asyncio  # noqa: TID253 - nobody imports this module before something async is guarded
import weakref
from contextvars import Context
from typing import Any, Protocol, final

from mlkit.resilience._layout import laid_out
from mlkit.resilience._locks import fork_safe_lock

__all__ = ["Clockwork", "Entry", "Timers", "stop"]

_TIME = asyncio.BaseEventLoop.time
_NOBODYS = Context()  # a timer must not keep the context of whoever happened to arm it


class Entry(Protocol):
    """Something that waits for a moment."""

    when: float
    """The moment, in the time of the loop."""
    handle: asyncio.TimerHandle | None
    """Its own timer, if it has one."""

    def due(self) -> None:
        """Take note that the moment has come. Called by the event loop."""
        ...


@final
class Timers:
    """Entries of one event loop that all wait equally long, so that they are due in the order in which they came.

    One timer of the loop is armed for the oldest. When that leaves early, which is nearly always, nothing is done: the
    timer fires at its time, finds the then oldest, and is armed again for it. Belongs to the thread of the loop.
    """

    __slots__ = ("armed", "is_monotonic", "limit", "loop", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        self.loop = weakref.ref(loop)
        self.limit = limit
        # Whether a reading of that clock is one of the loop's, as it need not be if the loop is in another language.
        self.is_monotonic = getattr(loop.time, "__func__", None) is _TIME
        self.waiting: dict[Entry, None] = {}
        self.armed = False

    def arm(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        """Let the loop look at the oldest entry at *when*."""
        self.armed = True
        loop.call_at(when, self._fired, context=_NOBODYS)

    def _fired(self) -> None:
        loop = self.loop()
        self.armed = False
        if loop is None:
            return
        now = loop.time()
        due = []
        for entry in self.waiting:
            if entry.when > now:
                self.arm(loop, entry.when)
                break
            due.append(entry)
        for entry in due:
            del self.waiting[entry]
        for entry in due:
            entry.due()


@final
class Clockwork:
    """The timers of one kind of limit of one plan: for each event loop its own. Thread-safe.

    Args:
        usual: Seconds; an entry with another limit gets a timer of its own. None if the limit is usual whatever it is.
    """

    __slots__ = ("_known", "_last", "_lock", "_usual")

    def __init__(self, usual: float | None = None) -> None:
        self._usual = usual
        self._known: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Timers] = (
            weakref.WeakKeyDictionary()
        )
        self._last: Timers | None = None
        self._lock = fork_safe_lock()

    def start(
        self,
        entry: Entry,
        limit: float,
        loop: asyncio.AbstractEventLoop,
        now: float | None = None,
    ) -> Timers | None:
        """Call `entry.due()` in *limit* seconds, in the running *loop*; return what `stop` needs. *now* as in `begin`."""
        timers = self._last
        if timers is None or timers.limit != limit or timers.loop() is not loop:
            timers = self._of(loop, limit)
        if timers is None:
            entry.handle = loop.call_at(loop.time() + limit, entry.due, context=_NOBODYS)
            return None
        if now is None or not timers.is_monotonic:
            now = loop.time()
        entry.when = when = now + limit
        timers.waiting[entry] = None
        if not timers.armed:
            timers.arm(loop, when)
        return timers

    def begin(self, limit: float, now: float | None = None) -> Scope:
        """Cancel the current task in *limit* seconds, unless `Scope.end` is called before.

        Args:
            limit: Seconds.
            now: What the monotonic clock of the system has just shown, if it was looked at.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
        scope = Scope()
        scope.task, scope.cancelling = task, task.cancelling()
        # Asking asyncio for the running loop would be a system call.
        scope.timers = self.start(scope, limit, task.get_loop(), now)
        return scope

    def _of(self, loop: asyncio.AbstractEventLoop, limit: float) -> Timers | None:
        """Return the timers of *loop*, or None for an entry that gets one of its own."""
        # One that outlives its entry is a burden if it serves nobody else; and virtual time, which is another function of
        # Python, would jump to it.
        usual = limit == self._usual or self._usual is None
        if not usual or getattr(loop.time, "__func__", _TIME) is not _TIME:
            return None
        with self._lock:
            timers = self._known.get(loop)
            if timers is None or timers.limit != limit:  # those of another limit fire to their end
                timers = self._known[loop] = Timers(loop, limit)
            self._last = timers
            return timers


def stop(timers: Timers | None, entry: Entry) -> None:
    """Forget *entry*, which `Clockwork.start` returned *timers* for."""
    if timers is not None:
        timers.waiting.pop(entry, None)
    elif entry.handle is not None:
        entry.handle.cancel()
        entry.handle = None  # it refers to the entry


@final
@laid_out
class Scope:
    """What runs between `Clockwork.begin` and `end` is cancelled after so many seconds.

    Told apart from a cancellation from outside as `asyncio.timeout` does it: by the number of requests that the task
    has not answered yet. If both came, the one from outside goes on.
    """

    task: asyncio.Task[Any]
    cancelling: int
    when: float
    handle: asyncio.TimerHandle | None = None
    timers: Timers | None
    _expired: bool = False
    _answered: bool = False

    def due(self) -> None:
        """Cancel what runs inside."""
        self._expired = True
        self.task.cancel()

    def cancelled(self) -> bool:
        """Whether a cancellation that comes out of what runs inside is this one, and no other came. Asked once."""
        if not self._expired:
            return False
        self._answered = True
        return self.task.uncancel() <= self.cancelling

    def end(self) -> None:
        """Cancel nothing from now on."""
        if not self._expired:
            stop(self.timers, self)
            return
        if not self._answered:
            self.task.uncancel()
        del self.task  # it keeps the error that is raised, whose frames lead back to this
