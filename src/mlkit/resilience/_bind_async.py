"""An `async def` under a policy: a straight line while all is well."""

from __future__ import annotations

import asyncio  # noqa: TID253 - nobody imports this module before something async is guarded
import time
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

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

__all__ = ["bind_async", "unlimited_async"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def bind_async(
    plan: Plan, fn: Callable[_P, Coroutine[Any, Any, _R]]
) -> Callable[_P, Coroutine[Any, Any, _R]]:
    inner = unlimited_async(plan, fn)
    if not plan.policy.limited:
        return inner
    limits = plan.policy._limits  # noqa: SLF001 - one object in two files

    async def limited(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with limits.admitted(plan.name):
            return await inner(*args, **kwargs)

    return limited


def unlimited_async(
    plan: Plan, fn: Callable[_P, Coroutine[Any, Any, _R]]
) -> Callable[_P, Coroutine[Any, Any, _R]]:
    machine, budget, hedge = plan.machine, plan.budget, plan.policy.hedge
    surroundings, enter, leave, spent = AMBIENT.get, AMBIENT.set, AMBIENT.reset, SPENT
    limit, quick, judge = plan.limit, plan.quick, plan.judge if plan.judges else None
    limits = plan.policy._limits  # noqa: SLF001 - one object in two files
    # Of the policy, or each `policy.call` would leave a timer behind until its time is over.
    limits.works = limits.works or (Clockwork(plan.limit), Clockwork())
    works, hedges = limits.works

    async def direct(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ring = machine.ring  # the window of the closed breaker is the ticket
        if ring is None or surroundings() is not None or budget.level < budget.full:
            return await run(*args, **kwargs)
        since = spent.number
        try:
            answer = await fn(*args, **kwargs)
        except Exception as error:
            attempts, pause = first_failed(plan, since, ring, error)
            if pause is None:
                raise
        else:
            ring.append(OK)
            return answer
        return await again(attempts, pause, args, kwargs)

    async def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ring = machine.ring
        if ring is None or surroundings() is not None or budget.level < budget.full:
            return await run(*args, **kwargs)
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
                scope = works.begin(limit, began)
                try:
                    answer = await fn(*args, **kwargs)
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
            leave(token)
        return await again(attempts, pause, args, kwargs)

    async def raced(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ring = machine.ring
        if ring is None or surroundings() is not None or budget.level < budget.full:
            return await run(*args, **kwargs)
        since = spent.number
        try:
            answer = await hedged(
                plan,
                hedges,
                fn(*args, **kwargs) if plan.breaker is None else told(ring, args, kwargs),
                lambda: attempt(Trial(plan).beside(), args, kwargs),
            )
        except Exception as error:
            attempts = Attempts(plan, since)
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            budget.earn()
            return answer
        return await again(attempts, pause, args, kwargs)

    async def told(ring: Window, args: Any, kwargs: dict[str, Any]) -> _R:
        """Make an attempt of which only the breaker is told."""
        try:
            answer = await fn(*args, **kwargs)
        except Exception as error:
            if plan.breaker is not None:
                plan.breaker.failed(ring, error)
            raise
        ring.append(OK)
        return answer

    async def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if machine.ring is None and (wait := plan.blocked()) is not None:
            raise plan.refused(wait)
        trial = Trial(plan)
        try:
            answer = await attempts_of(trial, args, kwargs)
        except Exception as error:
            attempts = trial.failed()
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            plan.earn()
            return answer
        return await again(attempts, pause, args, kwargs)

    def again(
        attempts: Attempts, pause: float | None, args: Any, kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, _R]:
        if plan.simple and hedge is None and attempts.until[0] == inf and surroundings() is None:
            return again_simply(attempts, pause, args, kwargs)
        return again_tried(attempts, pause, args, kwargs)

    async def again_simply(
        attempts: Attempts, pause: float | None, args: Any, kwargs: dict[str, Any]
    ) -> _R:
        """As in `again_sync`: one link for all attempts."""
        inside = Ambient()
        inside.retrying, inside.budget = True, budget
        token = enter(inside)
        try:
            while True:
                await paused(pause)
                ring = machine.ring
                if ring is None:
                    return await again_tried(attempts, None, args, kwargs)
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
            leave(token)

    def paused(pause: float | None) -> Coroutine[Any, Any, None]:
        # Without a pause, too: it lets others run, and a cancellation in.
        return current().asleep(pause) if pause else asyncio.sleep(0)

    async def again_tried(
        attempts: Attempts, pause: float | None, args: Any, kwargs: dict[str, Any]
    ) -> _R:
        while True:
            await paused(pause)
            attempts.made += 1
            trial = Trial(plan, attempts)
            try:
                answer = await attempts_of(trial, args, kwargs)
            except Exception as error:
                pause = attempts.pause(error)
                if pause is None:
                    raise
            else:
                plan.earn()
                return answer

    def attempts_of(trial: Trial, args: Any, kwargs: dict[str, Any]) -> Coroutine[Any, Any, _R]:
        """Return what is awaited for the answer of one attempt, or of the first of several at a time."""
        first = attempt(trial, args, kwargs)
        if hedge is None:
            return first
        return hedged(plan, hedges, first, lambda: attempt(trial.beside(), args, kwargs))

    async def attempt(trial: Trial, args: Any, kwargs: dict[str, Any]) -> _R:
        with trial:
            if trial.limit is None:
                answer = await fn(*args, **kwargs)
            else:
                scope = works.begin(trial.limit, trial.began)
                try:
                    answer = await fn(*args, **kwargs)
                except asyncio.CancelledError:
                    if scope.cancelled():
                        raise DeadlineExceededError(plan.name, trial.limit) from None
                    raise
                finally:
                    scope.end()
            trial.check(answer)
            return answer

    if plan.watched or (hedge is not None and not plan.simple):
        return run
    if hedge is not None:
        return raced
    return direct if plan.simple else timed
