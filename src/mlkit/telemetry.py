"""How the blocks speak about themselves: counters that are pulled, events that are pushed.

Success is counted. A `Counter` costs one dictionary update whether or not anybody ever reads it;
`collect()` reads them all. Transitions (a breaker opened, flags changed, a batch was split after
running out of memory) are pushed as one frozen `Event` to the listeners. Any callable can
listen; `mlkit.integrations` has listeners for structlog, OpenTelemetry and Prometheus.

Arguments, rows and results never appear in either: a batch may be a patient.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, final, runtime_checkable

from mlkit._clock import current
from mlkit.errors import ConfigurationError, DegradedWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

__all__ = [
    "Counter",
    "Event",
    "Reader",
    "Sample",
    "Source",
    "Subscription",
    "collect",
    "emit",
    "known_metrics",
    "listen",
    "register",
]


_Series = tuple[str, tuple[tuple[str, str], ...]]

_METRICS: Mapping[str, str] = MappingProxyType({
    "flags_errors_total": "Evaluations that ended in the default because of an error.",
    "flags_evaluations_total": "Evaluations of a flag.",
    "flags_exposure_failures_total": "Exposures that could not be recorded.",
    "flags_exposures_total": "Exposures recorded, once for each unit.",
    "flags_fallbacks_total": "Decisions for the control because the candidate could not answer.",
    "flags_rollout_share": "Share of the units that a rollout gives its candidate now.",
    "flags_snapshot_age_seconds": "Seconds since the flags in use were read or confirmed.",
    "inference_batches_total": "Batches that ran, by their number of rows.",
    "inference_calls_total": "Calls of the model, those that isolate a bad row included.",
    "inference_joined_total": "Callers that shared the run of a row of the same key.",
    "inference_latency_seconds": "From the arrival of a row to its outcome, quantiles over recent rows.",
    "inference_rejections_total": "Rows refused on arrival, by reason.",
    "inference_rows_total": "Rows by how they ended.",
    "inference_running_rows": "Rows in the batch that runs now.",
    "inference_waiting_rows": "Rows in the queue now.",
    "models_loads_total": "Versions loaded and verified.",
    "models_log_repairs_total": "Torn ends of an event log that were cut off.",
    "models_saves_total": "Versions saved.",
    "registry_builds_total": "Objects built.",
    "registry_imports_total": "Lazy entries imported.",
    "resilience_abandoned_threads": "Threads left behind by a timeout that have not ended.",
    "resilience_answers_total": "Answers, or rows with per_row, by the tier that gave them.",
    "resilience_breaker_state": "0 closed, 1 half-open, 2 open, 3 isolated, 4 disabled.",
    "resilience_budget_tokens": "Retries and hedges that a budget would still pay for.",
    "resilience_hedges_total": "Attempts started beside a slow one.",
    "resilience_rejections_total": "Calls refused by a breaker, bulkhead or rate.",
    "resilience_retries_total": "Attempts after the first.",
    "telemetry_events_total": "Events by kind and by what they happened to.",
    "tracking_lost_records_total": "Records that could not be written.",
    "tracking_records_total": "Records written to a journal.",
})  # fmt: skip


def known_metrics() -> Mapping[str, str]:
    """Return the stable names of what the blocks count and what each means; exporters put `mlkit` in front."""
    return _METRICS


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
        name: The metric, `"<block>_<noun>_<unit>"`: `"inference_rows_total"`. What only grows ends in
            `_total`; everything else may go up and down.
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

    def __init__(self, name: str, /, **labels: str) -> None:
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


_lock = threading.RLock()  # reentrant: a finalizer may run, and register, while it is held
_sources: dict[int, weakref.ref[Source]] = {}
_retired: dict[_Series, float] = {}
_MAX_RETIRED = 10_000
_OTHER = "(other)"
_everywhere: tuple[Callable[[Event], object], ...] = ()
_here: ContextVar[tuple[Callable[[Event], object], ...]] = ContextVar("mlkit.listeners", default=())


def register(source: Source) -> None:
    """Let `collect()` read *source* for as long as it lives; it is held weakly.

    Args:
        source: Any object with a `samples` method.
    """
    place = id(source)

    def forget(reference: weakref.ref[Source]) -> None:
        with _lock:
            if _sources.get(place) is reference:
                del _sources[place]
            if cells:
                series = name, labels
                if series not in _retired and len(_retired) >= _MAX_RETIRED:
                    series = name, tuple((key, _OTHER) for key, _ in labels)
                _retired[series] = _retired.get(series, 0) + sum(cells.values())

    # A counter that died has counted all the same: `Reader` goes on from there.
    name, labels, cells = (
        (source.name, source.labels, source._cells)  # noqa: SLF001 - one class of this module
        if isinstance(source, Counter)
        else ("", (), None)
    )
    with _lock:
        known = _sources.get(place)
        if known is None or known() is not source:
            _sources[place] = weakref.ref(source, forget)


def collect() -> list[Sample]:
    """Return the present value of every counter and gauge of every living source, sorted by name and labels.

    Samples of the same name and labels read as one, so that two batchers of one model do: they are added up, except
    for what has no sum (names that end in `_seconds`, `_share` or `_state`), of which the largest is taken. A source that
    raises is reported as a `DegradedWarning` and left out.
    """
    totals: dict[_Series, float] = {}
    for _, samples in _readings():
        _add(totals, samples)
    return _sorted(totals)


def _readings() -> Iterator[tuple[Source, list[Sample]]]:
    """Yield every living source and what it says."""
    with _lock:
        sources = [source for reference in _sources.values() if (source := reference()) is not None]
    for source in sources:
        try:
            # What is no number would break whoever adds it up.
            samples = [Sample(name, labels, value + 0) for name, labels, value in source.samples()]
        except Exception as error:  # noqa: BLE001 - a broken source must not hide the others
            _degraded(f"telemetry source {_named(type(source))}", "was left out", error)
            continue
        yield source, samples


def _add(totals: dict[_Series, float], samples: Iterable[Sample]) -> None:
    for name, labels, value in samples:
        known = totals.get((name, labels))
        if known is None:
            totals[name, labels] = value
        elif name.endswith(("_seconds", "_share", "_state")):
            totals[name, labels] = max(known, value)
        else:
            totals[name, labels] = known + value


def _sorted(totals: dict[_Series, float]) -> list[Sample]:
    return [Sample(name, labels, value) for (name, labels), value in sorted(totals.items())]


@final
class Reader:
    """What an exporter reads: as `collect`, with totals that never go down, events counted, and a bounded number of series.

    A source that dies takes its totals out of `collect`, which a metrics system would take for a restart. A reader
    keeps them: exactly for a `Counter`; for another source, what it last said to this reader.

    Thread-safe; `note` takes no lock. A forked child goes on from the parent's totals.

    Args:
        max_series: How many label sets of one metric are told apart; the totals of further ones are added up in a
            series whose labels all are `"(other)"`, and their gauges are left out.

    Examples:
        >>> reader = Reader()
        >>> reader.note(Event("resilience.breaker.opened", "ranker", 0.0, {}))
        >>> [s.value for s in reader.read() if s.name == "telemetry_events_total"]
        [1]
    """

    __slots__ = ("_events", "_gone", "_lock", "_names", "_pid", "_seen", "max_series")
    max_series: int

    def __init__(self, *, max_series: int = 1_000) -> None:
        if type(max_series) is not int or max_series < 1:
            raise ConfigurationError(
                "Reader(max_series=...)", max_series, "an integer of at least 1"
            )
        self.max_series = max_series
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._events: dict[tuple[str, str], Counter] = {}
        self._gone: dict[_Series, float] = {}
        self._names: dict[str, dict[_Series, None]] = {}
        self._seen: dict[int, tuple[weakref.ref[Source], dict[_Series, float]]] = {}

    def note(self, event: Event) -> None:
        """Count *event* in `telemetry_events_total{kind, name}`; to be given to `listen`.

        Args:
            event: What happened.
        """
        key = event.kind, event.name
        counter = self._events.get(key)
        if counter is None:
            if len(self._events) >= self.max_series:
                key = _OTHER, _OTHER
            new = Counter("telemetry_events_total", kind=key[0], name=key[1])
            counter = self._events.setdefault(key, new)
        counter.add()

    def read(self) -> list[Sample]:
        """Return every metric's present value, sorted by name and labels."""
        readings = list(_readings())  # user code: before the lock
        if self._pid != os.getpid():  # whoever held it is in the parent
            self._lock, self._pid = threading.RLock(), os.getpid()
        with self._lock:
            self._bury()
            totals = dict(self._gone)
            for source, samples in readings:
                _add(totals, samples)
                if not isinstance(source, Counter):
                    grown: dict[_Series, float] = {}
                    _add(grown, (sample for sample in samples if _only_grows(sample.name)))
                    self._seen[id(source)] = weakref.ref(source), grown
            with _lock:
                retired = list(_retired.items())
            _add(totals, (Sample(*series, value) for series, value in retired))
            for counter in self._events.copy().values():
                _add(totals, counter.samples())
            return self._bounded(_sorted(totals))

    def _bury(self) -> None:
        """Keep the totals of the sources that died."""
        for place, (reference, grown) in list(self._seen.items()):
            if reference() is None:
                del self._seen[place]
                _add(self._gone, (Sample(*series, value) for series, value in grown.items()))

    def _bounded(self, samples: list[Sample]) -> list[Sample]:
        bounded: dict[_Series, float] = {}
        for name, labels, value in samples:
            known = self._names.setdefault(name, {})
            if (name, labels) in known or len(known) < self.max_series:
                known[name, labels] = None
                _add(bounded, (Sample(name, labels, value),))
            elif _only_grows(name):
                other = tuple((key, _OTHER) for key, _ in labels)
                _add(bounded, (Sample(name, other, value),))
        return _sorted(bounded)


def _only_grows(name: str) -> bool:
    return name.endswith("_total")


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
            _degraded(f"telemetry listener {_named(listener)}", f"failed on {kind}", error)


def _named(thing: object) -> str:
    """Return a name without `repr`, which is code of a user and may raise."""
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


def _degraded(who: str, what: str, error: Exception) -> None:
    try:
        why = str(error)
    except Exception:  # noqa: BLE001 - an error without a text
        why = ""
    message = f"{who} {what}: {type(error).__name__}: {why}"
    try:
        warnings.warn(message, DegradedWarning, stacklevel=3)
    except Exception:  # noqa: BLE001 - warnings are errors here; still, the caller has done nothing wrong
        import logging

        logging.getLogger("mlkit").error(message)  # noqa: TRY400 - the trace would be that of the warning


@final
class Subscription:
    """A listener at work. Call `close()`, or use it as a context manager, to stop listening.

    Made by `listen`. `close()` may be called more than once, from any thread; that of a listener of one context, in
    that context.

    Args:
        stop: What `close` does, once.
    """

    __slots__ = ("_stop",)

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop: Callable[[], object] | None = stop

    def close(self) -> None:
        """Stop listening."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

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
        return Subscription(lambda: _here.set(_without(_here.get(), listener)))
    if scope != "process":
        raise ConfigurationError("listen(scope=...)", scope, "'process' or 'context'")
    with _lock:
        _everywhere = (*_everywhere, listener)
    return Subscription(lambda: _dismiss(listener))


def _dismiss(listener: Callable[[Event], object]) -> None:
    global _everywhere  # noqa: PLW0603 - a copy-on-write tuple: readers never lock
    with _lock:
        _everywhere = _without(_everywhere, listener)


def _without(
    listeners: tuple[Callable[[Event], object], ...], gone: Callable[[Event], object]
) -> tuple[Callable[[Event], object], ...]:
    kept = list(listeners)
    for index, listener in enumerate(kept):
        if listener is gone:
            del kept[index]
            break
    return tuple(kept)


def _fresh_lock() -> None:
    global _lock  # noqa: PLW0603 - whoever held it is in the parent
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)
