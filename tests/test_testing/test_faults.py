"""Fault plans: what was planned happens, at the call it was planned for, and nowhere else."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit.errors import ConfigurationError
from mlkit.testing import virtual_time
from mlkit.testing._faults import FaultPlan, fail, faults, faulty, ok, slow, value


@faulty("site")
def work(x):
    return x


@faulty("site")
async def awork(x):
    return x


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error)


def test_a_sequence_is_used_up_call_by_call():
    with virtual_time() as clock, faults({"site": [ok, fail(OSError), slow(2), value(9)]}) as plan:
        got = [outcome(lambda: work(1)) for _ in range(6)]
        assert got == [1, OSError, 1, 9, 1, 1]
        assert clock.sleeps == [2.0]
    assert (plan.calls, plan.unused) == ({"site": 6}, {})


def test_coroutines_sleep_in_their_loop():
    async def main():
        return await asyncio.gather(*(awork(n) for n in range(3)))

    with virtual_time() as clock, faults({"site": [slow(5), value("v"), slow(1)]}):
        start = clock.monotonic()
        assert clock.run(main()) == [0, "v", 2]
        assert clock.monotonic() - start == pytest.approx(5)
    assert inspect.iscoroutinefunction(awork)


def test_without_a_plan_nothing_changes():
    assert work(1) == 1
    with faults({"other": [fail(OSError)]}) as plan:
        assert work(1) == 1
    assert plan.unused == {"other": 1}


def test_plans_are_the_contexts_own_and_nest():
    seen = []
    with faults({"site": [value("outer")] * 2}):
        thread = threading.Thread(target=lambda: seen.append(work(1)))
        thread.start()
        thread.join(60)
        with faults({"site": [value("inner")]}):
            seen.append(work(1))
        seen.append(work(1))
    assert seen == [1, "inner", "outer"]


@given(seed=st.integers(-5, 5), n=st.integers(1, 30))
def test_a_seed_gives_the_same_faults_in_any_order(seed, n):
    shares = {"a": {fail(OSError): 0.3, slow(1): 0.3}, "b": {value(1): 0.5}}
    one, two = FaultPlan(shares, seed=seed), FaultPlan(shares, seed=seed)
    first = {site: [repr(one.draw(site)) for _ in range(n)] for site in ("a", "b")}
    second = {"a": [], "b": []}
    for _ in range(n):
        for site in ("b", "a"):
            second[site].append(repr(two.draw(site)))
    assert first == second


def test_shares_are_met():
    plan = FaultPlan({"a": {fail(OSError): 0.25, value(1): 0.5}}, seed=1)
    drawn = [repr(plan.draw("a")) for _ in range(2000)]
    assert drawn.count("fail(OSError)") / 2000 == pytest.approx(0.25, abs=0.05)
    assert drawn.count("value(int)") / 2000 == pytest.approx(0.5, abs=0.05)
    everything = FaultPlan({"a": {fail(OSError): 1.0}})
    assert {repr(everything.draw("a")) for _ in range(200)} == {"fail(OSError)"}


def test_seeds_differ():
    draws = [
        tuple(repr(plan.draw("a")) for _ in range(40))
        for plan in (FaultPlan({"a": {ok: 0.5, slow(1): 0.5}}, seed=seed) for seed in range(5))
    ]
    assert len(set(draws)) == 5


def test_each_fault_is_met_once_whoever_calls():
    plan, hits, barrier = FaultPlan({"site": [fail(OSError)] * 100}), [], threading.Barrier(8)

    def many():
        barrier.wait(60)
        with faults(plan):
            for _ in range(25):
                hits.append(outcome(lambda: work(1)))

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (hits.count(OSError), hits.count(1)) == (100, 100)
    assert plan.calls == {"site": 200}


def test_errors_are_fresh_each_time_and_name_the_site():
    with faults({"site": [fail(OSError), fail(ValueError("x", 2)), fail(ValueError("x", 2))]}):
        with pytest.raises(OSError, match="injected at site"):
            work(1)
        same = fail(ValueError("x", 2))
    errors = []
    with faults({"site": [same, same]}):
        for _ in range(2):
            with pytest.raises(ValueError) as info:
                work(1)
            errors.append(info.value)
    assert errors[0] is not errors[1]
    assert errors[0].args == ("x", 2)


class Refused(Exception):
    """As those of HTTP clients are: made of more than it passes on."""

    def __init__(self, code, *, response):
        super().__init__(f"status {code}")
        self.code, self.response = code, response


@pytest.mark.parametrize(
    "error",
    [Refused(503, response={"retry": 1}), OSError(2, "gone", "a.txt"), ImportError("no", name="x")],
    ids=lambda error: type(error).__name__,
)
def test_a_fresh_copy_is_like_the_error(error):
    @faulty("db")
    def query():
        return 1

    with faults({"db": [fail(error)] * 2}):
        with pytest.raises(type(error)) as first:
            query()
        with pytest.raises(type(error)) as second:
            query()
    assert first.value is not second.value is not error
    assert str(first.value) == str(error)
    assert vars(first.value) == vars(error)
    assert repr(first.value) == repr(error)
    assert getattr(first.value, "filename", None) == getattr(error, "filename", None)


def test_a_type_that_needs_more_than_a_message_is_refused():
    for kind in (Refused, UnicodeDecodeError):
        with pytest.raises(ConfigurationError, match="message alone"):
            fail(kind)


def test_base_exceptions_and_values_of_any_kind():
    with faults({"site": [fail(KeyboardInterrupt), value(math.nan), value(None)]}):
        with pytest.raises(KeyboardInterrupt):
            work(1)
        assert math.isnan(work(1))
        assert work(1) is None


def test_wrong_plans_are_named():
    for make in (
        lambda: fail("OSError"),
        lambda: fail(3),
        lambda: slow(-1),
        lambda: slow(math.nan),
        lambda: slow(True),
        lambda: faulty(""),
        lambda: faulty(len),
        lambda: faulty("site")(3),
        lambda: FaultPlan([ok]),
        lambda: FaultPlan({"": [ok]}),
        lambda: FaultPlan({"a": ok}),
        lambda: FaultPlan({"a": "ok"}),
        lambda: FaultPlan({"a": [OSError]}),
        lambda: FaultPlan({"a": [fail]}),
        lambda: FaultPlan({"a": {ok: 0.6, slow(1): 0.6}}),
        lambda: FaultPlan({"a": {ok: -0.1}}),
        lambda: FaultPlan({"a": {ok: True}}),
        lambda: FaultPlan({"a": {"ok": 0.1}}),
        lambda: FaultPlan({}, seed=1.5),
        lambda: FaultPlan({}, seed=True),
    ):
        with pytest.raises(ConfigurationError):
            make()


@faulty("site")
def stream(x):
    got = yield x
    yield got
    return "value"


@faulty("site")
async def astream(x):
    yield x
    yield x


def read(x):
    async def main():
        return [item async for item in astream(x)]

    with virtual_time() as clock:
        return clock.run(main())


@pytest.mark.parametrize("items", [lambda x: list(stream(x)), read], ids=["plain", "async"])
def test_streams_fail_wait_and_are_replaced_when_they_are_opened(items):
    whole = items(1)
    assert len(whole) == 2
    with virtual_time(), faults({"site": [fail(OSError), slow(2), value("abc"), value(3)]}) as plan:
        assert outcome(lambda: items(1)) is OSError
        assert items(1) == whole
        assert items(1) == ["a", "b", "c"]
        with pytest.raises(ConfigurationError, match="items, for a generator"):
            items(1)
        assert items(1) == whole
    assert plan.calls == {"site": 5}


def test_a_stream_that_nobody_reads_uses_up_nothing():
    with faults({"site": [fail(OSError)]}) as plan:
        stream(1)
        assert plan.unused == {"site": 1}


def test_a_stream_stays_what_it_was():
    assert inspect.isgeneratorfunction(stream)
    assert inspect.isasyncgenfunction(astream)
    one = stream(1)
    assert next(one) == 1
    assert one.send("sent") == "sent"
    with pytest.raises(StopIteration, match="value"):
        next(one)


def test_an_async_stream_is_closed_with_the_one_around_it():
    closed = []

    @faulty("site")
    async def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def main():
        one = endless()
        await anext(one)
        await one.aclose()
        return closed

    assert asyncio.run(main()) == [True]


def test_objects_that_are_called_are_what_their_call_is():
    class Model:
        async def __call__(self, x):
            return x

    guarded = faulty("site")(Model())
    with faults({"site": [value("planned")]}):
        assert asyncio.run(guarded(1)) == "planned"
    assert asyncio.run(guarded(1)) == 1
