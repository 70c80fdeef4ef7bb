"""How the blocks speak about themselves: counters that are pulled, events that are pushed.

Success is counted. A `Counter` costs one dictionary update whether or not anybody ever reads it;
`collect()` reads them all. Transitions (a breaker opened, flags changed, a batch was split after
running out of memory) are pushed as one frozen `Event` to the listeners. Any callable can
listen; ready-made listeners for structlog, OpenTelemetry and Prometheus are still to come.

Arguments, rows and results never appear in either: a batch may be a patient.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, final, runtime_checkable

from mlkit._clock import current
from mlkit.errors import ConfigurationError, DegradedWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

__all__ = [
    "Counter",
    "Event",
    "Sample",
    "Source",
    "Subscription",
    "collect",
    "emit",
    "listen",
    "register",
]


class Event(NamedTuple):
    """One transition.

    Attributes:
        kind: What happened, `"<block>.<noun>.<verb>"`: `"resilience.breaker.opened"`.
        name: The object it happened to: the breaker's, flag's or run's name.
        time: Unix time in seconds.
        fields: Facts about it: text, numbers, booleans or None, read-only.
    """

    kind: str
    name: str
    time: float
    fields: Mapping[str, str | float | bool | None]


class Sample(NamedTuple):
    """The value of one counter or gauge at the time of reading.

    Attributes:
        name: The metric, `"<block>_<noun>_<unit>"`: `"inference_rows_total"`.
        labels: What tells it from others of the same name, as sorted pairs.
        value: Its value.
    """

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@runtime_checkable
class Source(Protocol):
    """Something that can say how it is when asked."""

    def samples(self) -> Iterable[Sample]:
        """Return the present values. Called from any thread; must not block."""
        ...


@final
class Counter:
    """A count that many threads may add to without a lock, and that only reading sums up.

    Thread-safe. After a fork the child goes on from the parent's count.

    Args:
        name: The metric, `"inference_rows_total"`.
        **labels: What tells it from others of the same name.

    Examples:
        >>> rows = Counter("inference_rows_total", model="digits")
        >>> rows.add(3)
        >>> rows.value
        3
    """

    __slots__ = ("__weakref__", "_cells", "labels", "name")
    name: str
    labels: tuple[tuple[str, str], ...]

    def __init__(self, name: str, **labels: str) -> None:
        self.name = name
        self.labels = tuple(sorted(labels.items()))
        # A cell per thread: `+=` on a shared number would lose updates. A thread's number may be
        # given to a later thread, which then goes on with its cell.
        self._cells: dict[int, int] = {}

    def add(self, n: int = 1) -> None:
        """Add *n* to the count."""
        cells, thread = self._cells, threading.get_ident()
        cells[thread] = cells.get(thread, 0) + n

    @property
    def value(self) -> int:
        """The sum over all threads."""
        return sum(self._cells.copy().values())

    def samples(self) -> tuple[Sample]:
        """Return the count as one sample."""
        return (Sample(self.name, self.labels, self.value),)

    def __repr__(self) -> str:
        labels = ", ".join(f"{key}={value!r}" for key, value in self.labels)
        return f"<Counter {self.name}{{{labels}}} = {self.value}>"


_lock = threading.Lock()
_sources: weakref.WeakSet[Source] = weakref.WeakSet()
_everywhere: tuple[Callable[[Event], object], ...] = ()
_here: ContextVar[tuple[Callable[[Event], object], ...]] = ContextVar("mlkit.listeners", default=())


def register(source: Source) -> None:
    """Let `collect()` read *source* for as long as it lives; it is held weakly.

    Args:
        source: Any object with a `samples` method.
    """
    with _lock:
        _sources.add(source)


def collect() -> list[Sample]:
    """Return the present value of every counter and gauge of every living source, sorted by name and labels.

    Samples of the same name and labels are added up, so that two batchers of one model read as one.
    """
    with _lock:
        sources = list(_sources)
    totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for source in sources:
        for name, labels, value in source.samples():
            totals[name, labels] = totals.get((name, labels), 0) + value
    return [Sample(name, labels, value) for (name, labels), value in sorted(totals.items())]


def emit(kind: str, name: str, /, **fields: str | float | bool | None) -> None:
    """Push one event to all who listen; costs next to nothing when nobody does.

    A listener that raises is reported once as a `DegradedWarning` and never disturbs the caller or
    other listeners.

    Args:
        kind: What happened, see `Event.kind`.
        name: The object it happened to.
        **fields: Facts about it. Never arguments, rows or results of user code.
    """
    listeners = _everywhere + _here.get()
    if not listeners:
        return
    event = Event(kind, name, current().time(), MappingProxyType(fields))
    for listener in listeners:
        try:
            listener(event)
        except Exception as error:  # noqa: BLE001 - a broken listener must not break what it listens to
            message = (
                f"telemetry listener {listener!r} failed on {kind}: {type(error).__name__}: {error}"
            )
            warnings.warn(message, DegradedWarning, stacklevel=2)


@final
class Subscription:
    """A listener at work. Call `close()`, or use it as a context manager, to stop listening.

    Made by `listen`. `close()` may be called more than once, from any thread.
    """

    __slots__ = ("_listener", "_scope")

    def __init__(self, listener: Callable[[Event], object], scope: str) -> None:
        self._listener: Callable[[Event], object] | None = listener
        self._scope = scope

    def close(self) -> None:
        """Stop listening."""
        global _everywhere  # noqa: PLW0603 - a copy-on-write tuple: readers never lock
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if self._scope == "context":
            _here.set(_without(_here.get(), listener))
            return
        with _lock:
            _everywhere = _without(_everywhere, listener)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()


def listen(listener: Callable[[Event], object], *, scope: str = "process") -> Subscription:
    """Call *listener* with every event from now on.

    It runs in the thread that caused the event, so it should only note and return.

    Args:
        listener: A callable of one `Event`.
        scope: `"process"`, or `"context"` for events of this context (task, or thread) and what it
            starts.

    Returns:
        The subscription, to be closed.

    Raises:
        ConfigurationError: If *listener* is not callable or *scope* is neither.

    Examples:
        >>> seen = []
        >>> with listen(seen.append, scope="context"):
        ...     emit("resilience.breaker.opened", "ranker", failures=5)
        >>> seen[0].kind, seen[0].fields["failures"]
        ('resilience.breaker.opened', 5)
    """
    global _everywhere  # noqa: PLW0603 - a copy-on-write tuple: readers never lock
    if not callable(listener):
        raise ConfigurationError("listen(listener)", listener, "a callable of one Event")
    if scope == "context":
        _here.set((*_here.get(), listener))
    elif scope == "process":
        with _lock:
            _everywhere = (*_everywhere, listener)
    else:
        raise ConfigurationError("listen(scope=...)", scope, "'process' or 'context'")
    return Subscription(listener, scope)


def _without(
    listeners: tuple[Callable[[Event], object], ...], gone: Callable[[Event], object]
) -> tuple[Callable[[Event], object], ...]:
    kept = list(listeners)
    for index, listener in enumerate(kept):
        if listener is gone:
            del kept[index]
            break
    return tuple(kept)
