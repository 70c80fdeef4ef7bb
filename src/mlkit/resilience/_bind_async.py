"""An `async def` under a policy: a straight line while all is well."""

from __future__ import annotations

import asyncio  # noqa: TID253 - nobody imports this module before something async is guarded
import time
from math import inf
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current, replacement
from mlkit.errors import DeadlineExceededError
from mlkit.resilience._ambient import AMBIENT, Ambient
from mlkit.resilience._attempts import SPENT, Attempts, Trial, first_failed
from mlkit.resilience._hedge import hedged
from mlkit.resilience._machine import OK
from mlkit.resilience._timers import Clockwork

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mlkit.resilience._machine import Window
    from mlkit.resilience._plan import Plan

    Awaited = Callable[..., Coroutine[Any, Any, Any]]

__all__ = ["bind_async", "unlimited_async"]


def bind_async(plan: Plan, fn: Awaited) -> Awaited:
    inner = unlimited_async(plan, fn)
    if not plan.policy.limited:
        return inner
    limits = plan.policy._limits  # noqa: SLF001 - one object in two files

    async def limited(*args: Any, **kwargs: Any) -> Any:
        with limits.admitted(plan.name):
            return await inner(*args, **kwargs)

    return limited


def unlimited_async(plan: Plan, fn: Awaited) -> Awaited:
    tries = _Tries(plan, fn)
    hedges = plan.policy.hedge is not None
    if plan.simple:
        return _raced(tries) if hedges else _untimed(tries)
    if not hedges and not plan.watched:
        return _timed(tries)

    async def tried(*args: Any, **kwargs: Any) -> Any:
        return await tries.run(args, kwargs)

    return tried


def _untimed(tries: _Tries) -> Awaited:
    """Return a function under a plan that is simple."""
    plan, fn = tries.plan, tries.fn
    machine, budget, spent = plan.machine, plan.budget, SPENT
    surroundings, enter, leave = AMBIENT.get, AMBIENT.set, AMBIENT.reset

    async def untimed(*args: Any, **kwargs: Any) -> Any:
        ring = machine.ring  # the window of the closed breaker is the ticket
        if ring is None or surroundings() is not None or budget.level < budget.full:
            return await tries.run(args, kwargs)
        since = spent.number
        try:
            answer = await (fn(*args, **kwargs) if kwargs else fn(*args))  # as in `_bind_sync`
        except Exception as error:
            attempts, pause = first_failed(plan, since, ring, error)
            if pause is None:
                raise
        else:
            ring.append(OK)
            return answer
        # As `_again` in `_bind_sync`, but in here: a coroutine more, which every pause has to come through, is a quarter of
        # what a failure costs.
        inside = Ambient()
        inside.retrying, inside.budget = True, budget
        token = enter(inside)
        try:
            while True:
                await _paused(pause)
                ring = machine.ring
                if ring is None:
                    return await tries.again(attempts, None, args, kwargs)
                attempts.made += 1
                try:
                    answer = await fn(*args, **kwargs)
                except Exception as error:
                    if plan.breaker is not None:
                        plan.breaker.failed(ring, error)
                    pause = attempts.pause(error)
                    if pause is None:
                        raise
                else:
                    ring.append(OK)
                    budget.earn()
                    return answer
        finally:
            inside.over = True
            try:  # noqa: SIM105 - `suppress` costs 0.3 us
                leave(token)
            except ValueError:  # of a task that is thrown away with its loop, in another context
                pass

    return untimed


def _timed(tries: _Tries) -> Awaited:
    """As `_untimed`, with two readings of the clock around the call, and its time limit around and inside of it."""
    plan, fn, works = tries.plan, tries.fn, tries.works
    machine, budget, spent = plan.machine, plan.budget, SPENT
    surroundings, enter, leave = AMBIENT.get, AMBIENT.set, AMBIENT.reset
    judge, limit, quick = plan.judge if plan.judges else None, plan.limit, plan.quick

    async def timed(*args: Any, **kwargs: Any) -> Any:
        ring = machine.ring
        if ring is None or surroundings() is not None or budget.level < budget.full:
            return await tries.run(args, kwargs)
        since = spent.number
        # As in `_bind_sync`: `current().monotonic()` is two calls more.
        clock = replacement()
        began = time.monotonic() if clock is None else clock.monotonic()  # noqa: TID251 - as above
        inside = Ambient()
        inside.when, inside.allowed = began + limit, limit
        token = enter(inside)
        try:
            if limit == inf:
                answer = await fn(*args, **kwargs)
            else:
                scope = works.begin(limit, began if clock is None else None)
                try:
                    answer = await (fn(*args, **kwargs) if kwargs else fn(*args))
                except asyncio.CancelledError:
                    if scope.cancelled():
                        raise DeadlineExceededError(plan.name, limit) from None
                    raise
                finally:
                    scope.end()
            if judge is not None:
                judge(answer)
        except Exception as error:
            attempts, pause = first_failed(plan, since, ring, error, began)
            if pause is None:
                raise
        except asyncio.CancelledError:
            plan.cancelled(ring, began)
            raise
        else:
            if quick != inf:
                ended = time.monotonic() if clock is None else clock.monotonic()  # noqa: TID251
                if ended - began >= quick:
                    plan.succeeded(ring, ended - began)
                    return answer
            ring.append(OK)
            return answer
        finally:
            inside.over = True
            try:  # noqa: SIM105 - `suppress` costs 0.3 us
                leave(token)
            except ValueError:  # of a task that is thrown away with its loop, in another context
                pass
        return await tries.again(attempts, pause, args, kwargs)

    return timed


def _raced(tries: _Tries) -> Awaited:
    """As `_untimed`, with a hedge."""
    plan, fn = tries.plan, tries.fn
    machine, budget, surroundings, spent = plan.machine, plan.budget, AMBIENT.get, SPENT

    async def raced(*args: Any, **kwargs: Any) -> Any:
        ring = machine.ring
        if ring is None or surroundings() is not None or budget.level < budget.full:
            return await tries.run(args, kwargs)
        since = spent.number
        try:
            answer = await hedged(
                plan,
                tries.hedges,
                fn(*args, **kwargs) if plan.breaker is None else told(ring, args, kwargs),
                lambda: tries.attempt(Trial(plan).beside(), args, kwargs),
            )
        except Exception as error:
            attempts = Attempts()
            attempts.plan, attempts.since = plan, since
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            budget.earn()
            return answer
        return await tries.again(attempts, pause, args, kwargs)

    async def told(ring: Window, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make an attempt of which only the breaker has to be told."""
        try:
            answer = await fn(*args, **kwargs)
        except Exception as error:
            if plan.breaker is not None:
                plan.breaker.failed(ring, error)
            raise
        ring.append(OK)
        return answer

    return raced


@final
class _Tries:
    """A function under a plan, one `Trial` after the other: whatever the plan is, and whatever surrounds the call."""

    __slots__ = ("fn", "hedges", "plan", "works")

    def __init__(self, plan: Plan, fn: Awaited) -> None:
        self.plan, self.fn = plan, fn
        limits = plan.policy._limits  # noqa: SLF001 - one object in two files
        # Of the policy, or each `policy.call` would leave a timer behind until its time is over.
        limits.works = limits.works or (Clockwork(plan.limit), Clockwork())
        self.works, self.hedges = limits.works

    async def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = self.plan
        if plan.machine.ring is None and (wait := plan.blocked()) is not None:
            raise plan.refused(wait)
        trial = Trial(plan)
        try:
            answer = await self._attempts(trial, args, kwargs)
        except Exception as error:
            attempts = trial.failed()
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            plan.earn()
            return answer
        return await self.again(attempts, pause, args, kwargs)

    async def again(
        self,
        attempts: Attempts,
        pause: float | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make further attempts, the first of them after *pause* seconds."""
        while True:
            await _paused(pause)
            attempts.made += 1
            try:
                answer = await self._attempts(Trial(self.plan, attempts), args, kwargs)
            except Exception as error:
                pause = attempts.pause(error)
                if pause is None:
                    raise
            else:
                self.plan.earn()
                return answer

    def _attempts(
        self, trial: Trial, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Return what is awaited for the answer of one attempt, or of the first of several at a time."""
        first = self.attempt(trial, args, kwargs)
        if self.plan.policy.hedge is None:
            return first
        return hedged(
            self.plan, self.hedges, first, lambda: self.attempt(trial.beside(), args, kwargs)
        )

    async def attempt(self, trial: Trial, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with trial:
            if trial.limit is None:
                answer = await self.fn(*args, **kwargs)
            else:
                scope = self.works.begin(trial.limit)
                try:
                    answer = await self.fn(*args, **kwargs)
                except asyncio.CancelledError:
                    if scope.cancelled():
                        raise DeadlineExceededError(self.plan.name, trial.limit) from None
                    raise
                finally:
                    scope.end()
            trial.check(answer)
            return answer


def _paused(pause: float | None) -> Coroutine[Any, Any, None]:
    # Without a pause, too: it lets others run, and a cancellation in.
    return current().asleep(pause) if pause else asyncio.sleep(0)
