"""From a policy and a function to a function: one closure for each kind, a straight line while all is well."""

from __future__ import annotations

from functools import partial, update_wrapper
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from mlkit._clock import current
from mlkit.errors import ConfigurationError
from mlkit.resilience._ambient import AMBIENT, Ambient
from mlkit.resilience._attempts import SPENT, Attempts, Trial
from mlkit.resilience._machine import OK
from mlkit.resilience._plan import ALWAYS_CLOSED, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mlkit.resilience._limits import Permit
    from mlkit.resilience._policy import Policy

__all__ = [
    "ALWAYS_CLOSED",
    "again_sync",
    "bound",
    "bound_opener",
    "bound_plan",
    "decorated",
    "first_failed",
    "is_async",
    "is_stream",
    "name_of",
    "plan_of",
    "unexpected_coroutine",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def decorated(policy: Policy, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function of the kind and signature of *fn*, guarded by *policy*."""
    from inspect import isroutine

    if isinstance(fn, type):
        raise ConfigurationError(
            "Policy(...)(fn)",
            fn,
            "a function",
            hint="a decorated class would no longer be one; decorate its methods, or use policy.call(...)",
        )
    if isinstance(fn, (classmethod, staticmethod)):
        return cast("Callable[_P, _R]", type(fn)(decorated(policy, fn.__func__)))
    # The attributes of a callable object are its state, not the function's.
    updated = ("__dict__",) if isroutine(fn) else ()
    return update_wrapper(bound(policy, fn), fn, updated=updated)


def bound(policy: Policy, fn: Callable[_P, _R], *, name: str | None = None) -> Callable[_P, _R]:
    """Return *fn* guarded by *policy*, without its signature; *name* is what errors and telemetry call it."""
    if is_stream(fn):
        from mlkit.resilience._streams import relay, relay_async

        opened: Any = bound_opener(policy, fn, name=name)
        guarded: Any = relay_async(opened) if is_async(fn) else relay(opened)
        return cast("Callable[_P, _R]", guarded)
    plan = plan_of(policy, fn, name)
    return cast("Callable[_P, _R]", bound_plan(plan, fn))


def bound_plan(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return *fn*, which is no generator function, guarded as *plan* says."""
    return _bind_async(plan, fn) if is_async(fn) else _bind_sync(plan, fn)


def bound_opener(
    policy: Policy, fn: Callable[..., Any], *, name: str | None = None
) -> Callable[..., Any]:
    """Return what opens streams of *fn* guarded by *policy*.

    Args:
        policy: What is done around the opening; its bulkhead counts the stream until its end.
        fn: A generator function or async generator function.
        name: What errors and telemetry call it.

    Returns:
        A function that returns an `Opened`, or a coroutine function that returns an `AsyncOpened`.
    """
    from mlkit.resilience._streams import stream_opener  # not before something streams

    plan = plan_of(policy, fn, name)
    waits = is_async(fn)
    opener = stream_opener(plan, fn, is_async=waits)
    limits = policy._limits  # noqa: SLF001 - one room
    if not waits:
        guarded = _unlimited_sync(plan, opener)
        if not policy.limited:
            return guarded

        def opened(*args: Any, **kwargs: Any) -> Any:
            permit: Permit | None = limits.admitted(plan.name)
            try:
                stream = guarded(*args, **kwargs).hold(permit)
                permit = None
                return stream
            finally:
                if permit is not None:
                    permit.release()

        return opened
    guarded = _unlimited_async(plan, opener)
    if not policy.limited:
        return guarded

    async def opened_async(*args: Any, **kwargs: Any) -> Any:
        permit: Permit | None = limits.admitted(plan.name)
        try:
            stream = (await guarded(*args, **kwargs)).hold(permit)
            permit = None
            return stream
        finally:
            if permit is not None:
                permit.release()

    return opened_async


def is_stream(fn: Callable[..., object]) -> bool:
    """Return whether *fn* is a generator function or async generator function, or a partial or object of one."""
    from inspect import isasyncgenfunction, isgeneratorfunction

    target = _code_of(fn)
    return isasyncgenfunction(target) or isgeneratorfunction(target)


def is_async(fn: Callable[..., object]) -> bool:
    """Return whether *fn* is awaited or read by `async for`: itself, behind a partial, or by its `__call__`."""
    from inspect import isasyncgenfunction, iscoroutinefunction

    from mlkit.resilience._fallback import Fallback

    if isinstance(fn, Fallback):
        return fn.is_async
    target = _code_of(fn)
    return (
        iscoroutinefunction(fn)  # an AsyncMock is only this
        or iscoroutinefunction(target)
        or isasyncgenfunction(target)
    )


def name_of(fn: object) -> str:
    """Return the name of a function, or of what a partial or object is made of."""
    from mlkit.resilience._fallback import Fallback

    while isinstance(fn, partial):
        fn = fn.func
    if isinstance(fn, Fallback):
        return fn.name
    return str(getattr(fn, "__name__", type(fn).__name__))


def _code_of(fn: object) -> Any:
    """Return the function whose kind decides: behind partials, and the `__call__` of an object."""
    from inspect import isroutine

    while isinstance(fn, partial):
        fn = fn.func
    return fn if isroutine(fn) else type(fn).__call__


def plan_of(policy: Policy, fn: Callable[..., Any], name: str | None) -> Plan:
    """Return the plan for *fn*, or raise if *fn* cannot have this policy."""
    if not callable(fn):
        raise ConfigurationError("Policy(...)(fn)", fn, "a callable")
    stream, waits = is_stream(fn), is_async(fn)
    if policy.hedge is not None and (stream or not waits):
        raise ConfigurationError(
            "Policy(hedge=...)(fn)",
            fn,
            "an `async def`",
            hint="a call that runs in the caller's thread cannot be left for another",
        )
    if policy.threaded is not None and (stream or waits):
        raise ConfigurationError(
            "Policy(timeout=Threaded(...))(fn)",
            fn,
            "a `def`",
            hint="an `async def` can be cancelled: write timeout=seconds",
        )
    if stream and policy.stream != "buffer" and (policy.accept or policy.verdict) is not None:
        raise ConfigurationError(
            "Policy(accept=...)(fn)",
            fn,
            "a `def` or `async def` that returns its answer",
            hint="a stream has none that could be judged before it is handed out, except with stream='buffer'",
        )
    name = name or policy.name or name_of(fn)
    if policy.breaker is not None:
        policy.breaker._adopt(name)  # noqa: SLF001 - one room
    return Plan(policy, name)


def _bind_sync(plan: Plan, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    if plan.policy.threaded is not None:
        from mlkit.resilience._threads import in_worker

        fn = in_worker(plan, plan.policy.threaded, fn)
    inner = _unlimited_sync(plan, fn)
    if not plan.policy.limited:
        return inner
    limits = plan.policy._limits  # noqa: SLF001 - one object in two files

    def limited(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with limits.admitted(plan.name):
            return inner(*args, **kwargs)

    return limited


def _unlimited_sync(plan: Plan, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    machine, budget = plan.machine, plan.budget
    surroundings, spent = AMBIENT.get, SPENT

    def direct(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ring = machine.ring  # the window of the closed breaker is the ticket
        if ring is None or surroundings() is not None or budget.level < budget.full:
            return _run_sync(plan, fn, args, kwargs)
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
                plan.earn()
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


def _bind_async(
    plan: Plan, fn: Callable[_P, Coroutine[Any, Any, _R]]
) -> Callable[_P, Coroutine[Any, Any, _R]]:
    inner = _unlimited_async(plan, fn)
    if not plan.policy.limited:
        return inner
    limits = plan.policy._limits  # noqa: SLF001 - one object in two files

    async def limited(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with limits.admitted(plan.name):
            return await inner(*args, **kwargs)

    return limited


def _unlimited_async(
    plan: Plan, fn: Callable[_P, Coroutine[Any, Any, _R]]
) -> Callable[_P, Coroutine[Any, Any, _R]]:
    import asyncio  # not before something async is guarded

    from mlkit.resilience._hedge import hedged
    from mlkit.resilience._timers import Clockwork, Scope

    machine, budget, hedge = plan.machine, plan.budget, plan.policy.hedge
    surroundings, enter, leave, spent = AMBIENT.get, AMBIENT.set, AMBIENT.reset, SPENT
    limit, quick, judge = plan.limit, plan.quick, plan.judge if plan.judges else None
    limits = plan.policy._limits  # noqa: SLF001 - one object in two files
    # Of the policy, or each `policy.call` would leave a timer behind until its time is over.
    limits.works = limits.works or (Clockwork(plan.limit), Clockwork())
    current_task, (works, hedges) = asyncio.current_task, limits.works

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
        clock = current()
        began = clock.monotonic()
        inside = Ambient(began + limit, limit)
        token = enter(inside)
        try:
            if limit == inf:
                answer = await fn(*args, **kwargs)
            else:
                with Scope(works, plan, current_task(), limit):
                    answer = await fn(*args, **kwargs)
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
            if quick == inf or (duration := clock.monotonic() - began) < quick:
                ring.append(OK)
            else:
                plan.succeeded(ring, duration)
            return answer
        finally:
            inside.over = True
            leave(token)
        return await again(attempts, pause, args, kwargs)

    async def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if machine.ring is None:
            plan.refuse()
        trial = Trial(plan)
        try:
            if hedge is None:
                answer = await attempt(trial, args, kwargs)
            else:
                answer = await hedged(plan, hedges, trial, lambda one: attempt(one, args, kwargs))
        except Exception as error:
            attempts = trial.failed()
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            plan.earn()
            return answer
        return await again(attempts, pause, args, kwargs)

    async def again(
        attempts: Attempts, pause: float | None, args: Any, kwargs: dict[str, Any]
    ) -> _R:
        while True:
            if pause:
                await current().asleep(pause)
            else:
                await asyncio.sleep(0)  # lets others run, and a cancellation in
            attempts.made += 1
            trial = Trial(plan, attempts)
            try:
                if hedge is None:
                    answer = await attempt(trial, args, kwargs)
                else:
                    answer = await hedged(
                        plan, hedges, trial, lambda one: attempt(one, args, kwargs)
                    )
            except Exception as error:
                pause = attempts.pause(error)
                if pause is None:
                    raise
            else:
                plan.earn()
                return answer

    async def attempt(trial: Trial, args: Any, kwargs: dict[str, Any]) -> _R:
        with trial:
            if trial.limit is None:
                answer = await fn(*args, **kwargs)
            else:
                with Scope(works, plan, current_task(), trial.limit):
                    answer = await fn(*args, **kwargs)
            trial.check(answer)
            return answer

    if hedge is not None or plan.watched:
        return run
    return timed if plan.clocked or plan.judges else direct


def first_failed(
    plan: Plan, since: int, ring: Any, error: Exception, began: float = 0.0
) -> tuple[Attempts, float | None]:
    """Judge the first attempt of a call, which nothing surrounds; return what comes next."""
    if plan.breaker is not None:
        duration = current().monotonic() - began if began else 0.0
        plan.breaker.failed(ring, error, duration=duration)
    until = began + plan.deadline if plan.deadline is not None else inf
    attempts = Attempts(plan, since, until=(until, plan.deadline or inf), began=began)
    return attempts, attempts.pause(error)


def unexpected_coroutine(plan: Plan, coroutine: Any) -> ConfigurationError:
    """Return the error for a `def` whose answer is a coroutine, and close that."""
    coroutine.close()
    return ConfigurationError(
        f"Policy(...)({plan.name})",
        type(coroutine),
        "an answer, since it is not an `async def`",
        hint="guard the `async def` itself: nothing has run yet when a coroutine is returned",
    )
