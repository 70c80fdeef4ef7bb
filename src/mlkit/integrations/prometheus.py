"""Counters and gauges for Prometheus. Needs prometheus-client: `pip install 'mlkit-blocks[prometheus]'`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mlkit._optional import require
from mlkit.errors import ConfigurationError
from mlkit.telemetry import Reader, Subscription, known_metrics
from mlkit.telemetry import listen as hear

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["listen"]

_NAMESPACE = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def listen(
    registry: Any = None, *, namespace: str = "mlkit", max_series: int = 1_000
) -> Subscription:
    """Let Prometheus read what the blocks count, whenever it scrapes: a call costs nothing more for it.

    A metric's name is `<namespace>_` and its name in `mlkit.telemetry`: `mlkit_resilience_answers_total{fallback,
    tier}`, `mlkit_resilience_breaker_state{breaker}`. Events are counted from now on, as
    `mlkit_telemetry_events_total{kind, name}`. Totals never go down while the process lives.

    Args:
        registry: A `prometheus_client.CollectorRegistry`; default `prometheus_client.REGISTRY`.
        namespace: What every name begins with.
        max_series: How many label sets of one metric are told apart, see `mlkit.telemetry.Reader`.

    Returns:
        The subscription: close it, or use it as a context manager.

    Raises:
        MissingDependencyError: If prometheus-client is not installed.
        ConfigurationError: If *registry* has metrics of these names already, or another argument is wrong.

    Examples:
        >>> from prometheus_client import CollectorRegistry, generate_latest
        >>> from mlkit.telemetry import Counter, register
        >>> answers = Counter("app_answers_total", model="ranker")
        >>> register(answers)
        >>> answers.add(3)
        >>> registry = CollectorRegistry()
        >>> with listen(registry):
        ...     text = generate_latest(registry).decode()
        >>> [line for line in text.splitlines() if "app_answers" in line][-1]
        'mlkit_app_answers_total{model="ranker"} 3.0'
    """
    client = require("prometheus_client", extra="prometheus", feature="the Prometheus listener")
    if not (isinstance(namespace, str) and _NAMESPACE.fullmatch(namespace)):
        raise ConfigurationError(
            "listen(namespace=...)", namespace, "letters, digits and underscores"
        )
    registry = client.REGISTRY if registry is None else registry
    reader = Reader(max_series=max_series)
    collector = _Collector(reader, namespace, client.metrics_core.Metric)
    try:
        registry.register(collector)
    except ValueError:
        raise ConfigurationError(
            "listen(registry)",
            registry,
            f"a registry without metrics named {namespace}_...",
            hint="close the other listener first",
        ) from None
    events = hear(reader.note)

    def stop() -> None:
        events.close()
        registry.unregister(collector)

    return Subscription(stop)


class _Collector:
    """What a registry asks."""

    def __init__(self, reader: Reader, namespace: str, metric: Any) -> None:
        self._reader, self._namespace, self._metric = reader, namespace, metric

    def describe(self) -> list[Any]:
        """Return the metrics that are always ours, so that a second listener is refused."""
        return [self._family(name) for name in known_metrics()]

    def collect(self) -> Iterator[Any]:
        """Yield every metric with its present values."""
        families: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for name, labels, value in self._reader.read():
            series = families.setdefault(_safe(name), {})
            key = tuple((_safe(label).replace(":", "_"), _written(text)) for label, text in labels)
            series[key] = series.get(key, 0) + value
        for name, series in families.items():
            family = self._family(name)
            for labels, value in series.items():
                family.add_sample(f"{self._namespace}_{name}", dict(labels), value)
            yield family

    def _family(self, name: str) -> Any:
        help_text = known_metrics().get(name, "Counted by the application.")
        kind = "counter" if name.endswith("_total") else "gauge"
        return self._metric(f"{self._namespace}_{name.removesuffix('_total')}", help_text, kind)


def _safe(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_:]", "_", name)


def _written(text: str) -> str:
    """Return *text* as UTF-8 can write it: bytes of a file name that are no text would break every scrape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
