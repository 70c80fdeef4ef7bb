"""What Prometheus scrapes, read back from the text that the real client writes."""

from __future__ import annotations

import gc
import os
import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from mlkit.errors import ConfigurationError
from mlkit.integrations.prometheus import listen
from mlkit.resilience import Breaker, Policy, Retry, constant, fallback, tier
from mlkit.telemetry import Counter, Sample, emit, register


def scrape(registry):
    return {
        family.name: family
        for family in text_string_to_metric_families(generate_latest(registry).decode())
    }


def value(registry, name, /, **labels):
    return registry.get_sample_value(name, labels)


@pytest.fixture
def registry():
    return CollectorRegistry()


def test_a_fallback_and_its_breaker_are_there_under_their_stable_names(registry):
    state = {"up": True}

    def big_of_prometheus(x):
        if not state["up"]:
            raise ConnectionError
        return x

    breaker = Breaker(min_calls=2, window=2, name="prometheus-big")
    policy = Policy(retry=Retry(2, backoff=0), breaker=breaker)
    score = fallback(tier(big_of_prometheus, policy=policy), constant(0), name="prometheus-score")
    with listen(registry):
        score(1)
        state["up"] = False
        for _ in range(3):
            assert score(1) == 0
        families = scrape(registry)
        answers = "mlkit_resilience_answers_total"
        assert value(registry, answers, fallback="prometheus-score", tier="big_of_prometheus") == 1
        assert value(registry, answers, fallback="prometheus-score", tier="constant") == 3
        assert value(registry, "mlkit_resilience_breaker_state", breaker="prometheus-big") == 2
        opened = {"kind": "resilience.breaker.opened", "name": "prometheus-big"}
        assert value(registry, "mlkit_telemetry_events_total", **opened) == 1
    assert families["mlkit_resilience_answers"].type == "counter"
    assert families["mlkit_resilience_breaker_state"].type == "gauge"
    assert families["mlkit_resilience_answers"].documentation.startswith("Answers")
    assert scrape(registry) == {}


def test_openmetrics_takes_it_too(registry):
    with listen(registry):
        emit("test.thing.failed", "x")
        families = list(parse_openmetrics(openmetrics(registry).decode()))
    assert "mlkit_telemetry_events" in {family.name for family in families}


def test_a_total_never_goes_down_though_its_sources_die(registry):
    def rows(n):
        counter = Counter("prometheus_died_rows_total", model="a")
        register(counter)
        counter.add(n)
        return counter

    with listen(registry):
        name, seen = "mlkit_prometheus_died_rows_total", []
        first, second = rows(5), rows(7)
        seen.append(value(registry, name, model="a"))
        del first
        gc.collect()
        seen.append(value(registry, name, model="a"))
        second.add(1)
        rows(100)  # born and dead between two scrapes
        gc.collect()
        seen.append(value(registry, name, model="a"))
    assert seen == [12, 12, 113]


def test_names_and_labels_that_prometheus_cannot_hold_are_mended(registry):
    source = Counter("prometheus-odd.rows_total", **{"the model": 'a"\n\\é'})
    register(source)
    source.add()
    with listen(registry, namespace="shop"):
        family = scrape(registry)["shop_prometheus_odd_rows"]
    assert family.samples[0].labels == {"the_model": 'a"\n\\é'}


def test_names_that_are_no_text_do_not_break_a_scrape(registry):
    with listen(registry):
        emit("resilience.breaker.opened", os.fsdecode(b"mod\xe8le"))
        for written in (generate_latest(registry), openmetrics(registry)):
            assert b'name="mod\\\\udce8le"' in written


def test_series_are_bounded(registry):
    counters = [Counter("prometheus_many_total", user=str(i)) for i in range(50)]
    for counter in counters:
        register(counter)
        counter.add()
    with listen(registry, max_series=10):
        for i in range(50):
            emit("test.user.seen", f"user {i}")
        families = scrape(registry)
    samples = families["mlkit_prometheus_many"].samples
    assert len(samples) == 11
    assert sum(sample.value for sample in samples) == 50
    assert value_of(samples, user="(other)") == 40
    events = families["mlkit_telemetry_events"].samples
    assert len(events) <= 11
    assert sum(sample.value for sample in events) >= 50


def value_of(samples, **labels):
    return next(sample.value for sample in samples if sample.labels == labels)


def test_two_listeners_on_two_registries_and_not_on_one(registry):
    other = CollectorRegistry()
    with listen(registry), listen(other):
        emit("test.thing.done", "prometheus-two")
        labels = {"kind": "test.thing.done", "name": "prometheus-two"}
        for each in (registry, other):
            assert value(each, "mlkit_telemetry_events_total", **labels) == 1
        with pytest.raises(ConfigurationError, match="close the other listener"):
            listen(registry)
    with listen(registry), listen(registry, namespace="second"):
        pass


def test_a_broken_source_hides_nobody(registry):
    class Broken:
        def samples(self):
            raise RuntimeError("no disk")

    class Fine:
        def samples(self):
            return [Sample("prometheus_fine_total", (), 4)]

    broken, fine = Broken(), Fine()
    with listen(registry):
        register(broken)
        register(fine)
        with pytest.warns(match="no disk"):
            assert value(registry, "mlkit_prometheus_fine_total") == 4
        del broken
        gc.collect()


def test_scrapes_while_threads_count(registry):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            counter = Counter("prometheus_busy_total")
            register(counter)
            counter.add()
            emit("test.busy.tick", "x")

    threads = [threading.Thread(target=work) for _ in range(3)]
    with listen(registry):
        for thread in threads:
            thread.start()
        try:
            seen = [value(registry, "mlkit_prometheus_busy_total") or 0 for _ in range(30)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert seen == sorted(seen)


@pytest.mark.parametrize("wrong", ["", "9lives", "a-b", None])
def test_a_wrong_namespace_is_refused(wrong, registry):
    with pytest.raises(ConfigurationError, match="namespace"):
        listen(registry, namespace=wrong)
