"""Virtual time passes as fast as the code between the waits, in the right order, in threads and event loops."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlkit import _clock
from mlkit.errors import ConfigurationError
from mlkit.testing import VirtualTime, virtual_time

seconds = st.floats(0, 1e6)


@given(st.lists(seconds, max_size=20))
def test_a_sleep_takes_exactly_as_long_as_it_says(naps: list[float]) -> None:
    with virtual_time(start=0.0) as clock:
        expected = 0.0
        for nap in naps:
            _clock.current().sleep(nap)
            expected += nap
            assert clock.monotonic() == expected
        assert clock.sleeps == naps


def test_an_hour_passes_at_once() -> None:
    before = time.monotonic()
    with virtual_time() as clock:
        wall = clock.time()
        clock.sleep(3600)
        assert clock.time() - wall == 3600
    assert time.monotonic() - before < 60


def test_the_clock_is_the_contexts_and_is_given_back() -> None:
    assert _clock.current() is _clock.SYSTEM
    with virtual_time() as outer:
        with virtual_time() as inner:
            assert _clock.current() is inner
        assert _clock.current() is outer
        assert _clock.current(_clock.SYSTEM) is _clock.SYSTEM
        seen: list[object] = []
        stranger = threading.Thread(target=lambda: seen.append(_clock.current()))
        stranger.start()
        stranger.join()
        outer.thread(lambda: seen.append(_clock.current())).join()
        assert seen == [_clock.SYSTEM, outer]
    assert _clock.current() is _clock.SYSTEM


def test_only_advance_moves_time_without_autojump() -> None:
    with virtual_time(start=0.0, autojump=False) as clock:
        woke: list[float] = []

        def nap(length: float) -> None:
            _clock.current().sleep(length)
            woke.append(length)

        threads = {length: clock.thread(nap, length) for length in (3.0, 1.0, 2.0)}
        for due in ([1.0], [1.0, 2.0], [1.0, 2.0, 3.0]):
            clock.advance(1.0)
            threads[due[-1]].join(60)
            assert woke == due
        assert clock.monotonic() == 3.0


def test_threads_that_wait_wake_in_the_order_of_their_deadlines() -> None:
    with virtual_time(start=0.0, autojump=False, grace=0.3) as clock:
        woke: list[float] = []

        def wait(length: float) -> None:
            condition = threading.Condition()
            with condition:
                assert not _clock.current().wait(condition, length)
            woke.append(length)

        threads = [clock.thread(wait, length) for length in (30.0, 10.0, 20.0)]
        while len(clock._deadlines) < 3:  # ends, or the test's time is over
            time.sleep(0.001)
        clock._autojump = True  # had it begun before, it would jump to whoever came first
        for thread in threads:
            thread.join(60)
        assert woke == [10.0, 20.0, 30.0]


def test_a_notified_wait_ends_before_its_time() -> None:
    with virtual_time(start=0.0, autojump=False) as clock:
        condition = threading.Condition()
        answers: list[bool] = []
        ready = threading.Event()

        def wait() -> None:
            with condition:
                ready.set()
                answers.append(clock.wait(condition, 60))

        thread = clock.thread(wait)
        ready.wait()
        with condition:
            condition.notify_all()
        thread.join(60)
        assert answers == [True]
        assert clock.monotonic() == 0.0


@pytest.mark.parametrize("seconds", [60.0, None])
def test_a_notification_is_not_lost_however_long_the_lock_is_held_before_it(
    seconds: float | None,
) -> None:
    """A wait made of short ones misses what comes between two of them: here, while the second waits for the lock."""
    with virtual_time(start=0.0, autojump=False, grace=0.001) as clock:
        condition, ready = threading.Condition(), threading.Event()
        answers: list[bool] = []

        def wait() -> None:
            with condition:
                ready.set()
                answers.append(clock.wait(condition, seconds))

        thread = clock.thread(wait)
        ready.wait()
        with condition:
            time.sleep(0.02)  # real time, in which a short wait is over
            condition.notify()
        thread.join(60)
        assert answers == [True]
        assert clock.monotonic() == 0.0


def test_one_notification_wakes_one_of_many_and_time_the_others() -> None:
    with virtual_time(start=0.0, autojump=False, grace=0.001) as clock:
        condition = threading.Condition()
        tokens, taken, late = 0, [0], [0]
        waiting = threading.Semaphore(0)

        def take() -> None:
            nonlocal tokens
            with condition:
                until = clock.monotonic() + 60.0
                waiting.release()
                while not tokens and (left := until - clock.monotonic()) > 0:
                    clock.wait(condition, left)
                if tokens:
                    tokens -= 1
                    taken[0] += 1
                else:
                    late[0] += 1

        threads = [clock.thread(take) for _ in range(8)]
        for _ in threads:
            waiting.acquire()
        for _ in range(5):
            with condition:
                tokens += 1
                condition.notify()
        while taken[0] < 5:  # ends, or the test's time is over
            time.sleep(0.001)
        clock.advance(60.0)
        for thread in threads:
            thread.join(60)
        assert (taken, late) == ([5], [3])


def test_a_wait_of_no_time_lets_go_of_the_lock() -> None:
    with virtual_time() as clock:
        condition, done = threading.Condition(), []

        def other() -> None:
            with condition:
                done.append(True)

        with condition:
            thread = clock.thread(other)
            while not done:  # ends, or the test's time is over
                assert not clock.wait(condition, 0)
        thread.join(60)


def test_timers_of_an_event_loop_fire_in_order_and_at_once() -> None:
    async def main() -> list[tuple[float, str]]:
        log: list[tuple[float, str]] = []

        async def nap(length: float, name: str) -> None:
            await _clock.current().asleep(length)
            log.append((_clock.current().monotonic(), name))

        await asyncio.gather(nap(3600, "c"), nap(1, "a"), nap(60, "b"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        log.append((_clock.current().monotonic(), "d"))
        return log

    with virtual_time(start=0.0) as clock:
        assert clock.run(main()) == [(1, "a"), (60, "b"), (3600, "c"), (3610, "d")]


def test_in_another_loop_a_sleep_jumps() -> None:
    async def main() -> None:
        await _clock.current().asleep(3600)

    with virtual_time(start=0.0) as clock:
        asyncio.run(main())
        assert clock.monotonic() == 3600


def test_a_thread_can_answer_a_virtual_loop() -> None:
    async def main() -> str:
        return await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 60)

    with virtual_time(grace=60) as clock:
        assert clock.run(main()) == "done"


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf])
def test_time_does_not_go_back_and_does_not_end(wrong: float) -> None:
    with pytest.raises(ConfigurationError, match="does not go back"):
        VirtualTime().advance(wrong)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_nobody_sleeps_for_ever(wrong: float) -> None:
    with virtual_time(start=0.0) as clock:
        condition = threading.Condition()
        with pytest.raises(ValueError, match="a finite number of seconds"):
            clock.sleep(wrong)
        with pytest.raises(ValueError, match="a finite number of seconds"):
            asyncio.run(clock.asleep(wrong))
        with condition, pytest.raises(ValueError, match="a finite number of seconds"):
            clock.wait(condition, wrong)
        assert (clock.monotonic(), clock.sleeps) == (0.0, [])
