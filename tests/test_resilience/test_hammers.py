"""Many threads at once, listeners that misbehave, and what is left in memory when a call has ended."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from contextlib import ExitStack, suppress

import pytest

from mlkit import telemetry
from mlkit.errors import AllTiersFailedError, BulkheadFullError, RateLimitedError, RejectedError
from mlkit.resilience import (
    Breaker,
    Budget,
    Hedge,
    Policy,
    Retry,
    Threaded,
    constant,
    fallback,
    finite,
    stale,
    tier,
)
from mlkit.testing import virtual_time

THREADS = 32


@pytest.fixture
def hammer():
    """Return a function that runs work in 32 threads, begun together, which change at every chance."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def strike(work, clock=None):
        barrier, results, errors = threading.Barrier(THREADS), [], []

        def run():
            barrier.wait(60)
            try:
                results.append(work())
            except Exception as error:
                errors.append(error)

        if clock is None:
            threads = [threading.Thread(target=run, daemon=True) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
        else:
            threads = [clock.thread(run) for _ in range(THREADS)]
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        return results, errors

    yield strike
    sys.setswitchinterval(interval)


class TestThreads:
    @pytest.mark.parametrize("probes", [1, 3])
    def test_a_breaker_admits_its_probes_in_every_era(self, hammer, probes):
        for _ in range(10):
            with virtual_time() as clock:
                breaker = Breaker(min_calls=1, window=1, cooldown=5.0, probes=probes)
                breaker.trip()
                clock.advance(5.0)
                tickets, errors = hammer(breaker.acquire, clock)
                assert errors == []
                admitted = [ticket for ticket in tickets if ticket is not None]
                assert len(admitted) == probes
                for ticket in admitted:
                    breaker.settle(ticket, True)
                assert breaker.state == "closed"

    def test_a_breaker_that_opens_under_fire_opens_once_an_era(self, hammer):
        breaker = Breaker(min_calls=10, window=50, cooldown=3600.0)
        opened = []

        def fail():
            for _ in range(50):
                with suppress(RejectedError, ConnectionError):
                    guarded()

        def down():
            raise ConnectionError

        guarded = Policy(breaker=breaker)(down)
        with telemetry.listen(lambda event: opened.append(event.kind)):
            _, errors = hammer(fail)
        assert errors == []
        assert opened.count("resilience.breaker.opened") == 1
        assert breaker.stats().era == 1

    def test_a_bulkhead_is_never_overfull_and_ends_empty(self, hammer):
        policy = Policy(bulkhead=4)
        lock, inside, most = threading.Lock(), [0], [0]

        def work():
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(1e-5)
            with lock:
                inside[0] -= 1

        guarded, rejected = policy(work), []

        def call():
            for _ in range(20):
                try:
                    guarded()
                except BulkheadFullError:
                    rejected.append(1)

        _, errors = hammer(call)
        assert errors == []
        assert 1 <= most[0] <= 4
        with ExitStack() as stack:  # all four permits are back
            inner = policy(lambda depth: depth and inner(depth - 1))
            assert inner(3) == 0
            with pytest.raises(BulkheadFullError):
                inner(4)
            stack.close()

    def test_a_budget_pays_what_it_holds_and_no_more(self, hammer):
        budget = Budget(ratio=0.1, burst=50)
        paid, errors = hammer(lambda: sum(budget.spend() for _ in range(20)))
        assert errors == []
        assert sum(paid) == 50
        hammer(lambda: [budget.earn() for _ in range(10)])
        assert budget.tokens == pytest.approx(THREADS * 10 * 0.1)

    def test_attempts_stay_in_the_budget(self, hammer):
        attempts, calls = telemetry.Counter("attempts"), THREADS * 20

        def down():
            attempts.add()
            raise ConnectionError

        guarded = Policy(retry=Retry(5, backoff=0, budget=Budget(0.1, 10)))(down)

        def call():
            for _ in range(20):
                with suppress(ConnectionError):
                    guarded()

        _, errors = hammer(call)
        assert errors == []
        assert calls <= attempts.value <= 1.1 * calls + 10

    def test_a_rate_is_kept(self, hammer):
        with virtual_time() as clock:
            guarded = Policy(rate=25.0)(lambda: 1)

            def call():
                admitted = 0
                for _ in range(5):
                    with suppress(RateLimitedError):
                        admitted += guarded()
                return admitted

            admitted, errors = hammer(call, clock)
        assert errors == []
        assert sum(admitted) == 25


def _flip(breaker):
    """Take a breaker through open, half-open and closed by calls alone."""
    answers = iter([ConnectionError, None])

    def work():
        if error := next(answers):
            raise error
        return "answer"

    guarded = Policy(breaker=breaker)(work)
    with virtual_time() as clock:
        with pytest.raises(ConnectionError):
            guarded()
        clock.advance(30.0)
        assert guarded() == "answer"
    assert breaker.state == "closed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_that_it_does_not_have():
    breaker = Breaker(min_calls=2, window=4, cooldown=1e-9, name="forked")
    budget, calls, over = Budget(0.5, 5), telemetry.Counter("calls"), threading.Event()

    def work(x):
        calls.add()
        if calls.value % 3 == 0:
            raise ConnectionError
        return x

    policy = Policy(
        retry=Retry(2, backoff=0, budget=budget), breaker=breaker, bulkhead=100, rate=1e9
    )
    score = fallback(
        tier(work, policy=policy), stale(60, key=lambda x: "same"), constant(0), name="forked"
    )

    def use():
        score(1)
        breaker.trip()
        breaker.reset()
        budget.spend()
        budget.earn()
        Budget(name="forked")
        telemetry.collect()

    def busy():
        while not over.is_set():
            use()

    threads = [threading.Thread(target=busy, daemon=True) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(12):  # without care six in ten hang
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # ends the child if it hangs
                with suppress(BaseException):
                    use()
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_none_of_the_calls_and_threads_of_its_parent():
    policy = Policy(bulkhead=1, timeout=Threaded(60.0, max_abandoned=1))
    plain = Policy(bulkhead=1)
    begun, over = threading.Event(), threading.Event()

    def child_works():
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                for _ in range(2):
                    assert policy.call(lambda: 7) == plain.call(lambda: 7) == 7
                with pytest.raises(BulkheadFullError):
                    plain.call(plain.call, int)
                os._exit(0)
            os._exit(1)
        return os.waitpid(child, 0)[1] == 0

    with virtual_time(), pytest.raises(TimeoutError):
        policy.call(over.wait)
    other = threading.Thread(target=plain.call, args=(lambda: (begun.set(), over.wait()),))
    other.start()
    begun.wait(60)
    try:
        assert child_works()
        with pytest.raises(BulkheadFullError):  # here they are still there
            plain.call(int)
    finally:
        over.set()
        other.join(60)
    assert plain.call(child_works)
    assert plain.call(int) == 0


class TestListeners:
    @pytest.mark.parametrize("action", ["always", "error"])
    def test_one_that_raises_changes_nothing_for_the_call(self, action):
        def broken(event):
            raise RuntimeError("no disk")

        heard = []
        with telemetry.listen(broken, scope="context"), warnings.catch_warnings():
            with telemetry.listen(lambda event: heard.append(event.kind), scope="context"):
                warnings.simplefilter(action)
                if action == "always":
                    with pytest.warns(match="no disk"):
                        _flip(Breaker(min_calls=1, window=1))
                else:
                    _flip(Breaker(min_calls=1, window=1))
        assert [kind.rpartition(".")[2] for kind in heard] == ["opened", "half_open", "closed"]

    def test_one_that_uses_everything_it_hears_about_does_not_hang(self, hammer):
        breaker = Breaker(min_calls=1, window=1, cooldown=1e-9)
        policy = Policy(breaker=breaker, bulkhead=1000, rate=1e9, retry=Retry(2, backoff=0))
        busy = threading.local()

        def meddle(event):
            if getattr(busy, "now", False):
                return
            busy.now = True
            try:
                breaker.stats()
                breaker.reset()
                breaker.trip()
                telemetry.collect()
                with telemetry.listen(str), suppress(RejectedError):
                    policy.call(int)
            finally:
                busy.now = False

        def down():
            raise ConnectionError

        guarded = policy(down)

        def call():
            for _ in range(5):
                with suppress(RejectedError, ConnectionError):
                    guarded()

        with telemetry.listen(meddle):
            _, errors = hammer(call)
        assert errors == []

    def test_listening_and_leaving_while_others_speak(self, hammer):
        heard = telemetry.Counter("heard")

        def work():
            for _ in range(20):
                with telemetry.listen(lambda event: heard.add()):
                    telemetry.emit("test.hammer.struck", "x")

        before = telemetry._everywhere
        _, errors = hammer(work)
        assert errors == []
        assert heard.value >= THREADS * 20
        assert telemetry._everywhere == before


class Batch:
    """Stands for what a call must not keep alive."""


async def _async_identity(batch):
    return 1.0


async def _async_down(batch):
    raise ConnectionError


def _identity(batch):
    return 1.0


def _down(batch):
    raise ConnectionError


def _full(**settings):
    return Policy(
        retry=Retry(3, backoff=0), breaker=Breaker(min_calls=100_000, window=100_000), timeout=5.0, deadline=9.0,
        bulkhead=8, rate=1e6, **settings,
    )  # fmt: skip


def _chain(first, second):
    policy = Policy(retry=2, breaker=None)
    return fallback(
        tier(first, policy=policy, accept=finite, name="first"),
        tier(second, policy=None, name="second"),
    )


SYNC = {
    "policy": lambda fn: _full()(fn),
    "fallback from first": lambda fn: _chain(fn, _identity),
    "fallback to constant": lambda fn: fallback(
        tier(_down, policy=None, name="first"), tier(fn, policy=None), constant(0)
    ),
    "dead fallback": lambda fn: _chain(_down, fn),
}
ASYNC = {
    "policy": lambda fn: _full()(fn),
    "hedged": lambda fn: Policy(hedge=Hedge(1.0), retry=Retry(3, backoff=0))(fn),
    "fallback from first": lambda fn: _chain(fn, _async_identity),
    "dead fallback": lambda fn: _chain(_async_down, fn),
}


@pytest.fixture
def without_collector(only_what_is_new):
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("only_what_is_new")
class TestMemory:
    @pytest.mark.parametrize("fn", [_identity, _down], ids=["success", "failure"])
    @pytest.mark.parametrize("way", SYNC)
    def test_arguments_are_freed_at_once(self, way, fn, without_collector):
        guarded, batch = SYNC[way](fn), Batch()
        reference = weakref.ref(batch)
        with suppress(ConnectionError, AllTiersFailedError):
            guarded(batch)
        del batch
        assert reference() is None

    @pytest.mark.parametrize("fn", [_async_identity, _async_down], ids=["success", "failure"])
    @pytest.mark.parametrize("way", ASYNC)
    def test_arguments_are_freed_at_once_async(self, way, fn, without_collector):
        async def main():
            guarded, batch = ASYNC[way](fn), Batch()
            reference = weakref.ref(batch)
            with suppress(ConnectionError, AllTiersFailedError):
                await guarded(batch)
            del batch
            await asyncio.sleep(0)
            return reference()

        assert asyncio.run(main()) is None

    @pytest.mark.parametrize(
        "policy",
        [
            Policy(timeout=0.002),
            Policy(deadline=0.002, retry=Retry(2, backoff=0)),
            Policy(timeout=0.004, hedge=Hedge(0.001)),
        ],
        ids=["timeout", "deadline", "hedged"],
    )
    def test_arguments_are_freed_at_once_when_time_is_over(self, policy, without_collector):
        @policy
        async def hangs(_batch):
            await asyncio.Event().wait()  # `sleep` would leave a timer, which holds its future

        async def main():
            batch = Batch()
            reference = weakref.ref(batch)
            task = asyncio.create_task(hangs(batch))  # a task keeps its error, and so its frames
            await asyncio.wait([task])
            assert isinstance(task.exception(), TimeoutError)
            del task, batch
            await asyncio.sleep(0)
            return reference()

        assert asyncio.run(main()) is None

    @pytest.mark.parametrize("fn", [_identity, _down], ids=["success", "failure"])
    @pytest.mark.parametrize("way", SYNC)
    def test_calls_leave_no_cycle(self, way, fn, cycles_left_by):
        guarded = SYNC[way](fn)

        def use():
            for _ in range(100):
                with suppress(ConnectionError, AllTiersFailedError):
                    guarded(None)

        assert cycles_left_by(use) == 0

    @pytest.mark.parametrize("fn", [_async_identity, _async_down], ids=["success", "failure"])
    @pytest.mark.parametrize("way", ASYNC)
    def test_async_calls_leave_no_cycle(self, way, fn, cycles_left_by):
        guarded = ASYNC[way](fn)

        async def main():
            for _ in range(100):
                with suppress(ConnectionError, AllTiersFailedError):
                    await guarded(None)

        with asyncio.Runner() as runner:
            loop_alone = cycles_left_by(lambda: runner.run(asyncio.sleep(0)))
            assert cycles_left_by(lambda: runner.run(main())) <= loop_alone
