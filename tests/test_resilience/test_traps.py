"""What users of other libraries trip over: one test a trap, and for each a naive form that the check catches.

A trap's number, users and sources are those of the survey behind the block; it has no number 12. Each check takes the
guard to be judged, so that the same lines pass with mlkit and fail with the way it is usually done by hand: `catches`
holds that they do. Tests are named `test_trap_<number>_<what goes wrong>`; those that need more than one call are in
`test_traps_in_depth`.

| trap | | trap | |
| ---: | --- | ---: | --- |
| 1 | a lock is held during the user's call, or while a store is asked | 15 | `2**n` overflows |
| 2 | everybody is a probe | 16 | a retried stream says its items again |
| 3 | a probe that is cancelled, ignored or hangs keeps its permit | 17 | a reader who stops early is a failure |
| 4 | a cancelled probe closes the circuit | 18 | a truncated or mixed stream passes for an answer |
| 5 | a late call of an earlier state decides the new one | 19 | every call pays for a dead tier |
| 6 | too many calls at the change to half-open | 20 | attempts multiply from level to level |
| 7 | making a coroutine counts as success | 21 | the wall clock, also in windows of time |
| 8 | the order of layers | 22 | one error object for every rejection |
| 9 | one probe decides | 23 | arguments are logged |
| 10 | a cancellation is retried | 24 | a shared state is reset, prolonged, or locked by each |
| 11 | a call clears the statistics of another | 25 | the fallback changes its input |
| 13 | an attempt starts after the time is over | 26 | hedges: losers left, load doubled |
| 14 | no jitter at the cap | 27 | the signature is lost |
| | | 28 | every success is pushed |
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import pickle
import random
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mlkit import telemetry
from mlkit._clock import current, replaced
from mlkit.errors import BreakerOpenError, RejectedError
from mlkit.integrations.structlog import listen as log_events
from mlkit.resilience import (
    Breaker,
    Budget,
    Hedge,
    Policy,
    Retry,
    constant,
    deadline,
    fallback,
    full_jitter,
    tier,
)
from mlkit.testing import record_events, virtual_time


def catches(check, naive):
    """Assert that *check* fails on the naive form."""
    with pytest.raises(AssertionError):
        check(naive)


@contextmanager
def switching():
    """Let threads take turns at every chance."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def together(n, work, start=None):
    """Run *work* in n threads that begin at the same moment; return what they returned."""
    barrier, results = threading.Barrier(n), []

    def run():
        barrier.wait(60)
        results.append(work())

    starter = start or (lambda target: threading.Thread(target=target, daemon=True))
    threads = [starter(run) for _ in range(n)]
    for thread in threads:
        if not thread.ident:
            thread.start()
    for thread in threads:
        thread.join(60)
    return results


class NaiveBreaker:
    """Opens at the first failure; what each test breaks is a method of a subclass."""

    def __init__(self, cooldown=10.0, probes=1):
        self.cooldown, self.probes = cooldown, probes
        self.state, self.until, self.permits = "closed", 0.0, 0

    def now(self):
        return current().monotonic()

    def acquire(self):
        if self.state == "open":
            if self.now() < self.until:
                return None
            self.state, self.permits = "half_open", self.probes
        if self.state == "half_open":
            if not self.permits:
                return None
            self.permits -= 1
        return "ticket"

    def settle(self, ticket, ok):
        if ok:
            self.state = "closed"
        elif ok is False:
            self.trip()

    def trip(self):
        self.state, self.until = "open", self.now() + self.cooldown

    def __call__(self, fn):
        def guarded(*args):
            ticket = self.acquire()
            if ticket is None:
                raise BreakerOpenError("naive", "open")
            try:
                answer = fn(*args)
            except Exception:
                self.settle(ticket, False)
                raise
            self.settle(ticket, True)
            return answer

        return guarded


def ours(**settings):
    return Breaker(**{"min_calls": 1, "window": 1, "cooldown": 10.0, **settings})


def guard(breaker, fn):
    """Return *fn* behind a breaker of ours or a naive one."""
    return Policy(breaker=breaker)(fn) if isinstance(breaker, Breaker) else breaker(fn)


def probed(make, clock, **settings):
    """Return a breaker whose cooldown has passed."""
    breaker = make(**settings)
    breaker.trip()
    clock.advance(10.0)
    return breaker


# --- breaker ---------------------------------------------------------------------------------------------------------


def test_trap_01_a_lock_is_held_during_the_users_call():
    def check(make, patience=60.0):
        inside = threading.Barrier(4)

        def work():
            with suppress(threading.BrokenBarrierError):
                inside.wait(patience)
            return inside.broken

        assert together(4, guard(make(), work)) == [False] * 4

    class Locked(NaiveBreaker):
        lock = threading.Lock()

        def __call__(self, fn):
            def guarded():
                with self.lock:
                    return fn()

            return guarded

    check(lambda: ours(slow=60.0))
    catches(lambda naive: check(naive, patience=0.5), Locked)


def test_trap_02_everybody_is_a_probe():
    def check(make):
        with virtual_time() as clock, switching():
            breaker = probed(make, clock)
            tickets = together(32, breaker.acquire, clock.thread)
        assert sum(ticket is not None for ticket in tickets) == 1

    class Unbounded(NaiveBreaker):
        def acquire(self):
            return "ticket" if self.now() >= self.until else None

    check(ours)
    catches(check, Unbounded)


@pytest.mark.parametrize("end", [KeyboardInterrupt, asyncio.CancelledError, LookupError])
def test_trap_03_a_probe_that_says_nothing_keeps_its_permit(end):
    def check(make):
        with virtual_time() as clock:
            breaker = probed(make, clock)
            ends = [end, None]

            def work():
                if error := ends.pop(0):
                    raise error

            with pytest.raises(end):
                guard(breaker, work)()
            with suppress(RejectedError):
                guard(breaker, work)()
            assert not ends, "no probe is admitted any more"

    class Leaking(NaiveBreaker):
        def settle(self, ticket, ok):
            if ok:
                super().settle(ticket, ok)

    check(lambda: ours(ignore=LookupError))
    catches(check, Leaking)


def test_trap_03_a_probe_that_hangs_wedges_the_breaker():
    def check(make):
        with virtual_time() as clock:
            breaker = probed(make, clock)
            assert breaker.acquire() is not None  # and never comes back
            clock.advance(20.0)
            assert breaker.acquire() is not None

    check(ours)
    catches(check, NaiveBreaker)


def test_trap_04_a_cancelled_probe_closes_the_circuit():
    def check(make):
        with virtual_time() as clock:
            breaker = probed(make, clock)

            def cancelled():
                raise asyncio.CancelledError

            with pytest.raises(asyncio.CancelledError):
                guard(breaker, cancelled)()
            assert breaker.state == "half_open"

    class Closing(NaiveBreaker):
        def __call__(self, fn):
            def guarded():
                ticket, failed = self.acquire(), False
                try:
                    return fn()
                except Exception:
                    failed = True
                    raise
                finally:
                    self.settle(ticket, not failed)

            return guarded

    check(ours)
    catches(check, Closing)


def test_trap_05_a_late_call_of_an_earlier_state_decides_the_new_one():
    def late_success(make):
        with virtual_time():
            breaker = make()
            late = breaker.acquire()
            breaker.trip()
            breaker.settle(late, True)
            assert breaker.state == "open"

    def late_probe(make):
        with virtual_time() as clock:
            breaker = probed(make, clock)
            late = breaker.acquire()
            breaker.trip()
            clock.advance(10.0)
            assert breaker.acquire() is not None
            breaker.settle(late, True)
            assert breaker.state == "half_open"

    def late_failure(make):
        with virtual_time() as clock:
            breaker = make()
            late = breaker.acquire()
            breaker.trip()
            clock.advance(10.0)
            breaker.settle(breaker.acquire(), True)
            breaker.settle(late, False)
            assert breaker.state == "closed"

    for check in (late_success, late_probe, late_failure):
        check(ours)
        catches(check, NaiveBreaker)


def test_trap_06_more_calls_than_permits_at_the_change_to_half_open():
    def check(make):
        with virtual_time() as clock:
            breaker = probed(make, clock, probes=2)
            tickets = [breaker.acquire() for _ in range(5)]
        assert sum(ticket is not None for ticket in tickets) == 2

    class TwoSteps(NaiveBreaker):
        def acquire(self):
            if self.state == "open" and self.now() >= self.until:
                self.state, self.permits = "half_open", self.probes
                return "ticket"  # the call that changes the state is not counted
            return super().acquire()

    check(ours)
    catches(check, TwoSteps)


def test_trap_07_making_a_coroutine_counts_as_success():
    def check(make):
        breaker = make()

        async def failing():
            raise ConnectionError

        async def main():
            with suppress(ConnectionError):
                await guard(breaker, failing)()

        asyncio.run(main())
        assert breaker.state == "open"

    check(ours)
    catches(check, NaiveBreaker)


def test_trap_08_an_open_breaker_is_retried_and_a_rejection_is_a_failure():
    def retried(wrap):
        with virtual_time() as clock:
            inner = ours()
            inner.trip()
            with pytest.raises(RejectedError):
                wrap(inner)()
            assert clock.sleeps == []

    def naive_retry(breaker):
        guarded = Policy(breaker=breaker)(lambda: None)

        def loop():
            for _ in range(2):
                try:
                    return guarded()
                except Exception:
                    current().sleep(1.0)
            return guarded()

        return loop

    retried(lambda breaker: Policy(retry=Retry(3, backoff=1.0), breaker=breaker)(lambda: None))
    catches(retried, naive_retry)

    def counted(make):
        full, outer = Policy(rate=1e-9), make()
        work = guard(outer, full(lambda: None))
        work()
        with pytest.raises(RejectedError):
            work()
        assert outer.state == "closed"

    counted(ours)
    catches(counted, NaiveBreaker)


def test_trap_09_one_probe_decides():
    def check(make):
        for verdicts, state in (((False, True, True), "closed"), ((True, False, False), "open")):
            with virtual_time() as clock:
                breaker = probed(make, clock, probes=3)
                tickets = [breaker.acquire() for _ in range(3)]
                breaker.settle(tickets[0], verdicts[0])
                assert breaker.state == "half_open"
                for ticket, verdict in zip(tickets[1:], verdicts[1:], strict=True):
                    breaker.settle(ticket, verdict)
                assert breaker.state == state

    check(ours)
    catches(check, NaiveBreaker)


def test_trap_21_the_wall_clock_goes_back():
    class Adjusted:
        """A machine whose administrator sets the time back by an hour."""

        def __init__(self):
            self.seconds, self.offset = 0.0, 1e9

        def monotonic(self):
            return self.seconds

        def time(self):
            return self.seconds + self.offset

    def check(make):
        clock = Adjusted()
        with replaced(clock):
            breaker = make()
            breaker.trip()
            clock.offset -= 3600.0
            clock.seconds += 10.0
            assert breaker.acquire() is not None

    class Wall(NaiveBreaker):
        def now(self):
            return current().time()

    check(ours)
    catches(check, Wall)


def test_trap_22_one_error_object_for_every_rejection():
    def check(guarded):
        for _ in range(1_000):
            with pytest.raises(BreakerOpenError) as info:
                guarded()
        frames, trace = 0, info.value.__traceback__
        while trace is not None:
            frames, trace = frames + 1, trace.tb_next
        assert frames < 10

    shared = BreakerOpenError("naive", "open")

    def naive():
        raise shared

    breaker = ours()
    breaker.trip()
    check(Policy(breaker=breaker)(lambda: None))
    catches(check, naive)


def test_trap_24_a_second_object_resets_the_state_of_the_first():
    def check(make):
        first = make(name="shared")
        first.trip()
        make(name="shared")
        assert first.state == "open"
        assert (
            pickle.loads(pickle.dumps(first)).state == "closed"
        )  # state is per process, and said so
        assert first.state == "open"

    class ByName:
        states = {}

        def __init__(self, name):
            self.name = name
            self.states[name] = "closed"

        def trip(self):
            self.states[self.name] = "open"

        @property
        def state(self):
            return self.states[self.name]

    check(ours)
    catches(check, ByName)


# --- retry -----------------------------------------------------------------------------------------------------------


def naive_retry(attempts, *, on=Exception, backoff=lambda _: 0.0, limit=float("inf")):
    """Return the usual loop."""

    def wrap(fn):
        def guarded(*args):
            began = current().monotonic()
            for attempt in range(1, attempts + 1):
                try:
                    return fn(*args)
                except on:
                    if attempt == attempts or current().monotonic() - began >= limit:
                        raise
                    current().sleep(backoff(attempt))

        return guarded

    return wrap


def test_trap_10_a_cancellation_is_retried():
    def check(wrap, patience=60.0):
        calls = []

        async def work():
            calls.append(1)
            await asyncio.sleep(600)

        async def main():
            task = asyncio.create_task(wrap(work)())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=patience)
            assert task.cancelled()
            assert len(calls) == 1

        asyncio.run(main())

    def naive(fn):
        async def loop():
            for _ in range(2):
                try:
                    return await fn()
                except BaseException:
                    continue
            return await asyncio.sleep(0)

        return loop

    check(Policy(retry=3, on=lambda error: True))
    catches(lambda naive: check(naive, patience=0.2), naive)


def test_trap_11_a_call_clears_the_statistics_of_another():
    def check(wrap):
        attempts = {"outer": 0, "inner": 0}

        def work(who):
            attempts[who] += 1
            if who == "outer" and attempts[who] == 1:
                # another thread comes and goes in the middle of this attempt
                together(1, lambda: guarded("inner"))
            if attempts[who] < 3:
                raise ConnectionError
            return who

        guarded = wrap(work)
        try:
            assert guarded("outer") == "outer"
        except KeyError as error:
            raise AssertionError(error) from error
        assert attempts == {"outer": 3, "inner": 3}

    def naive(fn):
        statistics = {}

        def guarded(who):
            statistics["attempt"] = 1
            while True:
                try:
                    answer = fn(who)
                except ConnectionError:
                    statistics["attempt"] += 1
                    if statistics["attempt"] > 3:
                        raise
                else:
                    statistics.clear()
                    return answer

        return guarded

    check(Policy(retry=Retry(3, backoff=0)))
    catches(check, naive)


def test_trap_13_an_attempt_starts_after_the_time_is_over():
    def check(wrap):
        with virtual_time(start=0.0) as clock:
            starts = []

            def work():
                starts.append(clock.monotonic())
                raise ConnectionError

            with pytest.raises(ConnectionError):
                wrap(work)()
            assert max(starts) < 0.5
            assert clock.monotonic() <= 0.5

    check(Policy(retry=Retry(10, backoff=0.2), deadline=0.5))
    check(lambda work: lambda: _within(0.5, Policy(retry=Retry(10, backoff=0.2))(work)))
    catches(check, naive_retry(10, backoff=lambda _: 0.2, limit=0.5))


def _within(allowed, fn):
    with deadline(allowed):
        return fn()


def test_trap_14_no_jitter_at_the_cap():
    def check(wait):
        pauses = [wait(20) for _ in range(50)]
        assert len(set(pauses)) > 45
        assert max(pauses) <= 5.0

    source = random.Random(7)
    check(full_jitter(0.1, cap=5.0, random=source.random))
    catches(check, lambda attempt: min(5.0, 0.1 * 2**attempt + source.random()))


def test_trap_15_two_to_the_nth_overflows():
    def check(wait):
        try:
            pauses = [wait(attempt) for attempt in (1, 63, 64, 1_000, 1_025, 10**9)]
        except OverflowError as error:
            raise AssertionError(error) from error
        assert all(0 <= pause <= 5.0 for pause in pauses)

    check(full_jitter(0.1, cap=5.0))
    catches(check, lambda attempt: min(5.0, 0.1 * 2.0**attempt))


def test_trap_20_attempts_multiply_from_level_to_level():
    def check(wrap):
        calls = []

        def work():
            calls.append(1)
            raise ConnectionError

        with virtual_time(), suppress(ConnectionError):
            wrap(wrap(wrap(work)))()
        assert len(calls) == 3

    def budget(wrap):
        calls = []

        def work():
            calls.append(1)
            raise ConnectionError

        guarded = wrap(work)
        with virtual_time():
            for _ in range(200):
                with suppress(ConnectionError):
                    guarded()
        assert len(calls) <= 1.1 * 200 + 10

    naive = naive_retry(3)
    check(lambda fn: Policy(retry=Retry(3, budget=None))(fn))
    catches(check, naive)
    budget(Policy(retry=Retry(3, budget=Budget(0.1, 10))))
    catches(budget, naive)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_trap_16_a_retried_stream_says_its_items_again():
    def check(wrap):
        def stream():
            yield 0
            yield 1
            raise ConnectionError

        seen = []
        with suppress(ConnectionError):
            for item in wrap(stream)():
                seen.append(item)
        assert seen == [0, 1]

    def naive(fn):
        def loop():
            for _ in range(3):
                try:
                    yield from fn()
                except ConnectionError:
                    continue
                return

        return loop

    check(Policy(retry=Retry(3, backoff=0)))
    catches(check, naive)


def test_trap_17_a_consumer_that_stops_early_is_a_failure():
    def check(make):
        breaker = make()

        def stream():
            yield from range(5)

        for item in guard(breaker, stream)():
            if item == 1:
                break
        assert breaker.state == "closed"

    class Strict(NaiveBreaker):
        def __call__(self, fn):
            def guarded():
                try:
                    yield from fn()
                except BaseException:
                    self.settle("ticket", False)
                    raise

            return guarded

    check(ours)
    catches(check, Strict)


def test_trap_17_a_stream_that_fails_before_its_first_item_is_a_failure():
    def check(make):
        breaker = make()

        def stream():
            raise ConnectionError
            yield

        with suppress(ConnectionError):
            list(guard(breaker, stream)())
        assert breaker.state == "open"

    check(ours)
    catches(check, NaiveBreaker)  # it saw a generator object, and was content


def test_trap_18_a_truncated_stream_passes_for_an_answer():
    def check(wrap):
        def stream():
            yield "the"
            raise ConnectionError

        failed = False
        try:
            list(wrap(stream)())
        except ConnectionError:
            failed = True
        assert failed, "half an answer passed for one"

    def naive(fn):
        def guarded():
            with suppress(ConnectionError):
                yield from fn()

        return guarded

    check(Policy(retry=Retry(3, backoff=0)))
    catches(check, naive)


# --- fallback --------------------------------------------------------------------------------------------------------


def naive_fallback(*tiers):
    """Return the usual ladder of except."""

    def ask(*args):
        for one in tiers[:-1]:
            with suppress(Exception):
                return one(*args)
        return tiers[-1](*args)

    return ask


def test_trap_19_every_call_pays_for_a_dead_tier():
    def check(make):
        calls = []

        def dead(x):
            calls.append(x)
            raise ConnectionError

        score = make(dead, lambda x: 0)
        with virtual_time():
            for x in range(500):
                assert score(x) == 0
        assert len(calls) <= 20

    check(fallback)
    catches(check, naive_fallback)


def test_trap_25_the_fallback_changes_its_input():
    def check(make):
        def dead(question):
            raise ConnectionError

        question = {"text": "why"}
        make(dead, lambda question: question["text"])(question)
        assert question == {"text": "why"}

    def naive(first, second):
        def ask(question):
            try:
                return first(question)
            except ConnectionError as error:
                question["error"] = error
                return second(question)

        return ask

    check(fallback)
    catches(check, naive)


# --- hedge -----------------------------------------------------------------------------------------------------------


def test_trap_26_a_cancelled_caller_leaves_a_hedge_running():
    def check(wrap):
        async def work():
            await asyncio.sleep(3600)

        async def main():
            task = asyncio.create_task(wrap(work)())
            await asyncio.sleep(1.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            left = asyncio.all_tasks() - {asyncio.current_task()}
            try:
                assert not left
            finally:
                for one in left:
                    one.cancel()
                await asyncio.gather(*left, return_exceptions=True)

        with virtual_time(grace=0.0) as clock:
            clock.run(main())

    def naive(fn):
        async def hedged():
            tasks = [asyncio.create_task(fn())]
            done, _ = await asyncio.wait(tasks, timeout=0.1)
            if not done:
                tasks.append(asyncio.create_task(fn()))
            done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            return done.pop().result()

        return hedged

    check(Policy(hedge=Hedge(0.1)))
    catches(check, naive)


# --- what others see -------------------------------------------------------------------------------------------------


def test_trap_23_arguments_are_logged():
    def check(observe):
        with capture_logs() as lines, record_events() as events:
            calls = []

            def score(batch):
                calls.append(batch)
                raise ConnectionError(f"cannot score {batch}")

            guarded = observe(score)
            with virtual_time():
                for _ in range(5):
                    with suppress(Exception):
                        guarded("Ada Lovelace")
        assert lines
        assert "Ada" not in repr(lines) + repr(events)
        assert "Ada" not in repr(telemetry.collect())

    def logged(fn):
        return log_around(fallback(tier(fn, policy=Policy(retry=2, breaker=ours()))))

    def log_around(guarded):
        def call(batch):
            with log_events(scope="context"):
                return guarded(batch)

        return call

    def naive(fn):
        import structlog

        def call(*args):
            try:
                return fn(*args)
            except Exception:
                structlog.get_logger().warning("retry", args=repr(args))

        return call

    check(logged)
    catches(check, naive)


def test_trap_27_the_signature_is_lost():
    """What type checkers see is pinned in tests/typing; this is what help() and frameworks see."""

    def check(wrap):
        async def fetch(key: str, *, fresh: bool = False) -> bytes:
            """Fetch it."""

        guarded = wrap(fetch)
        assert inspect.signature(guarded) == inspect.signature(fetch)
        assert inspect.iscoroutinefunction(guarded)
        assert (guarded.__name__, guarded.__doc__) == ("fetch", "Fetch it.")

    check(Policy(retry=3, timeout=1.0))
    catches(check, lambda fn: lambda *args, **kwargs: fn(*args, **kwargs))


def test_trap_28_every_success_is_pushed_to_whoever_listens():
    def check(wrap):
        guarded = wrap(lambda x: x)
        with record_events() as events:
            for x in range(100):
                guarded(x)
        assert events == []

    def naive(fn):
        def call(x):
            telemetry.emit("resilience.call.done", "naive")
            return fn(x)

        return call

    score = []

    def counted(fn):
        score.append(
            fallback(
                tier(fn, policy=Policy(retry=3, breaker=Breaker())), constant(0), name="trap-28"
            )
        )
        return score[0]

    check(counted)
    answers = [s.value for s in telemetry.collect() if ("fallback", "trap-28") in s.labels]
    assert sum(answers) == 100
    catches(check, naive)


def test_every_trap_has_a_test_with_a_naive_form_that_fails():
    held = {}
    for path in Path(__file__).parent.glob("test_traps*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_trap_"):
                calls = (
                    one.func.id
                    for one in ast.walk(node)
                    if isinstance(one, ast.Call) and isinstance(one.func, ast.Name)
                )
                assert "catches" in calls, f"{node.name} is shown to fail on nothing"
                held.setdefault(int(node.name.split("_")[2]), []).append(node.name)
    assert sorted(held) == [n for n in range(1, 29) if n != 12]


# --- what a breaker must not take for a verdict ----------------------------------------------------------------------


def test_cancelled_calls_while_closed_are_no_failures():
    breaker = Breaker(min_calls=2, window=20, failure_rate=0.5)

    def cancelled():
        raise asyncio.CancelledError

    guarded = Policy(breaker=breaker)(cancelled)
    for _ in range(10):
        with pytest.raises(asyncio.CancelledError):
            guarded()
    assert (breaker.state, breaker.stats().calls) == ("closed", 0)


def test_a_cancelled_call_between_failures_keeps_their_count():
    breaker = Breaker(min_calls=2, window=2)
    errors = [ConnectionError, asyncio.CancelledError, ConnectionError]

    def work():
        raise errors.pop(0)

    guarded = Policy(breaker=breaker)(work)
    for error in list(errors):
        with pytest.raises(error):
            guarded()
    assert breaker.state == "open"
