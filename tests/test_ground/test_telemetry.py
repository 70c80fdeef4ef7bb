"""Counters are pulled, events are pushed, and nobody who listens can do harm."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import re
import sys
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit import telemetry
from mlkit.errors import ConfigurationError, DegradedWarning
from mlkit.telemetry import Counter, Reader, Sample, collect, emit, known_metrics, listen, register
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


class Says:
    """A source that says what it is told to."""

    def __init__(self, *samples: Sample) -> None:
        self.said = samples

    def samples(self) -> tuple[Sample, ...]:
        return self.said


def test_what_has_no_sum_is_not_added_up() -> None:
    first = Says(Sample("test_breaker_state", (), 2.0), Sample("test_age_seconds", (), 9.0))
    second = Says(Sample("test_breaker_state", (), 1.0), Sample("test_age_seconds", (), 4.0))
    third = Says(Sample("test_waits_seconds_total", (), 2.0), Sample("test_waiting_rows", (), 1.0))
    fourth = Says(Sample("test_waits_seconds_total", (), 3.0), Sample("test_waiting_rows", (), 5.0))
    for source in (first, second, third, fourth):
        register(source)
    assert {sample.name: sample.value for sample in _mine()} == {
        "test_breaker_state": 2.0,
        "test_age_seconds": 9.0,
        "test_waits_seconds_total": 5.0,
        "test_waiting_rows": 6.0,
    }


def test_sources_need_neither_hash_nor_identity() -> None:
    class Equal(Says):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    first, second = (Equal(Sample("test_equal_total", (), 1)) for _ in range(2))
    register(first)
    register(second)
    register(second)
    assert [sample.value for sample in _mine()] == [2]


def _read(reader: Reader) -> dict[str, float]:
    return {sample.name: sample.value for sample in reader.read() if "test_read" in sample.name}


def test_a_reader_keeps_the_totals_of_what_died_and_forgets_its_gauges() -> None:
    reader = Reader()
    counter = Counter("test_read_rows_total")
    other = Says(Sample("test_read_calls_total", (), 7), Sample("test_read_waiting", (), 3))
    register(counter)
    register(other)
    counter.add(5)
    assert _read(reader) == {
        "test_read_rows_total": 5, "test_read_calls_total": 7, "test_read_waiting": 3,
    }  # fmt: skip
    counter.add(1)
    del counter, other
    gc.collect()
    expected = {"test_read_rows_total": 6, "test_read_calls_total": 7}
    assert _read(reader) == expected
    assert _read(reader) == expected
    assert not [sample for sample in collect() if "test_read" in sample.name]


def test_a_reader_counts_events_by_kind_and_name() -> None:
    reader = Reader(max_series=3)
    with listen(reader.note, scope="context"):
        for i in range(10):
            emit("test.user.seen", str(i % 5))
    samples = [sample for sample in reader.read() if sample.name == "telemetry_events_total"]
    assert sum(sample.value for sample in samples) == 10
    assert len(samples) <= 4
    with pytest.raises(ConfigurationError, match="max_series"):
        Reader(max_series=0)


def test_a_broken_listener_harms_nobody_where_warnings_are_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: telemetry.Event) -> None:
        raise ValueError("no disk")

    seen: list[telemetry.Event] = []
    with listen(broken, scope="context"), listen(seen.append, scope="context"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            emit("test.tick", "x")
    assert len(seen) == 1
    assert "no disk" in caplog.text


def test_a_listener_that_cannot_even_be_named_harms_nobody() -> None:
    class Silent(ValueError):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class Nameless:
        def __call__(self, _: telemetry.Event) -> None:
            raise Silent

        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    with listen(Nameless(), scope="context"), pytest.warns(DegradedWarning, match="Nameless"):
        emit("test.tick", "x")


def test_what_died_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_MAX_RETIRED", len(telemetry._retired) + 3)
    for n in range(10):
        counter = Counter("test_bound_total", request=str(n))
        register(counter)
        counter.add()
        del counter
        gc.collect()
    found = [s for s in Reader().read() if s.name == "test_bound_total"]
    assert sum(sample.value for sample in found) == 10
    assert len(found) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_during_a_reading_can_read_and_note() -> None:
    reader = Reader()
    reader._lock.acquire()

    def fork() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            reader.note(telemetry.Event("test.tick", "x", 0.0, {}))
            os._exit(0 if any(s.name == "telemetry_events_total" for s in reader.read()) else 1)
        statuses.append(os.waitpid(child, 0)[1])

    statuses: list[int] = []
    forking = threading.Thread(target=fork)
    forking.start()
    forking.join(60)
    reader._lock.release()
    assert statuses == [0]


def test_a_broken_source_is_left_out_and_reported() -> None:
    class Broken:
        def samples(self) -> list[Sample]:
            raise ValueError("no disk")

    broken, fine = Broken(), Says(Sample("test_fine_total", (), 1))
    register(broken)
    register(fine)
    with pytest.warns(DegradedWarning, match="Broken was left out: ValueError: no disk"):
        assert [sample.name for sample in _mine()] == ["test_fine_total"]
    del broken
    gc.collect()


@pytest.mark.parametrize("said", [7, ("test_odd_total", ()), ("test_odd_total", (), None)], ids=str)
def test_a_source_that_says_no_numbers_hides_nobody(said: object) -> None:
    odd, fine = Says(said), Says(Sample("test_fine_total", (), 1))  # type: ignore[arg-type]
    register(odd)
    register(fine)
    with pytest.warns(DegradedWarning, match="Says was left out: (Type|Value)Error"):
        assert [sample.name for sample in _mine()] == ["test_fine_total"]


def test_a_finalizer_may_use_telemetry_while_telemetry_is_used() -> None:
    class Finalized:
        def __del__(self) -> None:
            register(kept)
            with listen(print):
                collect()

    kept = Says()
    with telemetry._lock:
        Finalized()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_the_lock_is_held_does_not_hang() -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with telemetry._lock:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        collect()
        os._exit(0)
    release.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_every_metric_of_the_blocks_is_known() -> None:
    source = Path(telemetry.__file__).parent
    named = {
        name
        for path in source.rglob("*.py")
        for name in re.findall(
            r"\b(?:Counter|Sample)\(\s*\"((?:flags|inference|models|registry|repro|resilience|tracking)_\w+)\"",
            path.read_text(encoding="utf-8"),
        )
    }
    resilience = "".join(path.read_text("utf-8") for path in (source / "resilience").glob("*.py"))
    counted = re.findall(r"(?:_limits|self)\.count\(\"(\w+)\"", resilience)
    named |= {f"resilience_{what}_total" for what in counted}
    assert len(named) > 10
    missing = sorted(named - set(known_metrics()))
    assert not missing, f"say in mlkit/telemetry.py what these count: {missing}"
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", name) for name in known_metrics())
