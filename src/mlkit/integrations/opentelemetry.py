"""Observable instruments and span events. Needs the API only: `pip install 'mlkit-blocks[opentelemetry]'`."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

from mlkit._optional import require
from mlkit.telemetry import Reader, Subscription, known_metrics
from mlkit.telemetry import listen as hear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.telemetry import Event, Sample

__all__ = ["listen"]

_FORBIDDEN = re.compile(r"[^A-Za-z0-9_./-]")
_UNITS = {"seconds": "s", "bytes": "By"}


def listen(
    meter_provider: Any = None,
    *,
    metrics: bool = True,
    spans: bool = True,
    scope: str = "process",
    max_series: int = 1_000,
) -> Subscription:
    """Let OpenTelemetry read what the blocks count, and write events on the span that they happen in.

    Counters and gauges become observable instruments, which the SDK reads when it exports: a call costs nothing more.
    A name is `mlkit.<block>.` and the rest, with the unit where OpenTelemetry wants it: `resilience_answers_total` is
    `mlkit.resilience.answers`, `flags_snapshot_age_seconds` is `mlkit.flags.snapshot_age` in `s`. Events are counted
    as `mlkit.telemetry.events` by `kind` and `name`, and each is an event `mlkit.<kind>` with attributes
    `mlkit.name` and `mlkit.<field>` on the current span if that is recording; no span is made.

    A metric of your own that appears after this call is exported from the second collection that sees it.

    Args:
        meter_provider: Where instruments are made; default the global one, also if it is set later. One provider has
            one set of instruments, however often this is called.
        metrics: Whether to export counters and gauges.
        spans: Whether to write span events.
        scope: `"process"` or `"context"`: which events become span events, see `mlkit.telemetry.listen`.
        max_series: How many label sets of one metric are told apart, see `mlkit.telemetry.Reader`; the first call for
            a provider decides.

    Returns:
        The subscription: close it, or use it as a context manager.

    Raises:
        MissingDependencyError: If opentelemetry-api is not installed.
        ConfigurationError: If an argument is wrong.
    """
    feature = "the OpenTelemetry listener"
    api = require("opentelemetry.metrics", extra="opentelemetry", feature=feature)
    trace = require("opentelemetry.trace", extra="opentelemetry", feature=feature)
    instruments = None
    if metrics:
        provider = api.get_meter_provider() if meter_provider is None else meter_provider
        instruments = _instruments_of(provider, api.Observation, max_series)
    stops: list[Callable[[], object]] = []
    if spans:
        stops.append(hear(_span_events(trace), scope=scope).close)
    if instruments is not None:
        stops.append(instruments.open())

    def stop() -> None:
        for one in stops:
            one()

    return Subscription(stop)


def _span_events(trace: Any) -> Callable[[Event], None]:
    def write(event: Event) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            facts = {f"mlkit.{key}": fact for key, fact in event.fields.items() if fact is not None}
            span.add_event(f"mlkit.{event.kind}", {**facts, "mlkit.name": event.name})

    return write


_lock = threading.Lock()
_made: WeakKeyDictionary[Any, _Instruments] = WeakKeyDictionary()


def _instruments_of(provider: Any, observation: Any, max_series: int) -> _Instruments:
    with _lock:
        made = _made.get(provider)
    if made is None:
        new = _Instruments(provider.get_meter("mlkit"), observation, max_series)
        with _lock:
            made = _made.setdefault(provider, new)
    return made


@final
class _Instruments:
    """The instruments of one provider. They cannot be taken back, so that closed ones just have nothing to say."""

    def __init__(self, meter: Any, observation: Any, max_series: int) -> None:
        self._meter, self._observation = meter, observation
        self._reader = Reader(max_series=max_series)
        self._lock = threading.RLock()
        self._names: set[str] = set()
        self._fresh: dict[str, list[Sample]] = {}
        self._events: Subscription | None = None
        self._users = 0

    def open(self) -> Callable[[], None]:
        """Speak until the returned function is called."""
        self._make({*known_metrics(), *(sample.name for sample in self._reader.read())})
        with self._lock:
            self._users += 1
            if self._events is None:
                self._events = hear(self._reader.note)
        return self._leave

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._events is not None:
                self._events.close()
                self._events = None

    def _make(self, names: set[str]) -> None:
        with self._lock:
            new = sorted(names - self._names)
            self._names |= names
        for name in new:
            total = name.endswith("_total")
            make = (
                self._meter.create_observable_counter
                if total
                else self._meter.create_observable_gauge
            )
            stem, unit = _stem_and_unit(name)
            make(
                stem,
                callbacks=[self._callback(name)],
                unit=unit,
                description=known_metrics().get(name, ""),
            )

    def _callback(self, name: str) -> Callable[[Any], Iterable[Any]]:
        def observe(_options: Any) -> list[Any]:
            return [self._observation(value, dict(labels)) for _, labels, value in self._take(name)]

        return observe

    def _take(self, name: str) -> list[Sample]:
        """Return the samples of one metric; a reading serves each metric once, so one collection is one reading."""
        with self._lock:
            if not self._users:
                return []
            if name in self._fresh:
                return self._fresh.pop(name)
        samples = self._reader.read()  # user code: without the lock
        with self._lock:
            self._fresh = {known: [] for known in self._names}
            for sample in samples:
                self._fresh.setdefault(sample.name, []).append(sample)
            new = set(self._fresh) - self._names
            mine = self._fresh.pop(name)
        if new:
            # The SDK holds its lock while it asks us, and wants it for a new instrument.
            threading.Thread(target=self._make, args=(new,), daemon=True).start()
        return mine


def _stem_and_unit(name: str) -> tuple[str, str]:
    stem = _FORBIDDEN.sub("_", name.removesuffix("_total"))[:200]
    head, _, last = stem.rpartition("_")
    if head and last in _UNITS:
        return f"mlkit.{head.replace('_', '.', 1)}", _UNITS[last]
    return f"mlkit.{stem.replace('_', '.', 1)}", ""
