"""The tiers of a fallback: a function, the last good answer, a constant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, final

from mlkit._arguments import seconds, whole
from mlkit.errors import ConfigurationError
from mlkit.resilience._bind import (
    bound_opener,
    bound_plan,
    is_async,
    is_stream,
    name_of,
    plan_of,
    unpacked,
)
from mlkit.resilience._bind_sync import bind_sync
from mlkit.resilience._breaker import Breaker
from mlkit.resilience._gates import Gate
from mlkit.resilience._policy import Policy
from mlkit.resilience._rows import copied
from mlkit.resilience._settings import checked_name
from mlkit.resilience._store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from mlkit.resilience._bind_sync import Packed

__all__ = ["Switch", "Tier", "constant", "stale", "tier"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_OWN_BREAKER: Any = "a breaker of its own"


class Switch(NamedTuple):
    """What says whether a tier is asked at all."""

    fn: Callable[..., Any]
    name: str
    bare: bool  # whether it is called without arguments

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether the tier is on for a call with these arguments."""
        on = self.fn() if self.bare else self.fn(*args, **kwargs)
        if not isinstance(on, bool):
            raise ConfigurationError(f"tier(when={self.name})", type(on), "a bool from it")
        return on


@final
class Tier(Generic[_P, _R]):
    """One step of a fallback. Made by `tier`, `stale` and `constant`; immutable.

    Picklable if what it is made of is; the copy of a breaker is a fresh one.

    Attributes:
        name: Its name in provenance, errors and telemetry.
        kind: `"function"`, `"stream"`, `"stale"` or `"constant"`.
        is_async: Whether its function is an `async def` or an async generator function.
        accept: What its answers must pass, or None.
        when: What says whether it is asked, or None.
        breaker: The breaker of its policy, or None.
        fn: The function itself, or None.
        run: What is called, or None for a stale tier; of a stream, what opens it.
        make: What makes the store of a stale tier, one for each fallback.
    """

    __slots__ = (
        "_made_by",
        "_packed",
        "accept",
        "breaker",
        "fn",
        "is_async",
        "kind",
        "make",
        "name",
        "run",
        "when",
    )

    name: str
    kind: str
    is_async: bool
    accept: Gate | None
    when: Switch | None
    breaker: Breaker | None
    fn: Callable[..., Any] | None
    run: Callable[..., Any] | None
    make: Callable[[], Store] | None
    _packed: Packed | None

    def __init__(
        self,
        name: str,
        kind: str,
        made_by: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]],
        *,
        run: Callable[..., Any] | None = None,
        fn: Callable[..., Any] | None = None,
        make: Callable[[], Store] | None = None,
        is_async: bool = False,
        accept: Gate | None = None,
        when: Switch | None = None,
        breaker: Breaker | None = None,
        packed: Packed | None = None,
    ) -> None:
        self.name, self.kind, self.run, self.make, self.fn = name, kind, run, make, fn
        self.is_async, self.accept, self.when, self.breaker = is_async, accept, when, breaker
        self._made_by, self._packed = made_by, packed

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, self._made_by

    def __repr__(self) -> str:
        gate = "" if self.accept is None else f", accept={self.accept!r}"
        switch = "" if self.when is None else f", when={self.when.name}"
        return f"<Tier {self.name!r}: {self.kind}{switch}{gate}>"


def _made_again(
    make: Callable[..., Tier[..., Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tier[..., Any]:
    return make(*args, **kwargs)


def tier(
    fn: Callable[_P, _R],
    /,
    *,
    policy: Policy | None = _OWN_BREAKER,
    accept: Gate | Callable[[Any], Any] | None = None,
    when: Callable[..., bool] | None = None,
    name: str | None = None,
) -> Tier[_P, _R]:
    """Return a tier that asks a function.

    Args:
        fn: A `def`, `async def`, generator function or async generator function, or what behaves like one.
        policy: What is done around each call; default `Policy(breaker=Breaker())`, so that a tier that is down is skipped
            and not waited for. None for nothing.
        accept: A gate or callable of the answer; an answer that does not pass goes to the next tier and is no failure
            for the breaker. With `per_row=True`, only the rows that do not pass.
        when: A switch: the tier is asked only if this says True. Called without arguments if it can be (a flag's handle,
            a kill switch), else with those of the call (a domain that the tier knows). One that raises is a tier that
            does not answer.
        name: Its name; default the policy's, else the function's.

    Returns:
        The tier.

    Raises:
        ConfigurationError: If *fn* is not callable, or another argument is not what it must be.

    Examples:
        >>> tier(max, name="big", accept=lambda y: y > 0)
        <Tier 'big': function, accept=<lambda>>
    """
    if isinstance(fn, Tier):
        raise ConfigurationError("tier(fn)", fn, "a function", hint="it is a tier already")
    if not callable(fn):
        raise ConfigurationError(
            "tier(fn)",
            fn,
            "a callable",
            hint="pass a method of it, or constant(...) of a fixed answer",
        )
    if policy is _OWN_BREAKER:
        policy = Policy(breaker=Breaker())
    elif policy is None:
        policy = Policy()
    elif not isinstance(policy, Policy):
        raise ConfigurationError("tier(policy=...)", policy, "a Policy, or None")
    name = checked_name("tier(name=...)", name) or policy.name or name_of(fn)
    if policy.breaker is not None:
        policy.breaker._adopt(name)  # noqa: SLF001 - one room
    guarded = _as_function(fn)
    stream = is_stream(guarded)
    label = policy.name or name
    packed = None
    if stream:
        run = bound_opener(policy, guarded, name=label)
    elif is_async(guarded):
        run = bound_plan(plan_of(policy, guarded, label), guarded)
    else:
        packed = bind_sync(plan_of(policy, guarded, label), guarded)
        run = unpacked(packed)
    return Tier(
        name,
        "stream" if stream else "function",
        (tier, (fn,), {"policy": policy, "accept": accept, "when": when, "name": name}),
        run=run,
        fn=fn,
        is_async=is_async(guarded),
        accept=None if accept is None else Gate.of("tier(accept=...)", accept),
        when=None if when is None else _switch(when),
        breaker=policy.breaker,
        packed=packed,
    )


def stale(
    max_age: float,
    *,
    key: Callable[..., Hashable] | None = None,
    maxsize: int = 1024,
    name: str = "stale",
) -> Tier[..., Any]:
    """Return a tier that gives the last good answer of the tiers above for the same arguments.

    Answers are copied when they are kept and again when they are given, so that no caller can change them, where they are
    arrays, tensors, pandas tables, lists, or dicts, tuples and dataclasses of these; an object of another kind is kept as
    it is. The least recently used goes first; of the arguments only a digest is kept. With `per_row` rows are kept and
    found one by one.

    Args:
        max_age: Seconds after which an answer is too old.
        key: From the arguments (with `per_row`, from a row of each batch) to what tells them apart; default their digest.
            Arguments without one are not kept, and a `DegradedWarning` says so.
        maxsize: Answers kept, at least 1.
        name: Its name.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Note:
        Keeping costs a digest of the arguments on every good answer, about 5 us for a few numbers; per row with
        `per_row`.
    """
    seconds("stale(max_age)", max_age)
    whole("stale(maxsize=...)", maxsize, low=1)
    if key is not None and not callable(key):
        raise ConfigurationError("stale(key=...)", key, "a callable of the arguments, or None")
    label = checked_name("stale(name=...)", name) or "stale"
    return Tier(
        label,
        "stale",
        (stale, (max_age,), {"key": key, "maxsize": maxsize, "name": label}),
        make=lambda: Store(max_age, key, maxsize, label),
    )


def constant(value: _R | Callable[..., _R], *, name: str = "constant") -> Tier[..., _R]:
    """Return a tier that always gives *value*, e.g. a prior; what can be changed, as a copy.

    With `per_row` it is the answer of each row, and a dict, named tuple or dataclass holds one value for each column. If
    no tier above returned anything, rows come in the kind of container of the batch.

    Args:
        value: The answer, or a function of it: called without arguments if it can be, else with those of the call.
        name: Its name.

    Raises:
        ConfigurationError: If *value* is an `async def`.

    Examples:
        >>> constant(0.5)
        <Tier 'constant': constant>
    """
    label = checked_name("constant(name=...)", name) or "constant"
    made_by = constant, (value,), {"name": label}
    packed: Packed
    if callable(value):
        if is_async(value) or is_stream(value):
            raise ConfigurationError("constant(value)", value, "a value, or a `def`")
        give: Callable[..., Any] = value
        packed = lambda args, kwargs: give(*args, **kwargs)  # noqa: E731
        if _needs_nothing(value):
            packed = lambda _args, _kwargs: give()  # noqa: E731
    elif copied(value) is value:
        packed = lambda _args, _kwargs: value  # noqa: E731
    else:
        packed = lambda _args, _kwargs: copied(value)  # noqa: E731
    return Tier(label, "constant", made_by, run=unpacked(packed), packed=packed)


def _as_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return *fn*; a fallback that cannot be seen to be awaited or read, as a function that can."""
    from mlkit.resilience._fallback import Fallback
    from mlkit.resilience._method import BoundFallback

    inner = fn.__func__ if isinstance(fn, BoundFallback) else fn
    if not isinstance(inner, Fallback) or (inner is fn and inner.stream is None):
        return fn

    def streamed(*args: Any, **kwargs: Any) -> Any:
        return (yield from fn(*args, **kwargs))

    async def streamed_async(*args: Any, **kwargs: Any) -> Any:
        stream = fn(*args, **kwargs)
        try:
            async for item in stream:
                yield item
        finally:
            await stream.aclose()

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    if inner.stream is not None:
        return streamed_async if inner.is_async else streamed
    return awaited if inner.is_async else fn


def _switch(fn: Callable[..., Any]) -> Switch:
    if not callable(fn) or is_async(fn) or is_stream(fn):
        raise ConfigurationError("tier(when=...)", fn, "a `def` that returns a bool, or None")
    known = getattr(fn, "key", None)  # what a flag's handle is called
    return Switch(fn, known if isinstance(known, str) else name_of(fn), _needs_nothing(fn))


def _needs_nothing(fn: Callable[..., Any]) -> bool:
    """Return whether *fn* can be called without arguments."""
    from inspect import Parameter, signature

    try:
        parameters = signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not say
        return False
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return all(one.default is not one.empty or one.kind in variadic for one in parameters)
