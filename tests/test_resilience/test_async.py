"""Policies around coroutines and streams, in virtual time."""

from __future__ import annotations

import asyncio
import inspect
from unittest.mock import AsyncMock

import pytest

from mlkit._clock import current
from mlkit.errors import (
    BulkheadFullError,
    ConfigurationError,
    DeadlineExceededError,
    ResultRejectedError,
)
from mlkit.resilience import Breaker, Budget, Hedge, Policy, Retry, deadline, finite, remaining
from mlkit.testing import virtual_time


def run(main):
    with virtual_time() as clock:
        return clock.run(main(clock))


def others():
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def test_a_coroutine_function_stays_one_and_keeps_its_signature():
    @Policy(retry=2)
    async def fetch(key: str, *, n: int = 1) -> int:
        return n

    assert inspect.iscoroutinefunction(fetch)
    assert str(inspect.signature(fetch)) == "(key: 'str', *, n: 'int' = 1) -> 'int'"
    assert asyncio.run(fetch("a", n=3)) == 3


def test_methods_and_objects_with_an_async_call():
    calls = []

    class Client:
        @Policy(retry=Retry(2, backoff=0))
        async def get(self, x):
            return x

        async def __call__(self, x):
            calls.append(x)
            if len(calls) < 2:
                raise ConnectionError
            return x

    async def main(clock):
        assert await Client().get(1) == 1
        assert await Policy(retry=Retry(2, backoff=0))(Client())(5) == 5

    run(main)
    assert calls == [5, 5]


@pytest.mark.parametrize("extra", [{}, {"timeout": 9.0}, {"bulkhead": 2}])
def test_retry_sleeps_in_the_loop(extra):
    calls = []

    async def flaky():
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError(f"failure {len(calls)}")
        return "ok"

    async def main(clock):
        assert await Policy(retry=Retry(3, backoff=2), **extra).call(flaky) == "ok"
        assert clock.sleeps == [2.0, 2.0]

    run(main)


def test_a_timeout_cancels_the_attempt_and_only_it():
    ended = []

    async def slow():
        try:
            await current().asleep(10)
        finally:
            ended.append(current().monotonic())

    async def main(clock):
        start = clock.monotonic()
        policy = Policy(timeout=0.5, retry=Retry(2, backoff=1), name="slow")
        with pytest.raises(
            DeadlineExceededError, match=r"slow did not finish within 0\.5 s"
        ) as info:
            await policy.call(slow)
        assert info.value.seconds == 0.5
        assert [moment - start for moment in ended] == pytest.approx([0.5, 2.0])
        assert asyncio.current_task().cancelling() == 0

    run(main)


def test_the_functions_own_timeout_error_is_not_ours():
    async def work():
        raise TimeoutError("theirs")

    async def main(clock):
        with pytest.raises(TimeoutError, match=r"^theirs$"):
            await Policy(timeout=1).call(work)

    run(main)


def test_the_deadline_cuts_the_last_attempt():
    async def slow():
        await current().asleep(2)

    async def main(clock):
        start = clock.monotonic()
        with pytest.raises(DeadlineExceededError):
            await Policy(timeout=2.5, deadline=1.0).call(slow)
        assert clock.monotonic() - start == pytest.approx(1.0)
        with deadline(0.25), pytest.raises(DeadlineExceededError):
            await Policy(timeout=2.5).call(slow)
        assert clock.monotonic() - start == pytest.approx(1.25)

    run(main)


def test_remaining_time_is_each_tasks_own():
    async def ask(allowed):
        await current().asleep(0.1)
        return await Policy(timeout=allowed).call(left)

    async def left():
        await current().asleep(0.1)
        return remaining()

    async def main(clock):
        assert await asyncio.gather(*(ask(t) for t in (1, 2, 3))) == pytest.approx([0.9, 1.9, 2.9])
        assert remaining() is None

    run(main)


@pytest.mark.parametrize("extra", [{}, {"timeout": 60.0}, {"hedge": Hedge(30)}, {"bulkhead": 1}])
def test_cancellation_is_never_caught_retried_or_judged(extra):
    calls = []

    async def hang():
        calls.append(1)
        await current().asleep(1000)

    async def main(clock):
        breaker = Breaker(min_calls=1, window=1)
        policy = Policy(retry=5, breaker=breaker, on=lambda _: True, **extra)
        for _ in range(10):
            task = asyncio.create_task(policy.call(hang))
            await current().asleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert (breaker.state, breaker.stats().calls) == ("closed", 0)
        assert len(calls) == 10
        assert others() == []

    run(main)


def test_a_cancelled_probe_gives_its_permit_back():
    async def main(clock):
        breaker = Breaker(min_calls=1, window=1, cooldown=5)
        breaker.trip()
        await current().asleep(5)
        policy = Policy(breaker=breaker)
        task = asyncio.create_task(policy.call(asyncio.sleep, 100))
        await current().asleep(1)
        assert breaker.state == "half_open"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert breaker.state == "half_open"
        assert await policy.call(asyncio.sleep, 0, "answer") == "answer"
        assert breaker.state == "closed"

    run(main)


def test_fifty_tasks_make_one_probe():
    async def main(clock):
        breaker = Breaker(min_calls=1, window=1, cooldown=5)
        breaker.trip()
        await current().asleep(5)
        started = []

        async def work():
            started.append(1)
            await current().asleep(1)

        guarded = Policy(breaker=breaker)(work)
        await asyncio.gather(*(guarded() for _ in range(50)), return_exceptions=True)
        assert len(started) == 1

    run(main)


def test_the_breaker_guards_async_functions():
    async def failing():
        raise OSError

    async def main(clock):
        breaker = Breaker(min_calls=3, window=3)
        for _ in range(3):
            with pytest.raises(OSError):
                await Policy(breaker=breaker).call(failing)
        assert breaker.state == "open"

    run(main)


def test_a_bulkhead_counts_tasks():
    async def main(clock):
        policy = Policy(bulkhead=2)
        results = await asyncio.gather(
            *(policy.call(asyncio.sleep, 1, n) for n in range(5)), return_exceptions=True
        )
        assert results[:2] == [0, 1]
        assert all(isinstance(result, BulkheadFullError) for result in results[2:])
        assert await policy.call(asyncio.sleep, 1, 7) == 7

    run(main)


def test_accept_refuses_an_answer():
    async def nan():
        return float("nan")

    async def main(clock):
        with pytest.raises(ResultRejectedError):
            await Policy(accept=finite).call(nan)

    run(main)


class TestHedge:
    def work(self, *seconds):
        """One entry per attempt: seconds until an answer, negative until a failure."""
        plan, state = iter(seconds), {"started": [], "cancelled": 0}

        async def work():
            number, pause = len(state["started"]), next(plan)
            state["started"].append(current().monotonic())
            try:
                await current().asleep(abs(pause))
            except asyncio.CancelledError:
                await current().asleep(0.01)  # a loser that needs time to clean up
                state["cancelled"] += 1
                raise
            if pause < 0:
                raise ConnectionError(number)
            return number

        return work, state

    def hedged(self, seconds, hedge, error=None, **policy):
        work, state = self.work(*seconds)

        async def main(clock):
            start = clock.monotonic()
            guarded = Policy(hedge=hedge, **policy)(work)
            if error is None:
                result = await guarded()
            else:
                with pytest.raises(error):
                    await guarded()
                result = None
            assert others() == []
            return result, clock.monotonic() - start

        answer, elapsed = run(main)
        return answer, elapsed, state

    def test_a_fast_primary_is_alone(self):
        answer, elapsed, state = self.hedged([0.1], Hedge(0.5))
        assert (answer, len(state["started"])) == (0, 1)
        assert elapsed == pytest.approx(0.1)

    def test_the_first_answer_wins_and_the_loser_is_cancelled_and_awaited(self):
        answer, elapsed, state = self.hedged([5.0, 0.2], Hedge(0.5))
        assert (answer, state["cancelled"]) == (1, 1)
        assert elapsed == pytest.approx(0.71)

    def test_it_starts_no_more_than_told(self):
        answer, _, state = self.hedged([5.0, 5.0, 1.0, 0.0], Hedge(0.5, extra=2))
        assert (answer, len(state["started"])) == (2, 3)

    def test_one_failure_waits_for_the_other(self):
        answer, elapsed, _ = self.hedged([-1.0, 1.0], Hedge(0.5))
        assert answer == 1
        assert elapsed == pytest.approx(1.5)

    def test_if_all_fail_the_last_error_comes_out(self):
        self.hedged([-1.0, -1.0], Hedge(0.5), ConnectionError)

    def test_each_hedge_is_paid_from_the_budget(self):
        policy = {"retry": Retry(1, budget=Budget(burst=1))}
        _, _, state = self.hedged([5.0, 4.0, 0.1], Hedge(0.5, extra=2), **policy)
        assert len(state["started"]) == 2

    def test_each_attempt_has_its_own_timeout(self):
        answer, elapsed, _ = self.hedged([9.0, 0.8], Hedge(0.5), timeout=1.0)
        assert answer == 1
        assert elapsed == pytest.approx(1.3)

    def test_a_cancelled_caller_leaves_nobody_behind(self):
        work, state = self.work(50.0, 50.0)

        async def main(clock):
            task = asyncio.create_task(Policy(hedge=Hedge(0.5)).call(work))
            await current().asleep(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert others() == []

        run(main)
        assert state["cancelled"] == 2

    def test_who_is_cancelled_while_losers_clean_up_is_told_by_whom(self):
        seen = []

        async def main(clock):
            n = 0

            async def work():
                nonlocal n
                n += 1
                if n == 1:
                    return await current().asleep(1.0)
                try:
                    await current().asleep(60.0)
                finally:
                    await current().asleep(10.0)

            async def caller():
                try:
                    await Policy(hedge=Hedge(0.5)).call(work)
                except asyncio.CancelledError as error:
                    seen.append(error.args)
                    raise

            task = asyncio.create_task(caller())
            await current().asleep(2.0)
            task.cancel("a scope of anyio, which knows its own by that")
            await asyncio.wait([task])
            assert task.cancelled()
            assert not others()

        run(main)
        assert seen == [("a scope of anyio, which knows its own by that",)]

    def test_both_attempts_pass_the_breaker_and_a_loser_is_no_verdict(self):
        breaker = Breaker(min_calls=1, window=5)
        self.hedged([5.0, 0.2], Hedge(0.5), breaker=breaker)
        assert (breaker.stats().calls, breaker.stats().failures) == (1, 0)


class TestStreams:
    def flaky(self, failures):
        calls = []

        def stream(n):
            calls.append(n)
            if len(calls) <= failures:
                raise ConnectionError("opening")
            yield from range(n)
            return "end"

        return stream, calls

    def test_opening_is_retried_and_items_come_once(self):
        stream, calls = self.flaky(2)
        with virtual_time():
            guarded = Policy(retry=3)(stream)
            assert inspect.isgeneratorfunction(guarded)
            assert list(guarded(3)) == [0, 1, 2]
        assert len(calls) == 3

    def test_a_failure_after_the_first_item_is_not_replayed(self):
        calls = []

        @Policy(retry=Retry(3, backoff=0))
        def stream():
            calls.append(1)
            yield 0
            raise ConnectionError("midway")

        got = []
        with pytest.raises(ConnectionError, match="midway"):
            got.extend(stream())
        assert (got, calls) == ([0], [1])

    def test_nothing_runs_before_it_is_iterated(self):
        stream, calls = self.flaky(0)
        made = Policy(retry=2)(stream)(3)
        assert calls == []
        made.close()

    def test_empty_streams_and_return_values(self):
        stream, _ = self.flaky(0)

        def outer():
            return (yield from Policy()(stream)(0))

        made = outer()
        with pytest.raises(StopIteration) as info:
            next(made)
        assert info.value.value == "end"

    def test_send_throw_and_close_reach_the_stream(self):
        log = []

        @Policy()
        def echo():
            got = None
            try:
                while True:
                    try:
                        got = yield got
                    except KeyError as error:
                        got = repr(error)
            finally:
                log.append("closed")

        made = echo()
        assert next(made) is None
        assert made.send("a") == "a"
        assert made.throw(KeyError("k")) == "KeyError('k')"
        made.close()
        assert log == ["closed"]

    def test_an_early_break_is_no_failure(self):
        breaker = Breaker(min_calls=1, window=3)
        guarded = Policy(breaker=breaker)(lambda n: n)  # noqa: F841 - the breaker is shared

        @Policy(breaker=breaker)
        def stream():
            yield from range(100)

        for _ in range(5):
            for _item in stream():
                break
        assert (breaker.state, breaker.stats().failures) == ("closed", 0)

    def test_async_streams_open_within_the_timeout_and_are_closed(self):
        log = []

        async def stream(n):
            log.append("open")
            await current().asleep(5 if len(log) == 1 else 0.1)
            try:
                for i in range(n):
                    yield i
                    await current().asleep(9)
            finally:
                log.append("closed")

        async def main(clock):
            guarded = Policy(timeout=1.0, retry=Retry(2, backoff=0))(stream)
            assert inspect.isasyncgenfunction(guarded)
            assert [i async for i in guarded(3)] == [0, 1, 2]
            assert [i async for i in guarded(0)] == []
            made = guarded(3)
            assert await anext(made) == 0
            await made.aclose()

        run(main)
        assert log[:4] == ["open", "open", "closed", "open"]
        assert log[-1] == "closed"

    def test_hedging_a_stream_is_refused(self):
        async def stream():
            yield 1

        with pytest.raises(ConfigurationError):
            Policy(hedge=Hedge(0.1))(stream)


@pytest.mark.parametrize("around", [Policy(timeout=1.0), Policy(deadline=1.0)])
def test_a_call_that_hangs_until_the_outer_time_is_over_failed(around):
    breaker = Breaker()

    @Policy(breaker=breaker)
    async def hangs():
        await current().asleep(60)

    async def main(clock):
        with pytest.raises(DeadlineExceededError):
            await around.call(hangs)
        task = asyncio.create_task(around.call(hangs))
        await current().asleep(0.5)
        task.cancel()  # while there was time: no verdict
        with pytest.raises(asyncio.CancelledError):
            await task
        assert breaker.stats()[2:4] == (1, 1)

    run(main)


def test_an_async_mock_is_a_coroutine_function():
    mock = AsyncMock(side_effect=[ConnectionError, 3])

    async def main(clock):
        assert await Policy(retry=Retry(2, backoff=0))(mock)() == 3

    run(main)


def test_what_is_sent_reaches_an_async_stream():
    @Policy(retry=2)
    async def echo():
        heard = []
        while len(heard) < 2:
            heard.append((yield len(heard)))
        yield heard

    async def main(clock):
        stream = echo()
        assert await anext(stream) == 0
        assert await stream.asend("a") == 1
        assert await stream.asend("b") == ["a", "b"]
        assert [item async for item in stream] == []

    run(main)
