"""Timeouts and hedges of coroutines: whose cancellation it was, and that nobody is left behind.

The cases of the first class are those of CPython's own tests of `asyncio.timeout` (Lib/test/test_asyncio/test_timeouts.py),
run in virtual time and, since virtual time takes another kind of timer, in real time too.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit._clock import current
from mlkit.errors import DeadlineExceededError
from mlkit.resilience import Breaker, Budget, Hedge, Policy, Retry, deadline, remaining
from mlkit.testing import virtual_time

SHORT, LONG = 0.02, 30.0


def virtually(main):
    with virtual_time() as clock:
        return clock.run(main())


def really(main):
    return asyncio.run(main())


@pytest.fixture(params=[virtually, really], ids=["virtual", "real"])
def run(request):
    return request.param


def others():
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def hang():
    await current().asleep(LONG)


class TestCancellation:
    def test_it_expires_and_leaves_no_request_behind(self, run):
        async def main():
            with pytest.raises(DeadlineExceededError) as info:
                await Policy(timeout=SHORT).call(hang)
            assert isinstance(info.value, TimeoutError)
            assert info.value.__cause__ is None
            task = asyncio.current_task()
            assert task.cancelling() == 0
            await asyncio.sleep(0)

        run(main)

    def test_nested_inner_expires(self, run):
        async def inner():
            with pytest.raises(DeadlineExceededError):
                await Policy(timeout=SHORT).call(hang)
            return "went on"

        async def main():
            assert await Policy(timeout=LONG).call(inner) == "went on"

        run(main)

    def test_nested_outer_expires(self, run):
        async def inner():
            await Policy(timeout=LONG, name="inner").call(hang)

        async def main():
            with pytest.raises(DeadlineExceededError, match=r"^outer"):
                await Policy(timeout=SHORT, name="outer").call(inner)

        run(main)

    def test_equal_limits(self, run):
        async def inner():
            await Policy(timeout=SHORT).call(hang)

        async def main():
            for _ in range(3):
                with pytest.raises(DeadlineExceededError):
                    await Policy(timeout=SHORT).call(inner)
                assert asyncio.current_task().cancelling() == 0

        run(main)

    def test_a_cancellation_from_outside_goes_on(self, run):
        async def main():
            task = asyncio.create_task(Policy(timeout=LONG).call(hang))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

        run(main)

    def test_a_cancellation_that_comes_with_the_timeout_goes_on(self, run):
        """CPython: test_foreign_cancel_doesnt_timeout_if_not_expired, and the race of both."""

        async def main():
            task = asyncio.create_task(Policy(timeout=SHORT).call(cleans_up))
            await started.wait()
            await cancelled.wait()  # by the timeout
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

        started, cancelled = asyncio.Event(), asyncio.Event()

        async def cleans_up():
            started.set()
            try:
                await current().asleep(LONG)
            finally:
                cancelled.set()
                await current().asleep(SHORT)

        run(main)

    def test_a_function_that_cancels_itself_is_not_late(self, run):
        async def main():
            async def cancels():
                raise asyncio.CancelledError

            with pytest.raises(asyncio.CancelledError):
                await Policy(timeout=LONG).call(cancels)

        run(main)

    def test_an_error_of_the_cleanup_is_shown(self, run):
        async def bad_cleanup():
            try:
                await current().asleep(LONG)
            finally:
                1 / 0

        async def main():
            with pytest.raises(ZeroDivisionError):
                await Policy(timeout=SHORT).call(bad_cleanup)
            assert asyncio.current_task().cancelling() == 0
            await asyncio.sleep(0)

        run(main)

    def test_an_answer_in_spite_of_the_cancellation_is_given_out_and_is_late(self, run):
        async def stubborn():
            try:
                await current().asleep(LONG)
            except asyncio.CancelledError:
                await current().asleep(SHORT)
                return "anyway"

        async def main():
            breaker = Breaker(min_calls=5)
            assert await Policy(timeout=SHORT, breaker=breaker).call(stubborn) == "anyway"
            assert asyncio.current_task().cancelling() == 0
            assert breaker.stats()[2:4] == (1, 1)
            await asyncio.sleep(0)

        run(main)

    def test_a_task_that_was_being_cancelled_before_can_time_out(self, run):
        """CPython: test_nested_timeout_in_finally."""

        async def main():
            async def work():
                try:
                    await current().asleep(LONG)
                finally:
                    with pytest.raises(DeadlineExceededError):
                        await Policy(timeout=SHORT).call(hang)
                    done.append(1)

            done = []
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert done == [1]

        run(main)

    def test_inside_of_asyncio_timeout_and_around_it(self, run):
        async def main():
            with pytest.raises(TimeoutError) as info:
                async with asyncio.timeout(SHORT):
                    await Policy(timeout=LONG).call(hang)
            assert not isinstance(info.value, DeadlineExceededError)

            async def inner():
                async with asyncio.timeout(LONG):
                    await current().asleep(LONG)

            with pytest.raises(DeadlineExceededError):
                await Policy(timeout=SHORT).call(inner)

        run(main)

    def test_many_at_once_each_at_its_own_time(self, run):
        policy, ended = Policy(timeout=0.05), []

        async def one(n):
            await current().asleep(0.005 * n)
            began = current().monotonic()
            if n % 3 == 0:
                assert await policy.call(asyncio.sleep, 0, n) == n
                return
            with pytest.raises(DeadlineExceededError):
                await policy.call(hang)
            ended.append(current().monotonic() - began)

        async def main():
            await asyncio.gather(*(one(n) for n in range(12)))
            assert len(ended) == 8
            assert all(0.045 < took < LONG for took in ended)
            assert others() == []

        run(main)


def test_one_policy_in_one_loop_after_the_other():
    policy = Policy(timeout=SHORT)
    for _ in range(3):

        async def main():
            with pytest.raises(DeadlineExceededError):
                await policy.call(hang)
            assert await policy.call(asyncio.sleep, 0, 7) == 7

        asyncio.run(main())


def test_neither_limits_cut_by_a_deadline_nor_calls_of_their_own_leave_timers_behind():
    async def main():
        guarded = Policy(timeout=LONG)(asyncio.sleep)
        for n in range(300):
            with deadline(LONG - 1 - n / 1000):
                await guarded(0)
        policy = Policy(timeout=LONG, hedge=Hedge(LONG / 2))
        for _ in range(300):
            await policy.call(asyncio.sleep, 0)
        timers = asyncio.get_running_loop()._scheduled
        assert sum(not timer.cancelled() for timer in timers) <= 6

    asyncio.run(main())


def test_a_timer_keeps_neither_arguments_nor_loop_nor_context(only_what_is_new):
    class Batch:
        pass

    async def work(batch):
        return 1

    guarded = Policy(timeout=LONG)(work)

    async def main():
        batch = Batch()
        ref = weakref.ref(batch)
        await guarded(batch)
        del batch
        assert ref() is None
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(main())
    gc.collect()
    assert loop() is None


class TestInheritedTime:
    def test_a_task_that_outlives_the_attempt_is_free(self):
        async def main():
            seen, kept = [], []

            async def background():
                seen.append(remaining())
                await current().asleep(5)
                seen.append(remaining())
                seen.append(await Policy(retry=2).call(asyncio.sleep, 1, "works"))

            async def work():
                kept.append(asyncio.create_task(background()))
                await current().asleep(0.5)

            await Policy(timeout=1.0, deadline=2.0).call(work)
            with deadline(0.25):
                kept.append(asyncio.create_task(background()))
                await asyncio.sleep(0)
            await asyncio.gather(*kept)
            assert seen == [1.0, 0.25, None, None, "works", "works"]

        virtually(main)

    def test_one_that_was_started_by_an_attempt_that_timed_out_too(self):
        async def main():
            kept = []

            async def work():
                kept.append(asyncio.create_task(Policy(retry=2).call(later)))
                await current().asleep(50)

            async def later():
                await current().asleep(3)
                return remaining()

            with pytest.raises(DeadlineExceededError):
                await Policy(timeout=1.0).call(work)
            with pytest.raises(DeadlineExceededError):
                await kept[0]  # it began inside: its own attempt was cut to the time it saw
            kept.clear()

            async def lasting():
                await current().asleep(3)
                return await Policy(retry=2).call(later), remaining()

            async def starts():
                kept.append(asyncio.create_task(lasting()))
                await current().asleep(50)

            with pytest.raises(DeadlineExceededError):
                await Policy(timeout=1.0).call(starts)
            assert await kept[0] == (None, None)

        virtually(main)

    def test_a_chain_of_successors_does_not_grow(self):
        async def main():
            sizes = []

            async def step(n):
                if n == 0:
                    done.set_result(None)
                    return
                await Policy(timeout=5.0).call(spawn, n)

            async def spawn(n):
                tasks.append(asyncio.create_task(step(n - 1)))
                link, size = AMBIENT.get(), 0
                while link is not None:
                    link, size = link.around, size + 1
                sizes.append(size)
                await asyncio.sleep(0)

            tasks, done = [], asyncio.get_running_loop().create_future()
            await step(40)
            await done
            await asyncio.gather(*tasks)
            assert max(sizes[5:]) <= 4

        from mlkit.resilience._ambient import AMBIENT

        virtually(main)


class TestHedging:
    def test_a_loser_that_takes_long_to_go_is_awaited_even_if_the_caller_is_cancelled_again(
        self, run
    ):
        async def main():
            gone = []

            async def slow_to_go():
                try:
                    await current().asleep(LONG)
                finally:
                    await current().asleep(2 * SHORT)
                    gone.append(1)

            task = asyncio.create_task(Policy(hedge=Hedge(SHORT)).call(slow_to_go))
            await current().asleep(2 * SHORT)
            task.cancel()
            await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert gone == [1, 1]
            assert others() == []

        run(main)

    def test_the_first_attempt_runs_in_the_callers_own_task(self):
        async def main():
            async def who():
                return asyncio.current_task()

            assert await Policy(hedge=Hedge(1.0)).call(who) is asyncio.current_task()

        virtually(main)

    def test_a_cancellation_that_comes_with_the_win_goes_on(self):
        """The hedge wins, the first attempt is told to go, and in the same moment the caller is cancelled."""

        async def main():
            calls = []

            async def work():
                calls.append(1)
                if len(calls) == 2:
                    await current().asleep(1)
                    return "won"
                try:
                    await current().asleep(LONG)
                finally:
                    await current().asleep(5)

            task = asyncio.create_task(Policy(hedge=Hedge(1.0)).call(work))
            await current().asleep(3)  # the hedge has won at 2, the first attempt cleans up until 7
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert others() == []

        virtually(main)

    def test_an_answer_of_the_loser_in_spite_of_all_leaves_no_request_behind(self):
        async def main():
            calls = []

            async def work():
                calls.append(1)
                if len(calls) == 2:
                    return "second"
                try:
                    await current().asleep(LONG)
                except asyncio.CancelledError:
                    return "first"

            assert await Policy(hedge=Hedge(1.0)).call(work) in {"first", "second"}
            assert asyncio.current_task().cancelling() == 0
            await asyncio.sleep(0)

        virtually(main)

    def test_when_all_fail_the_hedges_go_on_being_started_and_the_last_error_comes_out(self):
        async def main():
            calls = []

            async def work():
                calls.append(1)
                me = len(calls)
                await current().asleep([1.5, 3.0, 0.5][me - 1])
                raise ConnectionError(me)

            with pytest.raises(ConnectionError):
                await Policy(hedge=Hedge(1.0, extra=2)).call(work)
            assert len(calls) == 3
            assert others() == []

        virtually(main)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
    def test_a_base_exception_of_the_first_attempt_leaves_nobody_behind(self, error):
        async def main():
            calls = []

            async def work():
                calls.append(1)
                await current().asleep(LONG if len(calls) == 2 else 2)
                raise error

            with pytest.raises(error):
                await Policy(hedge=Hedge(1.0)).call(work)
            assert others() == []

        virtually(main)

    @given(
        plan=st.lists(st.tuples(st.floats(0.1, 5), st.sampled_from("aef")), min_size=3, max_size=3),
        cancel=st.none() | st.floats(0.05, 6),
    )
    def test_whatever_happens_nobody_is_left_and_no_cancellation_is_lost(self, plan, cancel):
        async def main():
            calls, running = [], [0]

            async def work():
                after, how = plan[len(calls)]
                calls.append(1)
                running[0] += 1
                try:
                    await current().asleep(after)
                    if how == "e":
                        raise ConnectionError
                    return after
                finally:
                    try:
                        if how == "f":
                            await current().asleep(0.3)
                    finally:
                        running[0] -= 1

            task = asyncio.create_task(Policy(hedge=Hedge(1.0, extra=2)).call(work))
            if cancel is not None:
                await current().asleep(cancel)
                done = task.done()
                task.cancel()
            try:
                answer = await task
            except ConnectionError:
                assert all(how == "e" for _, how in plan[: len(calls)])
            except asyncio.CancelledError:
                assert cancel is not None
                assert not done
            else:
                assert cancel is None or done
                assert answer in {after for after, how in plan if how != "e"}
            assert running == [0]
            assert others() == []

        virtually(main)

    def test_a_quantile_is_learned_and_hedges_about_one_in_twenty(self):
        async def main():
            draw, starts = random.Random(3).random, [0]

            async def work():
                starts[0] += 1
                await current().asleep(0.01 + 0.01 * draw() + (2.0 if draw() < 0.02 else 0.0))

            guarded = Policy(hedge=Hedge("p95"))(work)
            took = []
            for n in range(500):
                began = current().monotonic()
                await guarded()
                took.append(current().monotonic() - began)
                if n == 30:
                    assert starts[0] == 31  # nothing is known yet
            assert 505 <= starts[0] <= 560
            assert sum(second > 1 for second in took[50:]) <= 3

        virtually(main)

    def test_hedges_are_paid_even_without_a_retry(self):
        async def main():
            starts = [0]

            async def work():
                starts[0] += 1
                await current().asleep(5)

            guarded = Policy(hedge=Hedge(1.0))(work)
            for _ in range(60):
                await guarded()
            assert starts[0] <= 1.1 * 60 + 10

        virtually(main)

    @pytest.mark.parametrize(
        "after", ["95", "p0", "p100", "pp5", "p", "q9", True, None, float("nan")]
    )
    def test_a_wrong_delay_is_named(self, after):
        with pytest.raises(ValueError, match=r"Hedge\(after\)"):
            Hedge(after)


def test_attempts_are_bounded_through_nested_retries_and_hedges():
    """attempts <= (1 + ratio) x calls + burst, whoever spends: G3."""

    async def main():
        budget, attempts, draw = Budget(0.1, 10), [0], random.Random(1).random

        async def work():
            attempts[0] += 1
            await current().asleep(2.0 * draw())
            if draw() < 0.5:
                raise ConnectionError

        retry = Retry(4, backoff=0, budget=budget)
        inner = Policy(retry=retry, hedge=Hedge(1.0, extra=2))(work)
        outer = Policy(retry=retry)(inner)
        for n in range(1, 151):
            await asyncio.gather(outer(), return_exceptions=True)
            assert attempts[0] <= (1 + 0.1) * n + 10

    virtually(main)


class _Elsewhere(asyncio.SelectorEventLoop):
    def time(self):
        return time.monotonic() + 1e6


def _as_an_attribute():
    loop = asyncio.SelectorEventLoop()
    loop.time = lambda: time.monotonic() - 1e6
    return loop


@pytest.mark.parametrize("make_loop", [_Elsewhere, _as_an_attribute])
def test_a_loop_may_count_its_time_from_anywhere(make_loop):
    @Policy(timeout=0.02)
    async def work(pause):
        await asyncio.sleep(pause)
        return pause

    async def main():
        with pytest.raises(DeadlineExceededError):
            await work(30)
        return await work(0)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(asyncio.wait_for(main(), 60)) == 0


@pytest.mark.parametrize(
    "policy",
    [
        Policy(timeout=LONG),
        Policy(bulkhead=2, deadline=LONG),
        Policy(timeout=LONG, hedge=Hedge(LONG)),
    ],
    ids=repr,
)
def test_a_task_that_is_thrown_away_with_its_loop_raises_nothing(policy, monkeypatch):
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)

    async def outer():
        with deadline(LONG):
            await policy.call(hang)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # which hears that the task was pending
    tasks = [loop.create_task(one) for one in (outer(), policy.call(hang))]
    loop.call_soon(loop.call_soon, loop.call_soon, loop.stop)
    loop.run_forever()
    loop.close()
    assert not any(task.done() for task in tasks)
    tasks.clear()
    gc.collect()
    assert [str(one.exc_value) for one in raised] == []
