"""Counters are pulled, events are pushed, and nobody who listens can do harm."""

from __future__ import annotations

import asyncio
import gc
import pickle
import sys
import threading
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit import telemetry
from mlkit.errors import ConfigurationError, DegradedWarning
from mlkit.telemetry import Counter, Sample, collect, emit, listen, register
from mlkit.testing import record_events, virtual_time


@given(st.lists(st.integers(0, 1_000), max_size=30))
def test_a_counter_is_a_sum(numbers: list[int]) -> None:
    counter = Counter("rows_total")
    for number in numbers:
        counter.add(number)
    assert counter.value == sum(numbers)


def test_no_addition_is_lost_between_threads() -> None:
    counter = Counter("rows_total")
    barrier = threading.Barrier(4)
    interval = sys.getswitchinterval()

    def work() -> None:
        barrier.wait()
        for _ in range(5_000):
            counter.add()

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        seen = 0
        while any(thread.is_alive() for thread in threads):
            now = counter.value
            assert now >= seen
            seen = now
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert counter.value == 20_000


def _mine() -> list[Sample]:
    return [sample for sample in collect() if sample.name.startswith("test_")]


def test_what_is_registered_is_collected_while_it_lives() -> None:
    first, second = Counter("test_rows_total", model="a"), Counter("test_rows_total", model="a")
    other = Counter("test_rows_total", model="b", tier="1")
    for source in (first, second, other):
        register(source)
    first.add(2)
    second.add(3)
    assert _mine() == [
        Sample("test_rows_total", (("model", "a"),), 5),
        Sample("test_rows_total", (("model", "b"), ("tier", "1")), 0),
    ]
    del first, second, other, source
    gc.collect()
    assert _mine() == []


def test_events_reach_those_who_listen_and_only_while_they_do() -> None:
    seen: list[telemetry.Event] = []
    emit("test.before", "x")
    with listen(seen.append) as subscription:
        emit("test.during", "x", n=1, ok=True, why=None)
        subscription.close()
        emit("test.after", "x")
    assert [event.kind for event in seen] == ["test.during"]
    assert dict(seen[0].fields) == {"n": 1, "ok": True, "why": None}
    with pytest.raises(TypeError):
        seen[0].fields["n"] = 2  # type: ignore[index]


def test_a_context_hears_itself_alone() -> None:
    async def task(name: str) -> list[str]:
        with record_events() as events:
            for _ in range(3):
                emit("test.tick", name)
                await asyncio.sleep(0)
        return [event.name for event in events]

    async def both() -> list[list[str]]:
        return await asyncio.gather(task("a"), task("b"))

    assert asyncio.run(both()) == [["a"] * 3, ["b"] * 3]


def test_a_listener_added_twice_is_called_twice_and_removed_once_each() -> None:
    seen: list[telemetry.Event] = []
    first, second = listen(seen.append), listen(seen.append)
    emit("test.tick", "x")
    first.close()
    first.close()
    emit("test.tick", "x")
    second.close()
    emit("test.tick", "x")
    assert len(seen) == 3


def test_a_broken_listener_is_reported_and_disturbs_nobody() -> None:
    seen: list[telemetry.Event] = []

    def broken(_: telemetry.Event) -> None:
        raise ValueError("no disk")

    with listen(broken), listen(seen.append), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        emit("test.tick", "x")
    assert len(seen) == 1
    assert caught[0].category is DegradedWarning
    assert "no disk" in str(caught[0].message)


def test_events_carry_the_time_of_the_clock() -> None:
    with virtual_time() as clock, record_events() as events:
        clock.advance(5)
        emit("test.tick", "x")
        assert events[0].time == clock.time()


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a callable of one Event"):
        listen("me")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'process' or 'context'"):
        listen(print, scope="thread")


def test_samples_pickle() -> None:
    counter = Counter("rows_total", model="a")
    assert pickle.loads(pickle.dumps(counter.samples())) == counter.samples()
