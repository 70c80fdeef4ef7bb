"""The tiers of a fallback: a function, the last good answer, a constant."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, final

from mlkit._arguments import seconds, whole
from mlkit._clock import current
from mlkit.errors import ConfigurationError, DegradedWarning, DigestError
from mlkit.resilience._bind import bound, is_async, name_of
from mlkit.resilience._breaker import Breaker, checked_name
from mlkit.resilience._gates import Gate
from mlkit.resilience._kinds import is_array, is_tensor
from mlkit.resilience._policy import Policy
from mlkit.resilience._rows import copied

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Tier", "constant", "stale", "tier"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_OWN_BREAKER: Any = "a breaker of its own"


@final
class Tier(Generic[_P, _R]):
    """One step of a fallback. Made by `tier`, `stale` and `constant`; immutable.

    Attributes:
        name: Its name in provenance, errors and telemetry.
        kind: `"function"`, `"stale"` or `"constant"`.
        is_async: Whether its function is an `async def`.
        accept: What its answers must pass, or None.
        breaker: The breaker of its policy, or None.
        run: What is called, or None for a stale tier.
        make: What makes the store of a stale tier, one for each fallback.
    """

    __slots__ = ("accept", "breaker", "is_async", "kind", "make", "name", "run")

    name: str
    kind: str
    is_async: bool
    accept: Gate | None
    breaker: Breaker | None
    run: Callable[..., Any] | None
    make: Callable[[], Store] | None

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        run: Callable[..., Any] | None = None,
        make: Callable[[], Store] | None = None,
        is_async: bool = False,
        accept: Gate | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.name, self.kind, self.run, self.make = name, kind, run, make
        self.is_async, self.accept, self.breaker = is_async, accept, breaker

    def __repr__(self) -> str:
        gate = "" if self.accept is None else f", accept={self.accept!r}"
        return f"<Tier {self.name!r}: {self.kind}{gate}>"


def tier(
    fn: Callable[_P, _R],
    /,
    *,
    policy: Policy | None = _OWN_BREAKER,
    accept: Gate | Callable[[Any], Any] | None = None,
    name: str | None = None,
) -> Tier[_P, _R]:
    """Return a tier that asks a function.

    Args:
        fn: A `def` or `async def`, or what behaves like one.
        policy: What is done around each call; default `Policy(breaker=Breaker())`, so that a tier that is down is skipped
            and not waited for. None for nothing.
        accept: A gate or callable of the answer; an answer that does not pass goes to the next tier and is no failure
            for the breaker. With `per_row=True`, only the rows that do not pass.
        name: Its name; default the policy's, else the function's.

    Returns:
        The tier.

    Raises:
        ConfigurationError: If *fn* is not callable, or is a generator function: a stream cannot change tiers half-way.

    Examples:
        >>> tier(max, name="big", accept=lambda y: y > 0)
        <Tier 'big': function, accept=<lambda>>
    """
    from inspect import isasyncgenfunction, isgeneratorfunction

    if isinstance(fn, Tier):
        raise ConfigurationError("tier(fn)", fn, "a function", hint="it is a tier already")
    if not callable(fn):
        raise ConfigurationError("tier(fn)", fn, "a callable")
    if isgeneratorfunction(fn) or isasyncgenfunction(fn):
        raise ConfigurationError(
            "tier(fn)",
            fn,
            "a `def` or `async def` that returns its answer",
            hint="a stream cannot change tiers half-way; decorate the generator with a Policy instead",
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
    return Tier(
        name,
        "function",
        run=bound(policy, fn, name=policy.name or name),
        is_async=is_async(fn),
        accept=None if accept is None else Gate.of("tier(accept=...)", accept),
        breaker=policy.breaker,
    )


def stale(
    max_age: float,
    *,
    key: Callable[..., Hashable] | None = None,
    maxsize: int = 1024,
    name: str = "stale",
) -> Tier[..., Any]:
    """Return a tier that gives the last good answer of the tiers above for the same arguments.

    Answers are kept as copies where they are arrays, tensors or lists, the least recently used going first; of the
    arguments only a digest is kept. With `per_row=True` rows are kept and found one by one.

    Args:
        max_age: Seconds after which an answer is too old.
        key: From the arguments (with `per_row`, from a row) to what tells them apart; default their digest. Arguments
            without one are not kept, and a `DegradedWarning` says so.
        maxsize: Answers kept, at least 1.
        name: Its name.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Note:
        Keeping costs a digest of the arguments on every good answer, about 5 us for a few numbers; per row with
        `per_row=True`.
    """
    seconds("stale(max_age)", max_age)
    whole("stale(maxsize=...)", maxsize, low=1)
    if key is not None and not callable(key):
        raise ConfigurationError("stale(key=...)", key, "a callable of the arguments, or None")
    label = checked_name("stale(name=...)", name) or "stale"
    return Tier(label, "stale", make=lambda: Store(max_age, key, maxsize, label))


def constant(value: _R, *, name: str = "constant") -> Tier[..., _R]:
    """Return a tier that always gives *value*, e.g. a prior; arrays, tensors and lists as a copy.

    Args:
        value: The answer; with `per_row=True` the answer of each row.
        name: Its name.

    Examples:
        >>> constant(0.5)
        <Tier 'constant': constant>
    """
    label = checked_name("constant(name=...)", name) or "constant"
    if isinstance(value, list) or is_array(value) or is_tensor(value):
        return Tier(label, "constant", run=lambda *_args, **_kwargs: copied(value))
    return Tier(label, "constant", run=lambda *_args, **_kwargs: value)


@final
class Store:
    """The good answers of one fallback, by key. Thread-safe."""

    def __init__(
        self, max_age: float, key: Callable[..., Hashable] | None, maxsize: int, name: str
    ) -> None:
        self._max_age, self._key, self._maxsize, self._name = max_age, key, maxsize, name
        self._kept: dict[Hashable, tuple[float, Any]] = {}
        self._lock = threading.Lock()
        self._warned = False
        self.like: Any = None
        """An empty batch of the kind that the kept rows came from."""

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
        """Return what tells these arguments from others, or None if there is nothing."""
        from mlkit._digest import digest

        try:
            if self._key is not None:
                key = self._key(*args, **kwargs)
                hash(key)
                return key
            return digest([_plain(args), _plain(kwargs)] if kwargs else _plain(args))
        except Exception as error:  # noqa: BLE001 - the answer is there; only keeping it fails
            if not self._warned:
                self._warned = True
                import warnings

                hint = "; give stale(key=...)" if isinstance(error, DigestError) else ""
                warnings.warn(
                    f"tier {self._name!r} keeps nothing: {type(error).__name__}: {error}{hint}",
                    DegradedWarning,
                    stacklevel=2,
                )
            return None

    def row_key(self, row: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable | None:
        """Return what tells a row from others, or None if there is nothing."""
        return self.key((row,), {}) if self._key is not None else self.key((row, *args), kwargs)

    def keep(self, key: Hashable | None, answer: Any) -> None:
        """Keep a copy of *answer*."""
        if key is None:
            return
        if is_tensor(answer):
            answer = answer.detach()  # or it would keep its graph
        entry = current().monotonic(), copied(answer)
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = entry
            if len(self._kept) > self._maxsize:
                del self._kept[next(iter(self._kept))]

    def find(self, key: Hashable | None) -> tuple[Any] | None:
        """Return a copy of what was kept, as a tuple of one, or None."""
        if key is None:
            return None
        now = current().monotonic()
        with self._lock:
            entry = self._kept.get(key)
            if entry is None or now - entry[0] > self._max_age:
                self._kept.pop(key, None)
                return None
            self._kept[key] = self._kept.pop(key)
        return (copied(entry[1]),)

    def missing(self) -> LookupError:
        """Return the error that says that nothing was kept."""
        return LookupError(f"no answer to these arguments in the last {self._max_age:g} s")


def _plain(value: Any) -> Any:
    """Return *value* with its tensors as something that has a digest."""
    from mlkit._digest import digest_bytes

    if is_tensor(value):
        if value.requires_grad or value.device.type != "cpu":
            value = value.detach().cpu()
        if value.dtype.is_floating_point and value.element_size() == 2:  # NumPy has no bfloat16
            return [str(value.dtype), value.float().numpy()]
        return value.numpy()
    if is_array(value) and value.dtype.kind in "fiub" and value.ndim:
        return [
            value.dtype.str,
            list(value.shape),
            digest_bytes(value.tobytes()),
        ]  # far faster than the general encoding for a small row
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
