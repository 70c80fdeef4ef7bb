"""What a Batcher does for callers beyond batching: shared runs, early refusals, a latency objective, async models, closing in time."""

import asyncio
import contextvars
import gc
import itertools
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit import telemetry
from mlkit.errors import (
    BatcherClosedError,
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    OutputShapeError,
    OverloadedError,
    QueueFullError,
)
from mlkit.inference import Batcher
from mlkit.inference._online.bell import Bell
from mlkit.inference._online.gathering import Gathering
from mlkit.inference._online.groups import Group, Waiting, take_rows
from mlkit.inference._online.pace import Pace
from mlkit.testing import virtual_time


class Gate:
    """A model that waits to be let through, and remembers its batches."""

    def __init__(self):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def __call__(self, batch):
        self.batches.append(list(batch))
        self.entered.release()
        assert self.open.acquire(timeout=60)
        return [row.upper() for row in batch]


def wait_until(condition):
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came")


# --- shared runs -------------------------------------------------------------------------------------------------


def test_rows_of_equal_keys_run_once_for_loops_and_threads_alike():
    gate = Gate()
    got = []

    async def main():
        with Batcher(gate, max_wait=0) as batcher:
            first = asyncio.create_task(batcher.submit("x", key=1))
            await asyncio.to_thread(gate.entered.acquire)  # it runs
            running = asyncio.create_task(batcher.submit("never seen", key=1))
            waiting = [asyncio.create_task(batcher.submit("y", key=2)) for _ in range(5)]
            thread = threading.Thread(target=lambda: got.append(batcher.call("z", key=2)))
            thread.start()
            wait_until(lambda: batcher.stats().n_waiting == 1)
            await asyncio.sleep(0)
            assert batcher.stats().n_joined == 6
            gate.open.release(2)
            got.extend(await asyncio.gather(first, running, *waiting))
            thread.join()
            again = asyncio.create_task(batcher.submit("x", key=1))  # a flight that has landed
            await asyncio.to_thread(gate.entered.acquire)
            await asyncio.to_thread(gate.entered.acquire)
            gate.open.release()
            got.append(await again)
            return batcher.stats()

    stats = asyncio.run(main())
    assert sorted(got) == ["X", "X", "X", *["Z"] * 6]
    assert [len(batch) for batch in gate.batches] == [1, 1, 1]
    assert (stats.n_accepted, stats.n_done, stats.n_joined) == (3, 3, 6)


def test_a_shared_run_goes_on_for_as_long_as_one_caller_wants_it():
    gate = Gate()

    async def main():
        with Batcher(gate, max_wait=0) as batcher:
            blocker = asyncio.create_task(batcher.submit("blocker"))
            await asyncio.to_thread(gate.entered.acquire)
            tasks = [asyncio.create_task(batcher.submit("kept", key="k")) for _ in range(3)]
            gone = [asyncio.create_task(batcher.submit("gone", key="g")) for _ in range(3)]
            late = asyncio.create_task(batcher.submit("gone", key="g", deadline=0.01))
            await asyncio.sleep(0)
            assert batcher.stats().n_waiting == 2
            tasks[0].cancel()  # the one whose row it is
            tasks[2].cancel()
            for task in gone:
                task.cancel()
            with pytest.raises(DeadlineExceededError):
                await late
            assert batcher.stats().n_waiting == 1
            gate.open.release(2)
            results = await asyncio.gather(blocker, *tasks, *gone, return_exceptions=True)
            return results, batcher.stats()

    results, stats = asyncio.run(main())
    assert [r if isinstance(r, str) else type(r).__name__ for r in results] == [
        "BLOCKER",
        "CancelledError",
        "KEPT",
        *["CancelledError"] * 4,
    ]
    assert gate.batches == [["blocker"], ["kept"]]
    assert (stats.n_done, stats.n_expired, stats.n_cancelled) == (2, 1, 0)


def test_the_more_urgent_of_two_callers_decides_when_a_shared_run_leaves():
    gate = Gate()

    async def main():
        with Batcher(gate, max_wait=0, max_batch_size=1) as batcher:
            tasks = [asyncio.create_task(batcher.submit("blocker"))]
            await asyncio.to_thread(gate.entered.acquire)
            tasks += [
                asyncio.create_task(batcher.submit("a")),
                asyncio.create_task(batcher.submit("shared", key=0)),
                asyncio.create_task(batcher.submit("shared", key=0, priority=1)),
            ]
            await asyncio.sleep(0)
            gate.open.release(9)
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert gate.batches == [["blocker"], ["shared"], ["a"]]


def test_closing_without_a_drain_answers_those_who_share_a_run_too():
    gate = Gate()

    async def main():
        batcher = Batcher(gate, max_wait=0).start()
        first = asyncio.create_task(batcher.submit("a"))
        await asyncio.to_thread(gate.entered.acquire)
        waiting = [asyncio.create_task(batcher.submit("b", key=1)) for _ in range(3)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.aclose(drain=False))
        results = await asyncio.gather(*waiting, return_exceptions=True)
        gate.open.release()
        results.insert(0, await first)
        await closing
        assert [type(result) for result in results] == [str, *[BatcherClosedError] * 3]
        assert len(set(map(id, results))) == 4

    asyncio.run(asyncio.wait_for(main(), 60))


def test_rows_whose_time_is_up_leave_their_places_to_the_next():
    with virtual_time(autojump=False) as clock:
        gate = Gate()

        async def main():
            with Batcher(gate, max_wait=0, max_batch_size=3) as batcher:
                tasks = [asyncio.create_task(batcher.submit("first"))]
                await asyncio.to_thread(gate.entered.acquire)
                rows = [("late", 5.0), ("a", None), ("late", 5.0), ("b", 50.0), ("c", None)]
                for row, deadline in rows:
                    tasks.append(asyncio.create_task(batcher.submit(row, deadline=deadline)))
                await asyncio.sleep(0)
                clock.advance(10.0)
                gate.open.release(9)
                await asyncio.gather(*tasks, return_exceptions=True)
                return batcher.stats()

        stats = asyncio.run(main())
    assert gate.batches == [["first"], ["a", "b", "c"]]
    assert stats.n_expired == 2


class Uncopyable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


class WithoutTraceback(Exception):
    def with_traceback(self, trace):
        raise RuntimeError("no")


class FatalToCopy(Exception):
    def __copy__(self):
        raise SystemExit


@pytest.mark.parametrize(
    "error", [ValueError("bad row"), Uncopyable(1, 2), WithoutTraceback(), FatalToCopy()]
)
def test_each_caller_of_a_shared_run_gets_an_error_of_its_own(error):
    def model(batch):
        raise error

    async def main():
        async with Batcher(model) as batcher:
            calls = [batcher.submit("a", key="k") for _ in range(3)]
            return await asyncio.gather(*calls, return_exceptions=True)

    errors = asyncio.run(main())
    assert len(set(map(id, errors))) == 3
    assert errors[0] is error
    assert all(type(e) in (type(error), InferenceError) for e in errors)
    if isinstance(error, ValueError):
        assert [str(e) for e in errors] == ["bad row"] * 3


def test_a_key_that_is_not_made_of_plain_values_is_refused():
    class Key:
        def __hash__(self):
            raise AssertionError("user code within a lock")

    with Batcher(lambda batch: batch) as batcher:
        for wrong in ([], Key(), (1, Key()), frozenset()):
            with pytest.raises(ConfigurationError, match="key"):
                batcher.call(1.0, key=wrong)
        for key in (0, "", b"x", 1.5, ("a", (1, None))):
            assert batcher.call(1.0, key=key) == 1.0


def test_nobody_joins_a_row_that_was_refused():
    with virtual_time(autojump=False) as clock:
        batcher, hold, entered = taught(clock, 2.0)
        with batcher:
            hold.set()
            batcher.call(0.0)
            entered.acquire()
            hold.clear()
            first = clock.thread(batcher.call, 0.0)
            entered.acquire()
            with pytest.raises(OverloadedError):
                batcher.call(1.0, key="k", timeout=1.0)
            got = []
            second = clock.thread(lambda: got.append(batcher.call(2.0, key="k")))
            wait_until(lambda: batcher.stats().n_waiting == 1)
            assert batcher.stats().n_joined == 0
            hold.set()
            for thread in (first, second):
                thread.join()
    assert got == [2.0]


# --- early refusals ------------------------------------------------------------------------------------------------


def taught(clock, seconds, **options):
    """Return a model that takes *seconds* of *clock* for a batch, and a batcher of it."""
    hold = threading.Event()
    entered = threading.Semaphore(0)

    def model(batch):
        entered.release()
        assert hold.wait(60)
        clock.advance(seconds)
        return batch

    return Batcher(model, max_wait=0, **options), hold, entered


def test_a_deadline_that_cannot_be_met_is_refused_on_arrival():
    async def main(clock):
        batcher, hold, entered = taught(clock, 2.0, max_batch_size=2)
        with batcher:
            hold.set()
            await batcher.submit(1.0, deadline=0.5)  # an idle device takes it; nothing is known yet
            assert await batcher.submit(1.0, deadline=100.0) == 1.0  # takes 2 s, as is known now
            await asyncio.to_thread(entered.acquire)
            await asyncio.to_thread(entered.acquire)
            hold.clear()
            tasks = [asyncio.create_task(batcher.submit(1.0))]
            await asyncio.to_thread(entered.acquire)
            tasks += [asyncio.create_task(batcher.submit(float(i))) for i in range(3)]
            await asyncio.sleep(0)
            # 2 s of the batch that runs, 2 s of the full one that waits, 2 s of its own
            with pytest.raises(OverloadedError, match=r"expected in 6 s.*waits 5 s") as caught:
                await batcher.submit(9.0, deadline=5.0)
            assert caught.value.retry_after == pytest.approx(6.0)
            tasks.append(asyncio.create_task(batcher.submit(9.0, deadline=7.0)))
            tasks.append(asyncio.create_task(batcher.submit(9.0, deadline=5.0, priority=1)))
            await asyncio.sleep(0)
            stats = batcher.stats()
            hold.set()
            await asyncio.gather(*tasks)
        return stats

    with virtual_time(autojump=False) as clock:
        stats = asyncio.run(main(clock))
    assert stats.rejects == {"deadline": 1}
    assert stats.n_rejected == 1


def test_an_idle_device_takes_every_row_so_that_old_figures_cannot_lock_anybody_out():
    with virtual_time(autojump=False) as clock:
        batcher, hold, _ = taught(clock, 50.0)
        hold.set()
        with batcher:
            assert batcher.call(1.0) == 1.0
            for _ in range(3):
                with suppress(DeadlineExceededError):  # or its result, if that was there first
                    batcher.call(1.0, timeout=1.0)
                wait_until(lambda: batcher.stats().n_running == 0)
            assert batcher.stats().n_done == 4  # they ran
            assert batcher.stats().rejects == {}


def test_a_full_queue_says_when_to_come_again():
    with virtual_time(autojump=False) as clock:
        batcher, hold, entered = taught(clock, 3.0, max_batch_size=1, max_queue=2)
        with batcher:
            hold.set()
            batcher.call(0.0)
            entered.acquire()
            hold.clear()
            threads = [clock.thread(batcher.call, 1.0)]
            entered.acquire()
            threads += [clock.thread(batcher.call, 1.0) for _ in range(2)]
            wait_until(lambda: batcher.stats().n_waiting == 2)
            with pytest.raises(QueueFullError, match="try again in 12 s") as caught:
                batcher.call(1.0)
            assert caught.value.retry_after == pytest.approx(3 + 2 * 3 + 3)
            assert batcher.stats().rejects == {"queue full": 1}
            hold.set()
            for thread in threads:
                thread.join()


# --- the latency objective -----------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    a=st.floats(0.001, 0.05),
    b=st.floats(0.0, 0.005),
    largest=st.integers(1, 300),
    target=st.floats(0.001, 0.5),
    order=st.lists(st.integers(1, 300), max_size=20),
)
def test_an_objective_allows_the_rows_that_run_in_half_of_it(a, b, largest, target, order):
    pace = Pace(largest, (), target)
    for n_rows in order:
        n_rows = min(n_rows, largest)
        pace.observe(n_rows, a + b * n_rows)
    for _ in range(12):  # from then on it is obeyed
        n_rows = pace.most_rows()
        assert 1 <= n_rows <= largest
        pace.observe(n_rows, a + b * n_rows)
    n_rows = pace.most_rows()
    best = max((n for n in range(1, largest + 1) if a + b * n <= target / 2), default=1)
    assert n_rows == 1 or a + b * n_rows <= target / 2 * 1.3  # sizes are taken together in steps
    assert n_rows >= best * 0.75 - 1
    waits = pace.longest_wait(n_rows, 0.01)
    assert 0 <= waits <= 0.01
    assert waits == 0.0 or waits + pace.seconds(n_rows) <= target + 1e-9


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), min_size=1, max_size=40),
    st.lists(st.integers(1, 64), min_size=2, max_size=10),
)
def test_more_rows_are_never_expected_to_take_less_time(observed, asked):
    pace = Pace(64, (), None)
    for n_rows, seconds in observed:
        pace.observe(n_rows, seconds)
    times = [pace.seconds(n) for n in sorted(asked)]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(times))
    assert min(s for _, s in observed) - 1e-9 <= times[0]


def test_a_batcher_with_an_objective_makes_batches_that_keep_to_it_and_a_backlog_makes_larger_ones():
    """A device of 10 ms and 1 ms a row: half of 60 ms is enough for 20 rows."""
    with virtual_time(autojump=False) as clock:
        sizes = []

        def model(batch):
            sizes.append(len(batch))
            clock.advance(0.010 + 0.001 * len(batch))
            return batch

        async def main():
            async with Batcher(
                model, max_batch_size=64, max_wait=0, target_latency=0.06, max_queue=10_000
            ) as batcher:

                async def caller():
                    for _ in range(30):
                        await batcher.submit(1.0)

                await asyncio.gather(*[caller() for _ in range(30)])
                limit = batcher.stats().batch_limit
                sizes.clear()
                await asyncio.gather(*[batcher.submit(1.0) for _ in range(500)])
                return limit

        limit = asyncio.run(main())
    assert 16 <= limit <= 24
    assert sizes[0] <= 64
    assert max(sizes) > 40  # 500 rows in batches of 20 would take 25 times the fixed 10 ms
    assert sizes[-1] <= limit


# --- warming up --------------------------------------------------------------------------------------------------


def test_warming_up_runs_every_bucket_before_the_first_caller():
    seen = []

    def model(batch):
        seen.append((threading.current_thread().name, len(batch)))
        return batch

    with Batcher(model, name="m", max_batch_size=8, buckets=[1, 4, 8]) as batcher:
        times = batcher.warm_up(1.0)
        assert list(times) == [1, 4, 8]
        assert all(seconds >= 0 for seconds in times.values())
        assert seen == [("mlkit-m", n) for n in (1, 1, 4, 4, 8, 8)]
        assert (batcher.stats().n_accepted, batcher.stats().n_batches) == (0, 0)
        assert batcher.call(2.0) == 2.0
    with Batcher(model, max_batch_size=5) as batcher:
        assert list(batcher.warm_up(1.0)) == [1, 5]
        assert list(batcher.warm_up(1.0, sizes=[2])) == [2]


def test_warming_up_tells_what_will_not_work():
    def model(batch):
        if len(batch) > 4:
            raise MemoryError("no room")
        if batch[0] < 0:
            raise ValueError("negative")
        return batch

    batcher = Batcher(model, max_batch_size=8)
    with pytest.raises(BatcherClosedError, match="not started"):
        batcher.warm_up(1.0)
    with batcher:
        with pytest.raises(ValueError, match="negative"):
            batcher.warm_up(-1.0)
        with pytest.raises(InferenceError, match="8 rows: MemoryError"):
            batcher.warm_up(1.0)
        for wrong in ([0], [9], [1.5]):
            with pytest.raises(ConfigurationError, match=r"warm_up\(sizes"):
                batcher.warm_up(1.0, sizes=wrong)
        assert batcher.call(1.0) == 1.0
    with pytest.raises(BatcherClosedError, match="closed"):
        batcher.warm_up(1.0)


# --- async models and contexts -------------------------------------------------------------------------------------


def test_an_async_model_runs_in_one_loop_of_the_device_thread():
    loops = set()

    async def model(batch):
        loops.add((asyncio.get_running_loop(), threading.current_thread().name))
        await asyncio.sleep(0.001)
        if "bad" in batch:
            raise ValueError("bad row")
        return [row.upper() for row in batch]

    async def main(batcher):
        return await asyncio.gather(
            *[batcher.submit(row) for row in ("a", "bad", "c")], return_exceptions=True
        )

    with Batcher(model) as batcher:
        assert batcher.call("x") == "X"
        a, bad, c = asyncio.run(main(batcher))
        assert (a, str(bad), c) == ("A", "bad row", "C")
    ((loop, name),) = loops
    assert "model" in name
    assert loop.is_closed()


def test_an_async_model_that_is_cancelled_or_calls_itself_hangs_nobody():
    async def model(batch):
        if batch[0] == "cancel":
            raise asyncio.CancelledError
        if batch[0] == "itself":
            return [await batcher.submit("a")]
        return batch

    with Batcher(model, max_wait=0) as batcher:
        with pytest.raises(InferenceError, match="CancelledError"):
            batcher.call("cancel")
        with pytest.raises(InferenceError, match="inside its own model"):
            batcher.call("itself")
        assert batcher.call("a") == "a"


def test_the_model_sees_the_context_of_the_start_and_callers_keep_theirs():
    var = contextvars.ContextVar("var", default="none")

    def model(batch):
        seen = var.get()
        var.set("changed by the model")
        return [seen] * len(batch)

    async def caller(batcher, name):
        var.set(name)
        result = await batcher.submit(name)
        return result, var.get()

    async def main():
        var.set("at start")
        async with Batcher(model, max_wait=0) as batcher:
            return await asyncio.gather(*[caller(batcher, name) for name in "ab"])

    (a, b) = asyncio.run(main())
    assert a == ("at start", "a")
    assert b[1] == "b"


# --- closing -----------------------------------------------------------------------------------------------------


def test_closing_in_time_says_what_was_left():
    gate = Gate()
    batcher = Batcher(gate, max_wait=0, max_batch_size=1).start()
    errors = []

    def caller():
        with pytest.raises(BatcherClosedError) as caught:
            batcher.call("a")
        errors.append(str(caught.value))

    async def main():
        task = asyncio.create_task(batcher.submit("runs"))
        await asyncio.to_thread(gate.entered.acquire)
        thread = threading.Thread(target=caller)
        thread.start()
        wait_until(lambda: batcher.stats().n_waiting == 1)
        left = await batcher.aclose(timeout=0.01)
        with pytest.raises(BatcherClosedError, match="still runs"):
            await task
        await asyncio.to_thread(thread.join)
        return left

    left = asyncio.run(main())
    assert (left.n_running, left.n_waiting, left.n_cancelled, left.n_done) == (1, 0, 1, 0)
    assert "closed" in errors[0]
    gate.open.release()
    end = batcher.close(timeout=60)
    assert (end.n_running, end.n_done) == (0, 1)
    with pytest.raises(ConfigurationError, match="timeout"):
        batcher.close(timeout=-1)


@pytest.mark.parametrize("kind", ["with", "async with"])
def test_the_end_of_a_with_does_not_wait_for_a_model_that_close_gave_up(kind):
    gate = Gate()
    batcher = Batcher(gate, max_wait=0)

    def plain():
        with batcher:
            thread = threading.Thread(target=suppressed, args=(batcher.call, "a"))
            thread.start()
            gate.entered.acquire()
            batcher.close(timeout=0.01)
            thread.join()

    async def coroutine():
        async with batcher:
            task = asyncio.create_task(batcher.submit("a"))
            await asyncio.to_thread(gate.entered.acquire)
            await batcher.aclose(timeout=0.01)
            await asyncio.wait([task])
            assert isinstance(task.exception(), BatcherClosedError)

    def suppressed(run, *arguments):
        with suppress(BatcherClosedError):
            run(*arguments)

    run = plain if kind == "with" else lambda: asyncio.run(coroutine())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    hangs = thread.is_alive()
    gate.open.release()
    assert not hangs
    assert batcher.close(timeout=60).n_done == 1


def test_a_close_that_is_cancelled_before_a_thread_is_free_for_it_closes_none_the_less():
    async def main():
        busy = threading.Event()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        task = asyncio.create_task(asyncio.to_thread(busy.wait))
        batcher = Batcher(lambda batch: batch).start()
        closing = asyncio.create_task(batcher.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        try:
            with pytest.raises(asyncio.CancelledError):
                await closing
            with pytest.raises(BatcherClosedError):
                await batcher.submit(1.0)
        finally:
            busy.set()
            await task

    asyncio.run(main())


def test_an_async_model_may_close_its_batcher():
    async def model(batch):
        await batcher.aclose()
        return batch

    batcher = Batcher(model).start()
    assert batcher.call(1.0, timeout=60) == 1.0
    assert batcher.close(timeout=60).n_done == 1


def test_closing_counts_its_timeout_in_the_batchers_own_time():
    with virtual_time() as clock:
        gate = Gate()
        batcher = Batcher(gate, max_wait=0).start()

        def caller():
            with pytest.raises(BatcherClosedError):
                batcher.call("a")

        thread = clock.thread(caller)
        gate.entered.acquire()
        before = clock.monotonic()
        assert batcher.close(timeout=3600.0).n_running == 1
        assert clock.monotonic() - before >= 3600.0
        thread.join()
        gate.open.release()
        batcher.close()


def test_a_drain_gives_every_caller_its_result_and_then_the_counts():
    gate = Gate()

    async def main():
        batcher = Batcher(gate, max_batch_size=2).start()
        tasks = [asyncio.create_task(batcher.submit("a")) for _ in range(7)]
        await asyncio.to_thread(gate.entered.acquire)
        gate.open.release(99)
        stats = await batcher.aclose(timeout=60)
        return await asyncio.gather(*tasks), stats

    results, stats = asyncio.run(main())
    assert results == ["A"] * 7
    assert (stats.n_done, stats.n_waiting, stats.n_running) == (7, 0, 0)


# --- figures -------------------------------------------------------------------------------------------------------


def test_latency_is_measured_from_arrival_to_outcome():
    with virtual_time(autojump=False) as clock:
        entered, hold = threading.Semaphore(0), threading.Semaphore(0)

        def model(batch):
            entered.release()
            assert hold.acquire(timeout=60)
            clock.advance(2.0)
            return batch

        with Batcher(model, max_wait=0, name="timed") as batcher:
            threads = [clock.thread(batcher.call, 1.0)]
            entered.acquire()
            threads += [clock.thread(batcher.call, 1.0) for _ in range(2)]
            wait_until(lambda: batcher.stats().n_waiting == 2)
            clock.advance(1.0)
            hold.release(2)
            for thread in threads:
                thread.join()
            stats = batcher.stats()
            samples = {
                dict(sample.labels)["quantile"]: sample.value
                for sample in telemetry.collect()
                if sample.name == "inference_latency_seconds"
                and ("batcher", "timed") in sample.labels
            }
    assert stats.latency == (3, 5.0, 5.0, 5.0, 5.0)
    assert stats.waited == (3, 3.0, 3.0, 3.0, 3.0)
    assert samples == {"0.5": 5.0, "0.99": 5.0}


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300))
def test_quantiles_are_those_of_the_sorted_values(values):
    from mlkit.inference._online.stats import _quantiles

    found = _quantiles(list(map(float, values)))
    n = len(values)
    for quantile, share in ((found.p50, 0.5), (found.p90, 0.9), (found.p99, 0.99)):
        assert sum(value <= quantile for value in values) >= share * n - 1e-9
        assert sum(value < quantile for value in values) < share * n
    assert (found.n, found.longest) == (n, max(values))


# --- the parts -----------------------------------------------------------------------------------------------------


def test_a_free_device_waits_for_the_callers_it_just_answered_and_no_longer():
    gathering = Gathering(64, 1.0)
    gathering.sealed(3, 0.0)
    gathering.answered(2, 3, {"loop"})  # two rows came meanwhile; three callers have their answers
    assert not gathering.complete(3)
    assert gathering.complete(5)  # all are back: nothing to wait for
    assert gathering.next_sign(2, 100) == 5
    assert gathering.next_sign(2, 4) == 4
    assert gathering.next_sign(5, 100) == 64
    assert gathering.next_sign(64, 100) == 100
    gathering.settled("loop")
    assert gathering.complete(3)  # they had their time
    gathering.sealed(3, 0.0)
    gathering.arrived(0.5)  # came while the batch ran, soon after it had left
    gathering.answered(1, 3, {None})
    assert not gathering.complete(3)
    assert gathering.complete(4)
    assert gathering.seconds_left(10.0) == 1.0
    assert gathering.seconds_left(11.0) == 0.0


def test_rows_that_come_evenly_are_no_sign_of_company():
    gathering = Gathering(64, 1.0)
    gathering.sealed(5, 0.0)
    for tenth in range(50):
        gathering.arrived(tenth / 10)  # in five seconds; only the first second counts as a miss
    gathering.answered(50, 5, {None})
    assert gathering.complete(1)


def test_a_ring_at_the_very_end_of_a_wait_is_not_kept_for_the_next():
    class Late:
        """A lock that somebody else holds, and rings under, when the wait is over."""

        def __init__(self):
            self.lock = threading.Lock()
            self.bell = None

        def acquire(self):
            if self.bell is not None:
                self.bell.notify()
            return self.lock.acquire()

        def release(self):
            self.lock.release()

    lock = Late()
    lock.acquire()
    bell = Bell(lock)
    lock.bell = bell
    assert bell.wait(0.001)
    lock.bell = None
    assert not bell.wait(0.001)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "remove", "take"]), st.integers(0, 50), st.integers(1, 5)
        )
    )
)
def test_rows_leave_by_priority_and_then_in_order_whatever_was_taken_out(steps):
    waiting, model, numbers = Waiting(), [], itertools.count()
    for step, choice, n_rows in steps:
        if step == "push":
            rows = [next(numbers) for _ in range(n_rows)]
            group = Group(rows, None, rows.copy())
            group.priority = choice % 3 - 1
            waiting.push(group)
            model += [(group, row) for row in rows.copy()]
        elif step == "remove" and model:
            group, row = model.pop(choice % len(model))
            assert waiting.remove(group, row)
        elif step == "take":
            model.sort(key=lambda each: -each[0].priority)
            left, model = model[:n_rows], model[n_rows:]
            groups = waiting.take(n_rows)
            assert [signal for group in groups for signal in group.signals] == [
                row for _, row in left
            ]
            assert (take_rows(groups) if groups else []) == [row for _, row in left]
            assert not any(group.waits for group in groups)
            for group, row in left:
                assert not group.waits or not waiting.remove(group, row)
        assert waiting.n_rows == len(model)
        assert waiting.ahead(0) == sum(group.priority >= 0 for group, _ in model)


def test_rows_that_are_taken_out_do_not_pile_up_behind_a_device_that_is_stuck():
    waiting = Waiting()
    watched = []
    for _ in range(1000):
        group = Group([0], None, [0])
        waiting.push(group)
        waiting.remove(group, 0)
        watched.append(weakref.ref(group))
        del group
    assert sum(each() is not None for each in watched) < 50


# --- bad results ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda batch: batch[:-1], "returned 2 rows"),
        (lambda batch: [*batch, 0.0], "returned 4 rows"),
        (lambda batch: 7, "returned an int"),
        (lambda batch: None, "returned None"),
        (lambda batch: {"a": batch, "b": batch[:1]}, "'b'"),
        (lambda batch: (x for x in batch), "generator"),
    ],
)
def test_what_the_model_returned_instead_is_named(output, words):
    async def main():
        async with Batcher(lambda batch: output(list(batch)), name="m") as batcher:
            calls = [batcher.submit(float(i)) for i in range(3)]
            return await asyncio.gather(*calls, return_exceptions=True)

    errors = asyncio.run(main())
    assert all(isinstance(error, OutputShapeError) for error in errors)
    assert all(words in str(error) for error in errors), str(errors[0])


def test_nothing_of_a_shared_run_stays():
    class Row:
        pass

    async def main():
        async with Batcher(lambda batch: [Row() for _ in batch]) as batcher:
            rows = [Row() for _ in range(4)]
            watched = list(map(weakref.ref, rows))
            calls = [batcher.submit(rows.pop(), key="k", deadline=50.0) for _ in range(4)]
            results = await asyncio.gather(*calls)
            watched.append(weakref.ref(results[0]))
            assert all(result is results[0] for result in results)
            del results, calls
            await asyncio.sleep(0)
            gc.collect()
            assert [each for each in watched if each() is not None] == []

    asyncio.run(main())
