"""From a policy and a function to a function: what kind of function it is decides how it is guarded."""

from __future__ import annotations

from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from mlkit.errors import ConfigurationError
from mlkit.resilience._bind_sync import bind_sync, unlimited_sync
from mlkit.resilience._plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.resilience._bind_sync import Packed
    from mlkit.resilience._limits import Permit
    from mlkit.resilience._policy import Policy

__all__ = [
    "bound",
    "bound_opener",
    "bound_plan",
    "decorated",
    "is_async",
    "is_stream",
    "name_of",
    "packed",
    "plan_of",
    "unpacked",
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
    if not is_async(fn):
        run = bind_sync(plan, fn)
        simply = plan.breaker is None or plan.policy.limited  # which has its turn before a breaker
        return unpacked(run) if simply else _refusing(plan, run)
    from mlkit.resilience._bind_async import bind_async  # brings asyncio

    return bind_async(plan, fn)


def _refusing(plan: Plan, run: Packed) -> Callable[..., Any]:
    """As `unpacked`, and asks the breaker first: an error costs 0.1 us for each function that it comes through."""
    machine, blocked = plan.machine, plan.blocked

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if machine.ring is None and (wait := blocked()) is not None:
            raise plan.refused(wait)
        return run(args, kwargs)

    return guarded


def packed(policy: Policy, fn: Callable[..., Any]) -> Packed:
    """Return *fn* guarded by *policy*, called with a tuple and a dict."""
    if is_stream(fn) or is_async(fn):
        guarded = bound(policy, fn)
        return lambda args, kwargs: guarded(*args, **kwargs)
    return bind_sync(plan_of(policy, fn, None), fn)


def unpacked(run: Packed) -> Callable[..., Any]:
    """Return a function that is called as any other is."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        return run(args, kwargs)

    return guarded


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
        run = unlimited_sync(plan, opener)
        if not policy.limited:
            return unpacked(run)

        def opened(*args: Any, **kwargs: Any) -> Any:
            permit: Permit | None = limits.admitted(plan.name)
            try:
                stream = run(args, kwargs).hold(permit)
                permit = None
                return stream
            finally:
                if permit is not None:
                    permit.release()

        return opened
    from mlkit.resilience._bind_async import unlimited_async  # brings asyncio

    guarded = unlimited_async(plan, opener)
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
    if (
        stream
        and policy.stream != "buffer"
        and not (policy.accept is None and policy.verdict is None)
    ):
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
