"""Timeouts that leave a thread behind, of a `def` that cannot be asked to stop."""

from __future__ import annotations

import os
import threading
import time
import traceback
import weakref
from contextlib import suppress
from contextvars import ContextVar, copy_context

import pytest

from mlkit import telemetry
from mlkit.errors import BulkheadFullError, ConfigurationError, DeadlineExceededError
from mlkit.resilience import Breaker, Budget, Policy, Retry, Threaded, deadline, remaining
from mlkit.testing import virtual_time

COLOUR = ContextVar("colour", default="none")


@pytest.fixture
def gate():
    """A function that hangs until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def eventually(check):
    for _ in range(6000):
        if check():
            return
        time.sleep(0.01)
    raise AssertionError(check)


def abandoned(name):
    return sum(
        sample.value
        for sample in telemetry.collect()
        if sample.name == "resilience_abandoned_threads" and sample.labels == (("policy", name),)
    )


def test_the_caller_does_not_wait_longer(gate):
    with pytest.raises(DeadlineExceededError, match=r"^stuck did not finish within 0\.05 s$"):
        Policy(timeout=Threaded(0.05), name="stuck").call(gate.wait)
    assert not gate.is_set()  # what was called goes on until the test is over


def test_an_answer_an_error_and_the_context_come_through():
    def work(x, *, y):
        assert threading.current_thread() is not threading.main_thread()
        assert remaining() <= 60.0
        seen = COLOUR.get()
        COLOUR.set("changed")
        return x + y, seen

    token = COLOUR.set("blue")
    try:
        policy = Policy(timeout=Threaded(60.0))
        assert policy.call(work, 1, y=2) == (3, "blue")
        assert COLOUR.get() == "blue"
        with pytest.raises(ZeroDivisionError) as info:
            policy.call(lambda: 1 / 0)
        assert any(
            "1 / 0" in (f.line or "") for f in traceback.extract_tb(info.value.__traceback__)
        )
        with pytest.raises(KeyboardInterrupt):
            policy.call(_interrupts)
    finally:
        COLOUR.reset(token)


def _interrupts():
    raise KeyboardInterrupt


def test_threads_are_used_again():
    policy = Policy(timeout=Threaded(60.0))
    workers = {policy.call(threading.current_thread) for _ in range(50)}
    assert len(workers) < 25  # one may be on its way back when the next call comes


def test_those_left_behind_are_counted_bounded_and_come_back(gate):
    policy = Policy(timeout=Threaded(60.0, max_abandoned=2), name="bounded")
    breaker = Breaker(min_calls=100)
    guarded = Policy(timeout=Threaded(0.02, max_abandoned=2), name="bounded", breaker=breaker)(
        gate.wait
    )
    for _ in range(2):
        with pytest.raises(DeadlineExceededError):
            guarded()
    assert abandoned("bounded") == 2
    with pytest.raises(BulkheadFullError, match="2 threads were left behind"):
        guarded()
    assert breaker.stats()[2:4] == (2, 2)  # a rejection is no failure
    assert policy.call(int) == 0  # another policy has threads of its own
    gate.set()
    eventually(lambda: abandoned("bounded") == 0)

    def answers():
        with suppress(
            DeadlineExceededError, BulkheadFullError
        ):  # 20 ms are not much on a busy machine
            return guarded()

    eventually(answers)


def test_one_left_behind_sees_that_its_time_is_over(gate):
    seen, left, ended = [], threading.Event(), threading.Event()

    def polls():
        while remaining() > 0:
            time.sleep(0.005)
        left.wait(60)  # or it could be back before its caller has noticed
        seen.append(remaining())
        ended.set()

    with pytest.raises(DeadlineExceededError):
        Policy(timeout=Threaded(0.03)).call(polls)
    left.set()
    assert ended.wait(60)
    assert seen == [0.0]


def test_what_goes_on_after_an_attempt_is_free_of_its_time(gate):
    seen = []

    def work():
        context = copy_context()

        def later():
            gate.wait()
            seen.append(context.run(remaining))

        thread = threading.Thread(target=later)
        thread.start()
        assert context.run(remaining) <= 60.0
        return thread

    thread = Policy(timeout=Threaded(60.0)).call(work)
    gate.set()
    thread.join()
    assert seen == [None]


def test_one_call_earns_once_whether_or_not_it_runs_in_a_thread():
    earned = []
    for timeout in (None, 60.0, Threaded(60.0)):
        budget = Budget(ratio=0.5, burst=4)
        while budget.spend():
            pass
        inner = Policy(retry=Retry(2, budget=budget))
        outer = Policy(retry=Retry(2, budget=budget), timeout=timeout)
        assert outer.call(inner.call, int) == 0
        earned.append(budget.tokens)
    assert earned == [0.5, 0.5, 0.5]


def test_a_deadline_around_it_cuts_it(gate):
    with deadline(0.05), pytest.raises(DeadlineExceededError):
        Policy(timeout=Threaded(3600.0), retry=Retry(3, backoff=0)).call(gate.wait)


def test_each_attempt_has_its_own_time(gate):
    calls, answers = threading.Semaphore(0), []

    def work():
        attempt.append(1)
        calls.release()
        if len(attempt) < 3:
            gate.wait()
        return "third"

    attempt = []
    policy = Policy(timeout=Threaded(30.0), retry=Retry(3, backoff=0))
    with virtual_time(autojump=False) as clock:
        caller = clock.thread(lambda: answers.append(policy.call(work)))
        for _ in range(2):
            assert calls.acquire(timeout=60)
            clock.advance(30.0)
        caller.join(60)
    assert answers == ["third"]


@pytest.mark.parametrize("failing", [False, True])
def test_arguments_and_answers_are_freed_at_once(failing):
    class Batch:
        pass

    def work(batch):
        if failing:
            raise ConnectionError
        return Batch()

    guarded = Policy(timeout=Threaded(60.0))(work)
    batch = Batch()
    ref = weakref.ref(batch)
    try:
        answer = weakref.ref(guarded(batch))
    except ConnectionError:
        answer = lambda: None
    del batch
    eventually(lambda: ref() is None and answer() is None)


def test_many_callers_at_once():
    policy = Policy(timeout=Threaded(60.0))
    barrier, got = threading.Barrier(12, timeout=60), []

    def call(n):
        got.append(policy.call(lambda: (barrier.wait(), n)[1]))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == list(range(12))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_its_own():
    policy = Policy(timeout=Threaded(60.0))
    policy.call(int)
    child = os.fork()
    if child == 0:
        os._exit(0 if policy.call(lambda: 7) == 7 else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_what_cannot_be_left_behind_is_refused():
    async def work():
        pass

    def stream():
        yield 1

    for fn in (work, stream):
        with pytest.raises(ConfigurationError, match="Threaded"):
            Policy(timeout=Threaded(1.0))(fn)
    for make in (lambda: Threaded(0), lambda: Threaded(1, max_abandoned=0), lambda: Threaded("1")):
        with pytest.raises(ConfigurationError, match="Threaded"):
            make()
    assert (
        repr(Policy(timeout=Threaded(1)))
        == "<Policy: timeout(Threaded(limit=1.0, max_abandoned=16))>"
    )
    assert Policy(timeout=Threaded(1)) == Policy(timeout=Threaded(1.0))
