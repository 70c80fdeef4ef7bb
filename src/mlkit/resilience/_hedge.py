"""A slow attempt gets company; the first answer wins and nobody is left behind."""

from __future__ import annotations

import asyncio  # noqa: TID253 - nobody imports this module before something async is hedged
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, final

from mlkit._clock import current
from mlkit.resilience._timers import stop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mlkit.resilience._attempts import Trial
    from mlkit.resilience._plan import Plan
    from mlkit.resilience._timers import Clockwork

__all__ = ["hedged"]

_R = TypeVar("_R")


@final
class _Race:
    """The attempts of one call: the first in the caller's own task, the others in tasks of their own."""

    __slots__ = (
        "_again",
        "_cancelling",
        "_context",
        "_delay",
        "_failed",
        "_left",
        "_over",
        "_plan",
        "_task",
        "_timers",
        "_works",
        "handle",
        "others",
        "when",
        "winner",
    )

    when: float
    handle: asyncio.TimerHandle | None

    def __init__(
        self,
        plan: Plan,
        works: Clockwork,
        delay: float,
        again: Callable[[], Coroutine[Any, Any, Any]],
    ) -> None:
        hedge = plan.policy.hedge
        assert hedge is not None  # noqa: S101 - for the type checker
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in one
        self._plan, self._left, self._delay, self._again = plan, hedge.extra, delay, again
        self._task = task
        self._cancelling = task.cancelling()
        self._context = copy_context()
        self._failed = self._over = False
        self.handle = None
        self.others: list[asyncio.Task[Any]] = []
        self.winner: asyncio.Task[Any] | None = None
        self._works = works
        self._timers = works.start(self, delay, task.get_loop())

    def due(self) -> None:
        """Start another attempt, if it can be paid for."""
        if self._over or not self._plan.spend():
            return
        self._plan.policy._limits.count("hedges", self._plan.name)  # noqa: SLF001 - one room
        other = self._task.get_loop().create_task(self._again(), context=self._context.copy())
        self.others.append(other)
        other.add_done_callback(self._ended)
        self._left -= 1
        if self._left:
            self._timers = self._works.start(self, self._delay, self._task.get_loop())

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

    async def close(self) -> None:
        """Cancel the attempts that are still running, and wait until they are gone."""
        if self.winner is not None and not self._over and not self._failed:
            self._task.uncancel()  # the first attempt ended all the same
        self._over = True
        del self._task  # it keeps the error that is raised, whose frames lead back to this
        stop(self._timers, self)
        if self.others:
            others, self.others = self.others, []
            await _reap(others)


async def _raced(
    plan: Plan,
    works: Clockwork,
    delay: float,
    trial: Trial,
    attempt: Callable[[Trial], Coroutine[Any, Any, _R]],
) -> _R:
    race = _Race(plan, works, delay, lambda: attempt(trial.beside()))
    last: Exception | None = None
    try:
        try:
            return await attempt(trial)
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
        await race.close()


async def _reap(others: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them, come what may; a cancellation that arrives meanwhile goes on afterwards."""
    for other in others:
        other.cancel()
    cancelled = False
    while running := [other for other in others if not other.done()]:
        try:
            await asyncio.wait(running)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def hedged(
    plan: Plan, works: Clockwork, trial: Trial, attempt: Callable[[Trial], Coroutine[Any, Any, _R]]
) -> Coroutine[Any, Any, _R]:
    """Return what is awaited for the first answer of *attempt*, which is started again while none has come.

    If all attempts that were started fail, the last error is raised. Losers are cancelled and awaited.
    """
    hedge = plan.policy.hedge
    assert hedge is not None  # noqa: S101 - for the type checker
    if hedge.delay is not None:
        return _raced(plan, works, hedge.delay, trial, attempt)
    return _observed(plan, works, trial, attempt)


async def _observed(
    plan: Plan, works: Clockwork, trial: Trial, attempt: Callable[[Trial], Coroutine[Any, Any, _R]]
) -> _R:
    latencies = plan.policy._latencies  # noqa: SLF001 - one object in two files
    assert latencies is not None  # noqa: S101 - for the type checker
    delay, clock = latencies.value, current()
    began = clock.monotonic()
    if delay is None:
        answer = await attempt(trial)
    else:
        answer = await _raced(plan, works, delay, trial, attempt)
    latencies.note(clock.monotonic() - began)
    return answer
