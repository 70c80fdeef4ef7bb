"""Policies around plain functions: attempts, time, limits, what comes out and what stays alive."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import errno
import functools
import gc
import inspect
import pickle
import random
import threading
import traceback
import weakref

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from mlkit import telemetry
from mlkit._clock import current
from mlkit.errors import (
    BreakerOpenError,
    BulkheadFullError,
    ConfigurationError,
    DeadlineExceededError,
    RateLimitedError,
    ResultRejectedError,
)
from mlkit.resilience import (
    Breaker,
    Budget,
    Hedge,
    Policy,
    Retry,
    deadline,
    finite,
    full_jitter,
    provenance,
    remaining,
    transient,
)
from mlkit.testing import virtual_time


class Flaky:
    """Fails so many times, with a fresh error each time."""

    def __init__(self, failures, error=ConnectionError):
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self, value=None):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"failure {self.calls}")
        return value


@given(failures=st.integers(0, 6), attempts=st.integers(1, 6))
def test_it_tries_as_often_as_told_and_no_more(failures, attempts):
    flaky = Flaky(failures)
    with virtual_time():
        guarded = Policy(retry=Retry(attempts))(flaky)
        if failures < attempts:
            assert guarded("x") == "x"
        else:
            with pytest.raises(ConnectionError, match=f"failure {attempts}"):
                guarded("x")
    assert flaky.calls == min(failures + 1, attempts)


def test_the_last_original_error_comes_out_with_notes_on_the_others():
    with virtual_time(), pytest.raises(ConnectionError, match="failure 3") as info:
        Policy(retry=3, name="fetch").call(Flaky(3))
    assert info.value.__notes__ == [
        "fetch: attempt 1: ConnectionError: failure 1",
        "fetch: attempt 2: ConnectionError: failure 2",
    ]
    assert info.value.__cause__ is None
    assert info.value.__context__ is None
    ours = [
        f for f in traceback.extract_tb(info.value.__traceback__) if "resilience/_" in f.filename
    ]
    assert len(ours) <= 3


def test_an_error_that_is_raised_as_one_object_does_not_grow():
    shared = ConnectionError("down")

    def down():
        raise shared

    guarded = Policy(retry=Retry(2, backoff=0))(down)
    calls = []
    for _ in range(5):
        with pytest.raises(ConnectionError):
            guarded()
        calls.append(len(shared.__notes__))
    assert calls == [1] * 5


def test_a_shared_error_object_is_retried_at_every_call():
    shared, calls = ConnectionError("down"), []

    def down():
        calls.append(1)
        raise shared

    guarded = Policy(retry=Retry(3, backoff=0))(down)
    for n in range(1, 4):
        with pytest.raises(ConnectionError):
            guarded()
        assert len(calls) == 3 * n


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError])
def test_what_comes_again_is_not_retried(error):
    flaky = Flaky(1, error)
    with pytest.raises(error):
        Policy(retry=3).call(flaky)
    assert flaky.calls == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_base_exceptions_are_never_caught(error):
    flaky = Flaky(1, error)
    with pytest.raises(error):
        Policy(retry=3, on=lambda _: True).call(flaky)
    assert flaky.calls == 1


@pytest.mark.parametrize(
    "on", [OSError, (KeyError, OSError), lambda error: "failure" in str(error)]
)
def test_on_says_what_is_retried(on):
    flaky = Flaky(1, OSError)
    with virtual_time():
        assert Policy(retry=2, on=on).call(flaky, 5) == 5


def test_transient_knows_statuses_and_refuses_rejections():
    class HttpError(Exception):
        def __init__(self, **fields):
            self.__dict__.update(fields)

    response = type("Response", (), {"status_code": 503})()
    assert transient(HttpError(status=429))
    assert transient(HttpError(response=response))
    assert transient(HttpError(retry_after=3))
    assert transient(OSError(110, "timed out"))
    assert not transient(HttpError(status=404))
    assert not transient(OSError(2, "no such file"))
    assert not transient(BreakerOpenError("x", "open", retry_after=1.0))


class TestTime:
    @given(
        base=st.floats(0.001, 10),
        cap=st.floats(0.001, 100),
        attempt=st.integers(1, 5_000),
        seed=st.integers(),
    )
    def test_full_jitter_stays_inside_its_ceiling(self, base, cap, attempt, seed):
        pause = full_jitter(base, cap=cap, random=random.Random(seed).random)(attempt)
        assert 0 <= pause <= min(cap, base * 2.0 ** min(attempt - 1, 900))

    def test_there_is_jitter_at_the_cap(self):
        wait = full_jitter(1.0, cap=2.0, random=random.Random(1).random)
        assert len({wait(50) for _ in range(20)}) == 20

    def test_unseeded_jitter_differs_and_seeded_repeats(self):
        assert full_jitter()(9) != full_jitter()(9)
        one, two = (full_jitter(random=random.Random(3).random) for _ in range(2))
        assert [one(n) for n in range(1, 9)] == [two(n) for n in range(1, 9)]

    def test_tenacity_waits_are_backoffs(self):
        wait = tenacity.wait_fixed(2) + tenacity.wait_exponential(multiplier=1, max=4)
        with virtual_time() as clock:
            Policy(retry=Retry(4, backoff=wait)).call(Flaky(3))
        assert clock.sleeps == [3, 4, 6]

    def test_a_backoff_that_is_wrong_says_so(self):
        for pause in (-1.0, float("nan"), None):
            with pytest.raises(ConfigurationError, match="backoff"):
                Policy(retry=Retry(2, backoff=lambda _, p=pause: p)).call(Flaky(1))

    @given(
        allowed=st.floats(0.01, 5),
        works=st.lists(st.floats(0, 2), min_size=1, max_size=8),
        pauses=st.floats(0, 2),
    )
    def test_no_attempt_starts_and_no_sleep_ends_after_the_deadline(self, allowed, works, pauses):
        with virtual_time() as clock:
            start, starts = clock.monotonic(), []

            def work():
                starts.append(clock.monotonic())
                clock.sleep(works[len(starts) % len(works)])
                raise ConnectionError

            budget = Budget(burst=100)
            policy = Policy(retry=Retry(20, backoff=pauses, budget=budget), deadline=allowed)
            with pytest.raises(ConnectionError):
                policy.call(work)
            assert all(moment < start + allowed for moment in starts)
            # whatever comes after the last attempt's own work is none of ours
            assert clock.monotonic() <= starts[-1] + max(works) + 1e-9

    def test_a_call_whose_time_is_over_does_not_start(self):
        flaky = Flaky(0)
        with virtual_time(), deadline(0), pytest.raises(DeadlineExceededError):
            Policy().call(flaky)
        assert flaky.calls == 0

    def test_deadlines_only_shorten_and_end(self):
        with virtual_time() as clock:
            assert remaining() is None
            with deadline(2.0):
                with deadline(60.0):
                    assert remaining() == 2.0
                with deadline(1.0):
                    assert remaining() == 1.0
                clock.advance(5.0)
                assert remaining() == 0.0
            assert remaining() is None

    def test_a_sync_timeout_is_seen_by_what_runs_inside(self):
        @Policy(timeout=0.5)
        def outer():
            return remaining(), Policy(timeout=9.0).call(remaining)

        with virtual_time():
            assert outer() == (0.5, 0.5)
            with deadline(0.25):
                assert outer() == (0.25, 0.25)
            assert remaining() is None

    def test_an_answer_that_comes_late_is_given_and_counts_as_a_failure(self):
        with virtual_time() as clock:
            breaker = Breaker(min_calls=1, window=1)

            def late():
                clock.sleep(1.0)
                return "late"

            assert Policy(timeout=0.5, breaker=breaker).call(late) == "late"
            assert breaker.state == "open"


class TestBudget:
    @given(outcomes=st.lists(st.booleans(), max_size=150), ratio=st.floats(0, 1))
    def test_attempts_are_bounded_by_calls(self, outcomes, ratio):
        budget, attempts = Budget(ratio=ratio, burst=5), [0]

        def work(good):
            attempts[0] += 1
            if not good:
                raise ConnectionError

        guarded = Policy(retry=Retry(4, backoff=0, budget=budget))(work)
        with virtual_time():
            for good in outcomes:
                try:
                    guarded(good)
                except ConnectionError:
                    pass
        assert attempts[0] <= (1 + ratio) * len(outcomes) + 5 + 1e-3

    def test_an_outage_is_not_made_worse(self):
        flaky = Flaky(10_000)
        guarded = Policy(retry=Retry(3, backoff=0))(flaky)
        for _ in range(1000):
            with pytest.raises(ConnectionError):
                guarded()
        assert flaky.calls == 1010  # the burst of ten, once
        with pytest.raises(ConnectionError) as info:
            guarded()
        assert any("budget" in note for note in info.value.__notes__)

    def test_it_is_shared_by_passing_it(self):
        budget = Budget(burst=1)
        one = Policy(retry=Retry(5, backoff=0, budget=budget))(Flaky(9))
        other = Policy(retry=Retry(5, backoff=0, budget=budget))(flaky := Flaky(9))
        for guarded in (one, other):
            with pytest.raises(ConnectionError):
                guarded()
        assert flaky.calls == 1
        assert budget.tokens == 0.0
        assert pickle.loads(pickle.dumps(budget)).tokens == 1.0

    def test_it_never_holds_more_than_its_burst(self):
        budget = Budget(ratio=0.7, burst=1)
        assert budget.spend()
        for _ in range(5):
            budget.earn()
        assert budget.tokens == 1.0

    def test_threads_do_not_overspend(self):
        budget, spent = Budget(ratio=0.0, burst=100), []
        barrier = threading.Barrier(8)

        def spend():
            barrier.wait(60)
            for _ in range(50):
                spent.append(budget.spend())

        threads = [threading.Thread(target=spend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert spent.count(True) == 100


class TestNesting:
    def nest(self, inner, levels, attempts=3):
        for level in range(levels):
            inner = Policy(retry=Retry(attempts, backoff=0, budget=None), name=f"level{level}")(
                inner
            )
        return inner

    def test_attempts_do_not_multiply(self):
        flaky = Flaky(1_000)
        with pytest.raises(ConnectionError):
            self.nest(flaky, 3)()
        assert flaky.calls == 3  # not 27

    def test_nor_when_the_error_is_wrapped(self):
        flaky = Flaky(1_000)
        inner = self.nest(flaky, 1)

        def wrapping():
            try:
                inner()
            except ConnectionError as error:
                raise TimeoutError("features") from error

        with pytest.raises(TimeoutError):
            Policy(retry=Retry(3, backoff=0)).call(wrapping)
        assert flaky.calls == 3

    def test_attempts_of_two_levels_add_up_at_most(self):
        calls = [0]

        def work():
            calls[0] += 1
            if calls[0] % 3:
                raise ConnectionError

        inner = self.nest(work, 1)

        def outer():
            inner()
            raise ConnectionError("outer")

        with pytest.raises(ConnectionError):
            Policy(retry=Retry(3, backoff=0, budget=None)).call(outer)
        assert calls[0] <= 3 + 2  # 9 if both had their own way

    def test_what_the_inner_one_would_not_retry_the_outer_may(self):
        flaky = Flaky(1, KeyError)
        inner = Policy(retry=Retry(3, backoff=0))(flaky)
        assert Policy(retry=Retry(2, backoff=0), on=KeyError).call(inner, 1) == 1


class TestLimits:
    def test_a_full_bulkhead_rejects_at_once_and_frees_on_every_way_out(self):
        policy = Policy(bulkhead=1, name="gpu")

        def inside():
            with pytest.raises(BulkheadFullError, match="gpu"):
                policy.call(int)
            raise KeyboardInterrupt

        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                policy.call(inside)
        assert policy.call(int) == 0

    def test_it_holds_for_threads(self):
        running, most = [0], [0]
        lock, barrier = threading.Lock(), threading.Barrier(8)
        policy = Policy(bulkhead=3)

        def work():
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            current().sleep(0.001)
            with lock:
                running[0] -= 1

        def many():
            barrier.wait(60)
            for _ in range(20):
                try:
                    policy.call(work)
                except BulkheadFullError:
                    pass

        threads = [threading.Thread(target=many) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert most[0] <= 3

    @given(
        rate=st.floats(0.2, 50), gaps=st.lists(st.sampled_from([0.0, 0.01, 0.3, 2.0]), max_size=60)
    )
    def test_a_rate_admits_no_more_than_its_bucket(self, rate, gaps):
        with virtual_time() as clock:
            policy, start, admitted = Policy(rate=rate), clock.monotonic(), 0
            for gap in gaps:
                clock.advance(gap)
                try:
                    policy.call(int)
                    admitted += 1
                except RateLimitedError as error:
                    assert error.retry_after > 0
            elapsed = clock.monotonic() - start
        assert admitted <= max(1.0, rate) + rate * elapsed + 1e-6

    def test_ten_a_second_are_ten_at_once_and_the_wait_is_true(self):
        with virtual_time() as clock:
            policy = Policy(rate=10)
            for _ in range(10):
                policy.call(int)
            with pytest.raises(RateLimitedError) as info:
                policy.call(int)
            clock.advance(info.value.retry_after)
            policy.call(int)

    def test_rejections_are_neither_failures_nor_retried(self):
        breaker = Breaker(min_calls=1, window=1)
        inner = Policy(rate=0.001)(lambda: 0)
        with virtual_time() as clock:
            policy = Policy(retry=5, breaker=breaker, on=lambda _: True)
            policy.call(inner)
            with pytest.raises(RateLimitedError):
                policy.call(inner)
            assert clock.sleeps == []
        assert breaker.state == "closed"


def test_retrying_stops_when_the_breaker_opens():
    flaky, breaker = Flaky(9), Breaker(min_calls=2, window=2, name="db")
    with virtual_time() as clock, pytest.raises(ConnectionError, match="failure 2") as info:
        Policy(retry=9, breaker=breaker).call(flaky)
    assert flaky.calls == 2
    assert len(clock.sleeps) == 1
    assert "breaker 'db' is open" in info.value.__notes__[-1]


def test_an_answer_that_is_not_accepted_is_a_failure():
    breaker = Breaker(min_calls=1, window=1)
    with pytest.raises(ResultRejectedError, match="finite"):
        Policy(accept=finite, breaker=breaker, name="model").call(lambda: float("nan"))
    assert breaker.state == "open"
    answers = iter([float("nan"), 1.0])
    with virtual_time():
        policy = Policy(accept=finite, retry=2, on=ResultRejectedError)
        assert policy.call(lambda: next(answers)) == 1.0


class TestKinds:
    def test_signature_name_and_doc_stay(self):
        @Policy(retry=2)
        def score(x: int, /, y: str = "a", *, z: float) -> bool:
            """Say yes."""
            return True

        assert (
            str(inspect.signature(score))
            == "(x: 'int', /, y: 'str' = 'a', *, z: 'float') -> 'bool'"
        )
        assert (score.__name__, score.__doc__) == ("score", "Say yes.")

    def test_methods_partials_and_callable_objects(self):
        class Model:
            bias = 1

            @Policy(retry=2)
            def predict(self, x):
                return x + self.bias

            @staticmethod
            @Policy()
            def double(x):
                return 2 * x

            @classmethod
            @Policy()
            def made(cls):
                return cls()

        model = Model.made()
        assert model.predict(1) == 2
        assert Policy()(model.predict)(1) == 2
        assert Model.double(2) == 4
        assert Policy()(functools.partial(max, 3))(1) == 3
        flaky = Flaky(1)
        with virtual_time():
            guarded = Policy(retry=2)(flaky)
            assert guarded("x") == "x"
        assert flaky.calls == 2
        assert not hasattr(guarded, "calls")

    def test_above_and_below_classmethod_and_staticmethod_and_objects_of_every_kind(self):
        again = Policy(retry=Retry(2, backoff=0))

        class Model:
            @again
            @classmethod
            def name(cls):
                return cls.__name__

            @again
            @staticmethod
            def twice(x):
                return 2 * x

        class Sub(Model):
            pass

        assert (Sub.name(), Sub().name(), Sub.twice(2), Sub().twice(2)) == ("Sub", "Sub", 4, 4)

        class Streaming:
            def __call__(self, n):
                yield from range(n)

        class AsyncStreaming:
            async def __call__(self, n):
                for item in range(n):
                    yield item

        async def work(a, b):
            return a + b

        async def main():
            assert await again(functools.partial(work, 1))(2) == 3
            assert await again.call(functools.partial(work, 1), 2) == 3
            assert [item async for item in again(AsyncStreaming())(2)] == [0, 1]

        assert list(again(Streaming())(3)) == [0, 1, 2]
        asyncio.run(main())

    @pytest.mark.parametrize("thing", [3, None, int])
    def test_what_cannot_be_decorated_is_refused(self, thing):
        with pytest.raises(ConfigurationError):
            Policy()(thing)

    def test_a_coroutine_from_a_def_is_an_error_not_a_success(self):
        async def work():
            return 1

        breaker = Breaker(min_calls=1, window=1)
        for policy in (Policy(breaker=breaker), Policy(timeout=1.0)):
            with pytest.raises(ConfigurationError, match="async def"):
                policy.call(lambda: work())

    def test_hedging_a_def_is_refused(self):
        with pytest.raises(ConfigurationError, match="async def"):
            Policy(hedge=Hedge(0.1))(len)


class TestValue:
    def test_frozen_hashable_equal_and_readable(self):
        make = lambda: Policy(timeout=0.5, deadline=2, bulkhead=3, name="x", on=OSError)
        assert make() == make()
        assert hash(make()) == hash(make())
        assert make() != Policy(timeout=0.6, deadline=2, bulkhead=3, name="x", on=OSError)
        with pytest.raises(AttributeError, match="frozen"):
            make().timeout = 3
        with pytest.raises(AttributeError, match="frozen"):
            del make().timeout

    def test_repr_is_the_order(self):
        policy = Policy(
            name="p",
            timeout=1,
            breaker=Breaker(name="b"),
            hedge=Hedge(0.2),
            retry=4,
            bulkhead=8,
            rate=100,
            deadline=3,
            accept=finite,
        )
        assert repr(policy) == (
            "<Policy 'p': deadline(3.0) > rate(100.0) > bulkhead(8) > retry(4) > hedge(0.2) > "
            "breaker('b') > timeout(1.0) > accept(finite)>"
        )

    def test_pickle(self):
        policy = Policy(retry=Retry(2, backoff=full_jitter(1)), timeout=1, accept=finite | ~finite)
        copy = pickle.loads(pickle.dumps(policy))
        assert (copy.timeout, copy.retry.attempts) == (1.0, 2)
        assert copy.retry.backoff == policy.retry.backoff
        assert copy.accept(float("nan"))
        assert pickle.loads(pickle.dumps(Policy(timeout=1))) == Policy(timeout=1)

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("retry", 0),
            ("retry", True),
            ("retry", "3"),
            ("breaker", True),
            ("timeout", 0),
            ("timeout", float("nan")),
            ("timeout", True),
            ("deadline", -1),
            ("bulkhead", 0),
            ("rate", 0),
            ("rate", "10/s"),
            ("hedge", 0.1),
            ("on", "OSError"),
            ("on", KeyboardInterrupt),
            ("accept", 3),
            ("name", ""),
        ],
    )
    def test_a_wrong_argument_is_named(self, argument, value):
        with pytest.raises(ConfigurationError, match=rf"Policy\({argument}=\.\.\.\)"):
            Policy(**{argument: value})

    def test_wrong_parts(self):
        for make in (
            lambda: Retry(0),
            lambda: Retry(budget=3),
            lambda: Retry(backoff="1s"),
            lambda: Retry(backoff=-1),
            lambda: Hedge(0),
            lambda: Hedge(1, extra=0),
            lambda: Budget(ratio=2),
            lambda: Budget(burst=-1),
            lambda: full_jitter(0),
            lambda: full_jitter(random=3),
            lambda: deadline(-1),
            lambda: deadline(float("nan")),
            lambda: deadline(None),
        ):
            with pytest.raises(ConfigurationError):
                make()


class Batch:
    """Stands for what a call must not keep alive."""


@pytest.mark.parametrize(
    "policy",
    [
        Policy(retry=Retry(3, backoff=0), breaker=Breaker(min_calls=100), name="direct"),
        Policy(retry=Retry(3, backoff=0), timeout=5.0, deadline=9.0, bulkhead=2, name="full"),
    ],
    ids=lambda policy: policy.name,
)
@pytest.mark.parametrize("failures", [0, 1, 5])
def test_nothing_keeps_the_arguments_and_no_cycle_is_left(policy, failures, cycles_left_by):
    state = [0]

    def work(batch):
        state[0] += 1
        if state[0] <= failures:
            raise ConnectionError("x")

    guarded = policy(work)

    def once():
        state[0] = 0
        batch = Batch()
        ref = weakref.ref(batch)
        try:
            guarded(batch)
        except ConnectionError:
            pass
        return ref

    assert cycles_left_by(once) == 0
    gc.disable()
    try:
        assert once()() is None
    finally:
        gc.enable()


def test_the_failed_attempt_is_gone_before_the_next_one_begins():
    """Out of memory: the second attempt needs what the first one held."""
    held = []

    def work():
        if held:
            assert held[0]() is None
            return "ok"
        big = Batch()
        held.append(weakref.ref(big))
        raise ConnectionError

    assert Policy(retry=Retry(2, backoff=0)).call(work) == "ok"


def test_retries_and_rejections_are_counted():
    with virtual_time():
        policy = Policy(retry=3, name="counted-retries")
        policy.call(Flaky(2))
        values = {(s.name, s.labels): s.value for s in telemetry.collect()}
    assert values["resilience_retries_total", (("policy", "counted-retries"),)] == 2


def test_the_same_seed_and_clock_give_the_same_pauses():
    def trace():
        with virtual_time() as clock:
            wait = full_jitter(0.1, cap=9, random=random.Random(5).random)
            Policy(retry=Retry(6, backoff=wait)).call(Flaky(5))
            return clock.sleeps, clock.monotonic()

    assert trace() == trace()


def test_an_error_that_the_caller_is_handling_is_no_spent_attempt():
    primary, secondary = Flaky(1_000), Flaky(1_000)
    retry = Retry(3, backoff=0)

    def either():
        try:
            Policy(retry=retry).call(primary)
        except ConnectionError:
            Policy(retry=retry).call(secondary)

    with pytest.raises(ConnectionError):
        either()
    assert (primary.calls, secondary.calls) == (3, 3)


def test_an_error_wrapped_without_from_is_still_a_spent_attempt():
    flaky = Flaky(1_000)
    inner = Policy(retry=Retry(3, backoff=0))(flaky)

    def wrapping():
        try:
            inner()
        except ConnectionError:
            raise TimeoutError("features")

    with pytest.raises(TimeoutError):
        Policy(retry=Retry(3, backoff=0)).call(wrapping)
    assert flaky.calls == 3


def test_a_frozen_error_comes_out_as_it_is():
    @dataclasses.dataclass(frozen=True)
    class FrozenError(ConnectionError):
        host: str

    error = FrozenError("a")

    def fails():
        raise error

    with pytest.raises(FrozenError) as info:
        Policy(retry=Retry(2, backoff=0)).call(fails)
    assert info.value is error


def test_an_os_error_of_a_client_is_known_by_its_number():
    class ClientError(OSError):
        pass

    assert transient(ClientError(errno.ECONNREFUSED, "refused"))
    assert not transient(ClientError(errno.ENOENT, "missing"))


def test_a_deadline_in_use_is_not_entered_again():
    limit = deadline(5.0)
    with limit, pytest.raises(ConfigurationError, match="make one for each"):
        limit.__enter__()
    assert remaining() is None
    with limit:
        assert remaining() is not None


@pytest.mark.parametrize(
    "block", [lambda: deadline(5.0), provenance], ids=["deadline", "provenance"]
)
def test_a_block_may_be_left_in_another_context(block):
    def resource():  # what frameworks make of a generator: begun in one context, ended in another
        with block():
            yield remaining()

    async def stream():
        with block():
            yield remaining()

    async def main():
        items = stream()
        await anext(items)
        await asyncio.create_task(items.aclose())
        return remaining()

    contexts = contextvars.copy_context(), contextvars.copy_context()
    held = resource()
    contexts[0].run(next, held)
    contexts[1].run(held.close)
    assert [context.run(remaining) for context in contexts] == [None, None]
    assert asyncio.run(main()) is None


def test_a_stream_cannot_be_judged():
    def stream():
        yield 1

    with pytest.raises(ConfigurationError, match="a stream has none"):
        Policy(accept=finite)(stream)
