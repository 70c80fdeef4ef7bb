"""What the real OpenTelemetry SDK collects, and what ends up on its spans."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mlkit.errors import ConfigurationError
from mlkit.integrations.opentelemetry import listen
from mlkit.resilience import Breaker, constant, fallback, tier
from mlkit.telemetry import Counter, Sample, emit, register


@pytest.fixture
def metrics():
    """Return a provider and a function that collects it as {name: metric}."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])

    def collected():
        data = reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    yield provider, collected
    provider.shutdown()


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("test"), exporter
    provider.shutdown()


def points(metric):
    return {
        tuple(sorted(point.attributes.items())): point.value for point in metric.data.data_points
    }


def test_counters_and_gauges_are_read_by_pull(metrics):
    provider, collected = metrics
    breaker = Breaker(name="otel-ranker")
    score = fallback(tier(float, name="big"), constant(0.0), name="otel-score")
    with listen(provider):
        for _ in range(3):
            score(1)
        breaker.trip()
        seen = collected()
        answers = seen["mlkit.resilience.answers"]
        assert points(answers)[("fallback", "otel-score"), ("tier", "big")] == 3
        assert answers.data.is_monotonic
        assert answers.unit == ""
        assert points(seen["mlkit.resilience.breaker_state"])[(("breaker", "otel-ranker"),)] == 2
        events = points(seen["mlkit.telemetry.events"])
        assert events[("kind", "resilience.breaker.opened"), ("name", "otel-ranker")] == 1
        score(1)
        again = points(collected()["mlkit.resilience.answers"])
        assert again[("fallback", "otel-score"), ("tier", "big")] == 4
    assert collected() == {}


def test_a_unit_is_where_opentelemetry_wants_it(metrics):
    class Source:
        def samples(self):
            return [
                Sample("flags_snapshot_age_seconds", (("source", "otel"),), 1.5),
                Sample("otel_sent_bytes_total", (), 10),
            ]

    source = Source()
    register(source)
    provider, collected = metrics
    with listen(provider):
        seen = collected()
    assert seen["mlkit.flags.snapshot_age"].unit == "s"
    assert seen["mlkit.otel.sent"].unit == "By"


def test_a_metric_that_appears_later_is_exported_too(metrics):
    provider, collected = metrics
    with listen(provider):
        collected()
        late = Counter("otel_late_rows_total")
        register(late)
        late.add(2)
        collected()
        for thread in threading.enumerate():
            if (
                thread.daemon
                and thread is not threading.current_thread()
                and "_make" in thread.name
            ):
                thread.join()
        assert points(collected()["mlkit.otel.late_rows"]) == {(): 2}


def test_listening_again_makes_no_second_instrument(metrics, caplog):
    provider, collected = metrics
    breaker = Breaker(name="otel-again")
    with listen(provider), listen(provider):
        assert (
            points(collected()["mlkit.resilience.breaker_state"])[(("breaker", "otel-again"),)] == 0
        )
    with listen(provider):
        breaker.trip()
        assert (
            points(collected()["mlkit.resilience.breaker_state"])[(("breaker", "otel-again"),)] == 2
        )
    assert not caplog.records


def test_two_readers_of_one_provider_both_see_everything():
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    provider = MeterProvider(readers)
    counter = Counter("otel_both_total")
    register(counter)
    with listen(provider):
        for n in range(1, 4):
            counter.add()
            for reader in readers:
                found = [
                    metric.data.data_points[0].value
                    for resource in reader.get_metrics_data().resource_metrics
                    for scope in resource.scope_metrics
                    for metric in scope.metrics
                    if metric.name == "mlkit.otel.both"
                ]
                assert found == [n]
    provider.shutdown()


def test_events_are_written_on_the_current_span_and_no_span_is_made(metrics, spans):
    tracer, exporter = spans
    with listen(metrics[0], metrics=False, scope="context"):
        emit("test.thing.failed", "outside")
        with tracer.start_as_current_span("request"):
            emit("resilience.breaker.opened", "ranker", failures=5, reason="failure_rate", why=None)
    emit("test.thing.failed", "after")
    (span,) = exporter.get_finished_spans()
    (event,) = span.events
    assert event.name == "mlkit.resilience.breaker.opened"
    assert dict(event.attributes) == {
        "mlkit.name": "ranker", "mlkit.failures": 5, "mlkit.reason": "failure_rate",
    }  # fmt: skip


def test_series_are_bounded(metrics):
    provider, collected = metrics
    counters = [Counter("otel_many_total", user=str(i)) for i in range(50)]
    for counter in counters:
        register(counter)
        counter.add()
    with listen(provider, max_series=5):
        values = points(collected()["mlkit.otel.many"])
    assert len(values) == 6
    assert values[(("user", "(other)"),)] == 45


def test_a_name_that_opentelemetry_cannot_hold_is_mended(metrics):
    counter = Counter("otel odd:rows_total")
    register(counter)
    counter.add()
    provider, collected = metrics
    with listen(provider):
        assert points(collected()["mlkit.otel.odd_rows"]) == {(): 1}


def test_a_wrong_argument_leaves_nothing_behind(metrics, spans):
    provider, collected = metrics
    tracer, exporter = spans
    for wrong in ({"max_series": 0}, {"scope": "thread"}):
        with pytest.raises(ConfigurationError):
            listen(provider, **wrong)
    with tracer.start_as_current_span("request"):
        emit("test.thing.failed", "x")
    assert not exporter.get_finished_spans()[0].events
    assert collected() == {}


def test_the_global_provider_may_be_set_later():
    code = """
from mlkit.integrations.opentelemetry import listen
from mlkit.resilience import Breaker
listen()
breaker = Breaker(name="late")
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
data = reader.get_metrics_data()
print(sorted(m.name for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "mlkit.resilience.breaker_state" in done.stdout, done.stderr
