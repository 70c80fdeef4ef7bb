"""Time limits of coroutines: one timer of the event loop for all that have the same limit."""

from __future__ import annotations

import asyncio  # noqa: TID253 - nobody imports this module before something async is guarded
import weakref
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol, final

from mlkit._clock import SYSTEM, current
from mlkit.errors import DeadlineExceededError

if TYPE_CHECKING:
    from types import TracebackType

    from mlkit.resilience._plan import Plan

__all__ = ["Entry", "Scope", "Timers", "start", "stop"]

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

    __slots__ = ("_armed", "_waiting", "limit", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        self.loop = weakref.ref(loop)
        self.limit = limit
        self._waiting: dict[Entry, None] = {}
        self._armed = False

    def add(self, entry: Entry, loop: asyncio.AbstractEventLoop) -> None:
        """Let *entry* wait."""
        entry.when = loop.time() + self.limit
        self._waiting[entry] = None
        if not self._armed:
            self._armed = True
            loop.call_at(entry.when, self._fired, context=_NOBODYS)

    def remove(self, entry: Entry) -> None:
        """Take *entry* out, if it is still in."""
        self._waiting.pop(entry, None)

    def _fired(self) -> None:
        loop = self.loop()
        self._armed = False
        if loop is None:
            return
        now = loop.time()
        due = []
        for entry in self._waiting:
            if entry.when > now:
                self._armed = True
                loop.call_at(entry.when, self._fired, context=_NOBODYS)
                break
            due.append(entry)
        for entry in due:
            del self._waiting[entry]
        for entry in due:
            entry.due()


def start(
    plan: Plan, entry: Entry, loop: asyncio.AbstractEventLoop, limit: float, key: str
) -> Timers | None:
    """Call `entry.due()` in *limit* seconds; return what `stop` needs.

    Args:
        plan: Whose entry it is.
        entry: What waits.
        loop: The running loop.
        limit: Seconds.
        key: What kind of limit it is: those of one kind nearly always have the same length.
    """
    if current() is not SYSTEM:
        # A timer that has outlived its entry would make virtual time jump.
        entry.handle = loop.call_at(loop.time() + limit, entry.due, context=_NOBODYS)
        return None
    local: Any = plan.loop
    timers: Timers | None = getattr(local, key, None)
    if timers is None or timers.limit != limit or timers.loop() is not loop:
        timers = Timers(loop, limit)
        setattr(local, key, timers)
    timers.add(entry, loop)
    return timers


def stop(timers: Timers | None, entry: Entry) -> None:
    """Forget *entry*, which `start` returned *timers* for."""
    if timers is not None:
        timers.remove(entry)
    elif entry.handle is not None:
        entry.handle.cancel()
        entry.handle = None  # it refers to the entry


@final
class Scope:
    """A context manager in a coroutine: what runs inside is cancelled after so many seconds.

    Told apart from a cancellation from outside as `asyncio.timeout` does it: by the number of requests that the task
    has not answered yet. If both came, the one from outside goes on.

    Args:
        plan: Whose attempt it is.
        task: The current task.
        limit: Seconds.

    Raises:
        DeadlineExceededError: On exit, if the time was over and only that cancelled what ran inside.
    """

    __slots__ = (
        "_cancelling",
        "_expired",
        "_limit",
        "_plan",
        "_task",
        "_timers",
        "handle",
        "when",
    )

    when: float
    handle: asyncio.TimerHandle | None

    def __init__(self, plan: Plan, task: asyncio.Task[Any] | None, limit: float) -> None:
        assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
        self._plan, self._task, self._limit = plan, task, limit
        self._expired = False
        self.handle = None

    def __enter__(self) -> None:
        self._cancelling = self._task.cancelling()
        self._timers = start(self._plan, self, asyncio.get_running_loop(), self._limit, "attempts")

    def due(self) -> None:
        """Cancel what runs inside."""
        self._expired = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if not self._expired:
            stop(self._timers, self)
            return
        alone = self._task.uncancel() <= self._cancelling
        if alone and isinstance(error, asyncio.CancelledError):
            raise DeadlineExceededError(self._plan.name, self._limit) from None
