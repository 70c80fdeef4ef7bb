"""A `def` under a policy: a straight line while all is well.

Functions in here take the arguments of the call as a tuple and a dict. One that hands them on in `*args, **kwargs` costs three
times as much, and there are up to three of them between the caller and the function.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from mlkit._clock import current, replacement
from mlkit.errors import ConfigurationError
from mlkit.resilience._ambient import AMBIENT, Ambient
from mlkit.resilience._attempts import SPENT, Attempts, Trial, first_failed
from mlkit.resilience._machine import OK

if TYPE_CHECKING:
    from mlkit.resilience._plan import Plan

__all__ = ["Packed", "bind_sync", "unlimited_sync"]

Packed = Callable[[tuple[Any, ...], dict[str, Any]], Any]


def bind_sync(plan: Plan, fn: Callable[..., Any]) -> Packed:
    if plan.policy.threaded is not None:
        from mlkit.resilience._threads import in_worker

        fn = in_worker(plan, plan.policy.threaded, fn)
    inner = unlimited_sync(plan, fn)
    if not plan.policy.limited:
        return inner
    limits = plan.policy._limits  # noqa: SLF001 - one object in two files

    def limited(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with limits.admitted(plan.name):
            return inner(args, kwargs)

    return limited


def unlimited_sync(plan: Plan, fn: Callable[..., Any]) -> Packed:
    if plan.watched:
        return partial(_tried, plan, fn)
    return _untimed(plan, fn) if plan.simple else _timed(plan, fn)


def _untimed(plan: Plan, fn: Callable[..., Any]) -> Packed:
    """Return *fn* under a *plan* that is simple."""
    machine, budget, surroundings, spent = plan.machine, plan.budget, AMBIENT.get, SPENT

    def untimed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ring = machine.ring  # the window of the closed breaker is the ticket
        if ring is None or surroundings() is not None:
            return _tried(plan, fn, args, kwargs)
        if budget.level < budget.full:
            return _owing(plan, fn, args, kwargs)
        since = spent.number
        try:
            answer = fn(*args, **kwargs) if kwargs else fn(*args)  # an empty dict costs 0.04 us
        except Exception as error:
            attempts, pause = first_failed(plan, since, ring, error)
            if pause is None:
                raise
        else:
            if type(answer) is CoroutineType:
                raise _unexpected(plan, answer)
            ring.append(OK)
            return answer
        return _again(attempts, pause, fn, args, kwargs)

    return untimed


def _timed(plan: Plan, fn: Callable[..., Any]) -> Packed:
    """As `_untimed`, with two readings of the clock around the call and its time limit inside of it."""
    machine, budget, surroundings, spent = plan.machine, plan.budget, AMBIENT.get, SPENT
    judge, limit, quick = plan.judge if plan.judges else None, plan.limit, plan.quick
    enter, leave = AMBIENT.set, AMBIENT.reset

    def timed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ring = machine.ring
        if ring is None or surroundings() is not None or budget.level < budget.full:
            return _tried(plan, fn, args, kwargs)
        since = spent.number
        # `current().monotonic()` is two calls more, twice: 0.1 us.
        clock = replacement()
        began = time.monotonic() if clock is None else clock.monotonic()  # noqa: TID251 - as above
        inside = Ambient()
        inside.when, inside.allowed = began + limit, limit
        token = enter(inside)
        try:
            answer = fn(*args, **kwargs) if kwargs else fn(*args)  # an empty dict costs 0.04 us
            if type(answer) is CoroutineType:
                raise _unexpected(plan, answer)
            if judge is not None:
                judge(answer)
        except Exception as error:
            attempts, pause = first_failed(plan, since, ring, error, began)
            if pause is None:
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
        return _again(attempts, pause, fn, args, kwargs)

    return timed


def _owing(
    plan: Plan, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """As `untimed`, while the budget is not full: policies inside must see who earns for the call."""
    ring = plan.machine.ring
    if ring is None:
        return _tried(plan, fn, args, kwargs)
    inside = Ambient()
    inside.budget = plan.budget
    token, since = AMBIENT.set(inside), SPENT.number
    try:
        answer = fn(*args, **kwargs)
    except Exception as error:
        attempts, pause = first_failed(plan, since, ring, error)
        if pause is None:
            raise
    else:
        if type(answer) is CoroutineType:
            raise _unexpected(plan, answer)
        ring.append(OK)
        plan.budget.earn()
        return answer
    finally:
        inside.over = True
        AMBIENT.reset(token)
    return _again(attempts, pause, fn, args, kwargs)


def _tried(
    plan: Plan, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if plan.machine.ring is None and (wait := plan.blocked()) is not None:
        raise plan.refused(wait)
    trial = Trial(plan)
    try:
        with trial:
            answer = fn(*args, **kwargs)
            if type(answer) is CoroutineType:
                raise _unexpected(plan, answer)
            trial.check(answer)
    except Exception as error:
        attempts = trial.failed()
        pause = attempts.pause(error)
        if pause is None:
            raise
    else:
        plan.earn()
        return answer
    return _again(attempts, pause, fn, args, kwargs)


def _again(
    attempts: Attempts,
    pause: float | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Make further attempts, the first of them after *pause* seconds."""
    plan = attempts.plan
    if not plan.simple or attempts.until[0] != inf or AMBIENT.get() is not None:
        return _again_tried(attempts, pause, fn, args, kwargs)
    # Nothing is around the call, and nobody needs the time: one link says for all of its attempts what they are.
    inside = Ambient()
    inside.retrying, inside.budget = True, plan.budget
    token = AMBIENT.set(inside)
    try:
        while True:
            if pause:  # outside of `except`: the failed attempt and what it held are gone
                current().sleep(pause)
            ring = plan.machine.ring
            if ring is None:
                return _again_tried(attempts, None, fn, args, kwargs)
            attempts.made += 1
            try:
                answer = fn(*args, **kwargs)
            except Exception as error:
                if plan.breaker is not None:
                    plan.breaker.failed(ring, error)
                pause = attempts.pause(error)
                if pause is None:
                    raise
            else:
                if type(answer) is CoroutineType:
                    raise _unexpected(plan, answer)
                ring.append(OK)
                plan.budget.earn()
                return answer
    finally:
        inside.over = True
        AMBIENT.reset(token)


def _again_tried(
    attempts: Attempts,
    pause: float | None,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    plan = attempts.plan
    while True:
        if pause:  # outside of `except`: the failed attempt and what it held are gone
            current().sleep(pause)
        attempts.made += 1
        try:
            with Trial(plan, attempts) as trial:
                answer = fn(*args, **kwargs)
                if type(answer) is CoroutineType:
                    raise _unexpected(plan, answer)
                trial.check(answer)
        except Exception as error:
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            plan.earn()
            return answer


def _unexpected(plan: Plan, coroutine: Any) -> ConfigurationError:
    """Return the error for a `def` whose answer is a coroutine, and close that."""
    coroutine.close()
    return ConfigurationError(
        f"Policy(...)({plan.name})",
        type(coroutine),
        "an answer, since it is not an `async def`",
        hint="guard the `async def` itself: nothing has run yet when a coroutine is returned",
    )
