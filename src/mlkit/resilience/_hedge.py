"""A slow attempt gets company; the first answer wins and nobody is left behind."""

from __future__ import annotations

import asyncio  # noqa: TID253 - nobody imports this module before something async is hedged
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, final

from mlkit._clock import current
from mlkit.resilience._layout import laid_out
from mlkit.resilience._timers import stop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextvars import Context

    from mlkit.resilience._plan import Plan
    from mlkit.resilience._timers import Clockwork, Timers

__all__ = ["hedged"]

_R = TypeVar("_R")


@final
@laid_out
class _Race:
    """The attempts of one call: the first in the caller's own task, the others in tasks of their own."""

    plan: Plan
    works: Clockwork
    delay: float
    left: int
    again: Callable[[], Coroutine[Any, Any, Any]]
    _task: asyncio.Task[Any]
    _cancelling: int
    _context: Context
    when: float
    handle: asyncio.TimerHandle | None = None
    _timers: Timers | None
    others: Sequence[asyncio.Task[Any]] = ()
    winner: asyncio.Task[Any] | None = None
    _failed: bool = False
    _over: bool = False

    def begin(self) -> None:
        """Take the task that runs now for that of the first attempt, and wait for the delay to pass."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
        self._task, self._cancelling = task, task.cancelling()
        self._context = copy_context()
        self._timers = self.works.start(self, self.delay, task.get_loop())

    def due(self) -> None:
        """Start another attempt, if it can be paid for."""
        if self._over or not self.plan.spend():
            return
        self.plan.policy._limits.count("hedges", self.plan.name)  # noqa: SLF001 - one room
        loop = self._task.get_loop()
        other = loop.create_task(self.again(), context=self._context.copy())
        self.others = [*self.others, other]
        other.add_done_callback(self._ended)
        self.left -= 1
        if self.left:
            self._timers = self.works.start(self, self.delay, loop)

    def _ended(self, other: asyncio.Task[Any]) -> None:
        answered = not other.cancelled() and other.exception() is None
        if answered and self.winner is None and not self._over:
            self.winner = other
            if not self._failed:
                self._task.cancel()  # the first attempt lost

    def lost(self) -> bool:
        """Whether the cancellation of the first attempt means only that another one has won. Asked once."""
        if self.winner is None:
            return False
        self._over = True
        return self._task.uncancel() <= self._cancelling

    async def rest(self) -> Exception | None:
        """Wait for the others, the first having failed; return the last error of theirs, if none has an answer."""
        self._failed = True
        while self.winner is None:
            running = [other for other in self.others if not other.done()]
            if not running:
                return self._last_error()
            await asyncio.wait(running, return_when="FIRST_COMPLETED")
            await asyncio.sleep(0)  # `_ended` of what is done
        return None

    def _last_error(self) -> Exception | None:
        for other in reversed(self.others):
            error = None if other.cancelled() else other.exception()
            if isinstance(error, Exception):
                return error
        return None

    def close(self) -> None:
        """Start nothing more; what is still running is left to `reap`."""
        if self.winner is not None and not self._over and not self._failed:
            self._task.uncancel()  # the first attempt ended all the same
        self._over = True
        del self._task  # it keeps the error that is raised, whose frames lead back to this
        stop(self._timers, self)

    async def reap(self) -> None:
        """Cancel the attempts that are still running, and wait until they are gone."""
        others, self.others = self.others, ()
        await _reap(others)


async def _raced(
    plan: Plan,
    works: Clockwork,
    delay: float,
    first: Coroutine[Any, Any, _R],
    again: Callable[[], Coroutine[Any, Any, _R]],
) -> _R:
    hedge = plan.policy.hedge
    assert hedge is not None  # noqa: S101 - for the type checker
    race = _Race()
    race.plan, race.works, race.delay = plan, works, delay
    race.left, race.again = hedge.extra, again
    race.begin()
    last: Exception | None = None
    try:
        try:
            return await first
        except asyncio.CancelledError:
            if not race.lost():
                raise
        except Exception:
            if race.winner is None:
                last = await race.rest()
                if race.winner is None and last is None:
                    raise
        if race.winner is None:
            assert last is not None  # noqa: S101 - for the type checker
            raise last
        answer: _R = race.winner.result()
        return answer
    finally:
        last = None  # its traceback refers to this frame
        race.close()
        if race.others:
            await race.reap()


async def _reap(others: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them, come what may; a cancellation that arrives meanwhile goes on afterwards."""
    for other in others:
        other.cancel()
    cancelled: asyncio.CancelledError | None = None
    try:
        while running := [other for other in others if not other.done()]:
            try:
                await asyncio.wait(running)
            except asyncio.CancelledError as error:
                cancelled = error  # itself: anyio knows its own by their messages
        if cancelled is not None:
            raise cancelled
    finally:
        cancelled = None  # its traceback refers to this frame


def hedged(
    plan: Plan,
    works: Clockwork,
    first: Coroutine[Any, Any, _R],
    again: Callable[[], Coroutine[Any, Any, _R]],
) -> Coroutine[Any, Any, _R]:
    """Return what is awaited for the first answer: of *first*, or of *again*, which is started while none has come.

    If all attempts that were started fail, the last error is raised. Losers are cancelled and awaited.
    """
    hedge = plan.policy.hedge
    assert hedge is not None  # noqa: S101 - for the type checker
    if hedge.delay is not None:
        return _raced(plan, works, hedge.delay, first, again)
    return _observed(plan, works, first, again)


async def _observed(
    plan: Plan,
    works: Clockwork,
    first: Coroutine[Any, Any, _R],
    again: Callable[[], Coroutine[Any, Any, _R]],
) -> _R:
    latencies = plan.policy._latencies  # noqa: SLF001 - one object in two files
    assert latencies is not None  # noqa: S101 - for the type checker
    delay, clock = latencies.value, current()
    began = clock.monotonic()
    if delay is None:
        answer = await first
    else:
        answer = await _raced(plan, works, delay, first, again)
    latencies.note(clock.monotonic() - began)
    return answer
