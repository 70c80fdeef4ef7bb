"""A `def` under a policy: a straight line while all is well."""

from __future__ import annotations

from functools import partial
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mlkit._clock import current
from mlkit.errors import ConfigurationError
from mlkit.resilience._ambient import AMBIENT, Ambient
from mlkit.resilience._attempts import SPENT, Attempts, Trial, first_failed
from mlkit.resilience._machine import OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.resilience._plan import Plan

__all__ = ["again_sync", "bind_sync", "unexpected_coroutine", "unlimited_sync"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def bind_sync(plan: Plan, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    if plan.policy.threaded is not None:
        from mlkit.resilience._threads import in_worker

        fn = in_worker(plan, plan.policy.threaded, fn)
    inner = unlimited_sync(plan, fn)
    if not plan.policy.limited:
        return inner
    limits = plan.policy._limits  # noqa: SLF001 - one object in two files

    def limited(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with limits.admitted(plan.name):
            return inner(*args, **kwargs)

    return limited


def unlimited_sync(plan: Plan, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    machine, budget = plan.machine, plan.budget
    surroundings, spent = AMBIENT.get, SPENT

    def direct(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ring = machine.ring  # the window of the closed breaker is the ticket
        if ring is None:
            plan.refuse()
        if ring is None or surroundings() is not None:
            return _run_sync(plan, fn, args, kwargs)
        if budget.level < budget.full:
            return _owing_sync(plan, fn, ring, args, kwargs)
        since = spent.number
        try:
            answer = fn(*args, **kwargs)
        except Exception as error:
            attempts, pause = first_failed(plan, since, ring, error)
            if pause is None:
                raise
        else:
            if type(answer) is CoroutineType:
                raise unexpected_coroutine(plan, answer)
            ring.append(OK)
            return answer
        return again_sync(plan, attempts, pause, partial(fn, *args, **kwargs))

    return direct if plan.simple else _timed_sync(plan, fn)


def _timed_sync(plan: Plan, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """As `direct`, with two readings of the clock around the call and its time limit inside of it."""
    machine, judge, watched = plan.machine, plan.judge if plan.judges else None, plan.watched
    surroundings, enter, leave, spent = AMBIENT.get, AMBIENT.set, AMBIENT.reset, SPENT
    limit, quick, budget = plan.limit, plan.quick, plan.budget

    def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ring = machine.ring
        if ring is None or watched or surroundings() is not None or budget.level < budget.full:
            return _run_sync(plan, fn, args, kwargs)
        since = spent.number
        clock = current()
        began = clock.monotonic()
        inside = Ambient(began + limit, limit)
        token = enter(inside)
        try:
            answer = fn(*args, **kwargs)
            if type(answer) is CoroutineType:
                raise unexpected_coroutine(plan, answer)
            if judge is not None:
                judge(answer)
        except Exception as error:
            attempts, pause = first_failed(plan, since, ring, error, began)
            if pause is None:
                raise
        else:
            if quick == inf or (duration := clock.monotonic() - began) < quick:
                ring.append(OK)
            else:
                plan.succeeded(ring, duration)
            return answer
        finally:
            inside.over = True
            leave(token)
        return again_sync(plan, attempts, pause, partial(fn, *args, **kwargs))

    return timed


def _owing_sync(
    plan: Plan, fn: Callable[..., _R], ring: Any, args: Any, kwargs: dict[str, Any]
) -> _R:
    """As `direct`, while the budget is not full: policies inside must see who earns for the call."""
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
            raise unexpected_coroutine(plan, answer)
        ring.append(OK)
        plan.budget.earn()
        return answer
    finally:
        inside.over = True
        AMBIENT.reset(token)
    return again_sync(plan, attempts, pause, partial(fn, *args, **kwargs))


def _run_sync(plan: Plan, fn: Callable[..., _R], args: Any, kwargs: dict[str, Any]) -> _R:
    if plan.machine.ring is None:
        plan.refuse()
    trial = Trial(plan)
    try:
        with trial:
            answer = fn(*args, **kwargs)
            if type(answer) is CoroutineType:
                raise unexpected_coroutine(plan, answer)
            trial.check(answer)
    except Exception as error:
        attempts = trial.failed()
        pause = attempts.pause(error)
        if pause is None:
            raise
    else:
        plan.earn()
        return answer
    return again_sync(plan, attempts, pause, partial(fn, *args, **kwargs))


def again_sync(plan: Plan, attempts: Attempts, pause: float | None, call: Callable[[], _R]) -> _R:
    """Make further attempts, the first of them after *pause* seconds."""
    if not plan.simple or attempts.until[0] != inf or AMBIENT.get() is not None:
        return _again_tried(plan, attempts, pause, call)
    # Nothing is around the call, and nobody needs the time: one link says for all of its attempts what they are.
    inside = Ambient(inf, inf, True)  # noqa: FBT003 - as in `Trial`
    inside.budget = plan.budget
    token = AMBIENT.set(inside)
    try:
        while True:
            if pause:  # outside of `except`: the failed attempt and what it held are gone
                current().sleep(pause)
            ring = plan.machine.ring
            if ring is None:
                return _again_tried(plan, attempts, None, call)
            attempts.made += 1
            try:
                answer = call()
            except Exception as error:
                if plan.breaker is not None:
                    plan.breaker.failed(ring, error)
                pause = attempts.pause(error)
                if pause is None:
                    raise
            else:
                if type(answer) is CoroutineType:
                    raise unexpected_coroutine(plan, answer)
                ring.append(OK)
                plan.budget.earn()
                return answer
    finally:
        inside.over = True
        AMBIENT.reset(token)


def _again_tried(plan: Plan, attempts: Attempts, pause: float | None, call: Callable[[], _R]) -> _R:
    while True:
        if pause:  # outside of `except`: the failed attempt and what it held are gone
            current().sleep(pause)
        attempts.made += 1
        try:
            with Trial(plan, attempts) as trial:
                answer = call()
                if type(answer) is CoroutineType:
                    raise unexpected_coroutine(plan, answer)
                trial.check(answer)
        except Exception as error:
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            plan.earn()
            return answer


def unexpected_coroutine(plan: Plan, coroutine: Any) -> ConfigurationError:
    """Return the error for a `def` whose answer is a coroutine, and close that."""
    coroutine.close()
    return ConfigurationError(
        f"Policy(...)({plan.name})",
        type(coroutine),
        "an answer, since it is not an `async def`",
        hint="guard the `async def` itself: nothing has run yet when a coroutine is returned",
    )
