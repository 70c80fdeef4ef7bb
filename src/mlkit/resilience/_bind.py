"""From a policy and a function to a function: one closure for each kind, a straight line while all is well."""

from __future__ import annotations

from functools import partial, update_wrapper
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from mlkit._clock import current
from mlkit.errors import ConfigurationError
from mlkit.resilience._ambient import AMBIENT
from mlkit.resilience._attempts import Attempts, Plan, Trial
from mlkit.resilience._budget import Budget
from mlkit.resilience._hedge import hedged
from mlkit.resilience._machine import OK, Machine, Rules
from mlkit.resilience._streams import guarded_async_stream, guarded_stream

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine

    from mlkit.resilience._policy import Policy

__all__ = ["ALWAYS_CLOSED", "bound", "decorated", "is_async", "name_of"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
ALWAYS_CLOSED = Machine(Rules(1.0, 1, 1, 1.0, 1, 1.0))
_ALWAYS_FULL = Budget(burst=0)


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
    if isinstance(fn, classmethod):
        raise ConfigurationError(
            "Policy(...)(fn)", fn, "a function", hint="put the policy below @classmethod"
        )
    # The attributes of a callable object are its state, not the function's.
    updated = ("__dict__",) if isroutine(fn) else ()
    return update_wrapper(bound(policy, fn), fn, updated=updated)


def bound(policy: Policy, fn: Callable[_P, _R], *, name: str | None = None) -> Callable[_P, _R]:
    """Return *fn* guarded by *policy*, without its signature; *name* is what errors and telemetry call it."""
    from inspect import isasyncgenfunction, isgeneratorfunction

    if not callable(fn):
        raise ConfigurationError("Policy(...)(fn)", fn, "a callable")
    name = name or policy.name or name_of(fn)
    if policy.breaker is not None:
        policy.breaker._adopt(name)  # noqa: SLF001 - one room
    plan = Plan(policy, name)
    target = _code_of(fn)
    if policy.hedge is not None and not is_async(fn):
        raise ConfigurationError(
            "Policy(hedge=...)(fn)",
            fn,
            "an `async def`",
            hint="a call that runs in the caller's thread cannot be left for another",
        )
    stream = isasyncgenfunction(target) or isgeneratorfunction(target)
    if policy.accept is not None and stream:
        raise ConfigurationError(
            "Policy(accept=...)(fn)",
            fn,
            "a `def` or `async def` that returns its answer",
            hint="a stream has none that could be judged before it is handed out",
        )
    guarded: Any
    if isasyncgenfunction(target):
        guarded = guarded_async_stream(cast("Any", fn), partial(_bind_async, plan))
    elif isgeneratorfunction(target):
        guarded = guarded_stream(cast("Any", fn), partial(_bind_sync, plan))
    elif is_async(fn):
        guarded = _bind_async(plan, cast("Callable[_P, Coroutine[Any, Any, Any]]", fn))
    else:
        guarded = _bind_sync(plan, fn)
    return cast("Callable[_P, _R]", guarded)


def is_async(fn: Callable[..., object]) -> bool:
    """Return whether calling *fn* gives a coroutine: an `async def`, partial or method of one, or such a `__call__`."""
    from inspect import iscoroutinefunction

    from mlkit.resilience._fallback import Fallback

    if isinstance(fn, Fallback):
        return fn.is_async
    return iscoroutinefunction(fn) or iscoroutinefunction(
        _code_of(fn)
    )  # AsyncMock is only the first


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


def _direct(policy: Policy) -> bool:
    """Whether nothing but the breaker and the budget have a say while calls succeed."""
    return (
        policy.timeout is None
        and policy.deadline is None
        and policy.bulkhead is None
        and policy.rate is None
        and policy.hedge is None
        and policy.accept is None
        and (policy.breaker is None or policy.breaker.slow is None)
    )


def _parts(plan: Plan) -> tuple[Machine, Budget]:
    policy = plan.policy
    machine = ALWAYS_CLOSED if policy.breaker is None else policy.breaker._machine  # noqa: SLF001
    budget = None if policy.retry is None else policy.retry.budget
    return machine, budget or _ALWAYS_FULL


def _bind_sync(plan: Plan, fn: Callable[_P, _R]) -> Callable[_P, _R]:
    policy, limits = plan.policy, plan.policy._limits  # noqa: SLF001 - one object in two files
    if policy.bulkhead is not None or policy.rate is not None:

        def limited(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with limits.admitted(plan.name):
                return _run_sync(plan, Attempts(plan), fn, args, kwargs)

        return limited
    if not _direct(policy):
        return lambda *args, **kwargs: _run_sync(plan, Attempts(plan), fn, args, kwargs)
    machine, budget = _parts(plan)
    surroundings = AMBIENT.get

    def direct(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ring = machine.ring  # the window of the closed breaker is the ticket
        if ring is None or surroundings() is not None:
            return _run_sync(plan, Attempts(plan), fn, args, kwargs)
        try:
            answer = fn(*args, **kwargs)
        except Exception as error:
            attempts, pause = _first_failed(plan, ring, error)
            if pause is None:
                raise
        else:
            if type(answer) is CoroutineType:
                raise _unexpected_coroutine(plan, answer)
            ring.append(OK)
            if budget.level < budget.full:
                budget.earn()
            return answer
        current().sleep(pause)
        return _run_sync(plan, attempts, fn, args, kwargs)

    return direct


def _run_sync(
    plan: Plan, attempts: Attempts, fn: Callable[..., _R], args: Any, kwargs: dict[str, Any]
) -> _R:
    while True:
        attempts.made += 1
        try:
            with Trial(plan, attempts) as trial:
                answer = fn(*args, **kwargs)
                if type(answer) is CoroutineType:
                    raise _unexpected_coroutine(plan, answer)
                trial.check(answer)
        except Exception as error:
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            _earn(plan)
            return answer
        current().sleep(pause)  # outside of `except`: the failed attempt and what it held are gone


def _bind_async(
    plan: Plan, fn: Callable[_P, Coroutine[Any, Any, _R]]
) -> Callable[_P, Coroutine[Any, Any, _R]]:
    policy, limits = plan.policy, plan.policy._limits  # noqa: SLF001 - one object in two files
    if policy.bulkhead is not None or policy.rate is not None:

        async def limited(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with limits.admitted(plan.name):
                return await _run_async(plan, Attempts(plan), fn, args, kwargs)

        return limited
    machine, budget = _parts(plan)
    surroundings = AMBIENT.get
    straight = _direct(policy)

    async def direct(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ring = machine.ring  # the window of the closed breaker is the ticket
        if ring is None or not straight or surroundings() is not None:
            return await _run_async(plan, Attempts(plan), fn, args, kwargs)
        try:
            answer = await fn(*args, **kwargs)
        except Exception as error:
            attempts, pause = _first_failed(plan, ring, error)
            if pause is None:
                raise
        else:
            ring.append(OK)
            if budget.level < budget.full:
                budget.earn()
            return answer
        await current().asleep(pause)
        return await _run_async(plan, attempts, fn, args, kwargs)

    return direct


async def _run_async(
    plan: Plan,
    attempts: Attempts,
    fn: Callable[..., Coroutine[Any, Any, _R]],
    args: Any,
    kwargs: dict[str, Any],
) -> _R:
    policy = plan.policy
    while True:
        attempts.made += 1
        try:
            if policy.hedge is None:
                answer = await _attempt(plan, attempts, fn, args, kwargs)
            else:
                answer = await hedged(policy, partial(_attempt, plan, attempts, fn, args, kwargs))
        except Exception as error:
            pause = attempts.pause(error)
            if pause is None:
                raise
        else:
            _earn(plan)
            return answer
        await current().asleep(pause)


async def _attempt(
    plan: Plan,
    attempts: Attempts,
    fn: Callable[..., Coroutine[Any, Any, _R]],
    args: Any,
    kwargs: dict[str, Any],
) -> _R:
    with Trial(plan, attempts) as trial:
        if trial.limit is None:
            answer = await fn(*args, **kwargs)
        else:
            import asyncio

            try:
                async with asyncio.timeout(trial.limit) as scope:
                    answer = await fn(*args, **kwargs)
            except TimeoutError:
                if scope.expired():
                    raise trial.late() from None
                raise  # the function's own
        trial.check(answer)
        return answer


def _first_failed(plan: Plan, ring: deque[int], error: Exception) -> tuple[Attempts, float | None]:
    attempts = Attempts(plan, made=1)
    if plan.policy.breaker is not None:
        plan.policy.breaker.failed(ring, error)
    return attempts, attempts.pause(error)


def _earn(plan: Plan) -> None:
    retry = plan.policy.retry
    if retry is not None and retry.budget is not None:
        retry.budget.earn()


def _unexpected_coroutine(plan: Plan, coroutine: Any) -> ConfigurationError:
    coroutine.close()
    return ConfigurationError(
        f"Policy(...)({plan.name})",
        type(coroutine),
        "an answer, since it is not an `async def`",
        hint="guard the `async def` itself: nothing has run yet when a coroutine is returned",
    )
