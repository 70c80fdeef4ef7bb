"""Batches online."""

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mlkit.inference._online.batcher
from mlkit import telemetry
from mlkit._clock import current
from mlkit.errors import (
    BatcherClosedError,
    CollateError,
    ConfigurationError,
    DeadlineExceededError,
    InferenceError,
    OutputShapeError,
    QueueFullError,
)
from mlkit.inference import Batcher, BatcherStats, map_batches
from mlkit.testing import record_events, virtual_time

torch.set_num_threads(1)

PATIENT = 600.0  # a max_wait at which a busy machine cannot part callers that belong together


def upper(batch):
    return [row.upper() for row in batch]


class Gate:
    """A model that waits to be let through, and remembers its batches."""

    def __init__(self, fn=upper):
        self.fn = fn
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Semaphore(0)

    def __call__(self, batch):
        self.batches.append(list(batch))
        self.entered.release()
        assert self.open.acquire(timeout=60)
        return self.fn(batch)


def consistent(stats: BatcherStats):
    settled = stats.n_done + stats.n_failed + stats.n_expired + stats.n_cancelled
    assert stats.n_accepted == settled + stats.n_waiting + stats.n_running
    assert sum(stats.batch_sizes.values()) == stats.n_batches
    return True


@settings(max_examples=25)
@given(
    st.integers(1, 60),
    st.integers(1, 17),
    st.sets(st.integers(0, 59), max_size=5),
    st.booleans(),
)
def test_every_caller_gets_what_is_its_own(n, largest, bad, buckets):
    def model(batch):
        wrong = bad.intersection(batch.tolist())
        if wrong:
            raise ZeroDivisionError(str(sorted(wrong)))
        return {"twice": batch * 2, "name": [f"r{i}" for i in batch]}

    async def main():
        sizes = [largest, 20] if buckets else None
        async with Batcher(model, max_batch_size=largest, buckets=sizes) as batcher:
            calls = [batcher.submit(i) for i in range(n)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            return results, batcher.stats()

    results, stats = asyncio.run(main())
    for i, result in enumerate(results):
        if i in bad:
            assert isinstance(result, ZeroDivisionError)
            assert str(result) == f"[{i}]"  # the error of its own run, not of a larger batch
        else:
            assert result == {"twice": 2 * i, "name": f"r{i}"}
    failed = len([i for i in bad if i < n])
    assert (stats.n_done, stats.n_failed, stats.n_accepted) == (n - failed, failed, n)
    assert max(stats.batch_sizes) <= largest
    assert consistent(stats)


def test_concurrent_callers_share_batches_and_full_ones_go_at_once():
    async def main():
        async with Batcher(upper, max_batch_size=8, max_wait=PATIENT) as batcher:
            results = await asyncio.gather(*[batcher.submit("a") for _ in range(24)])
            return results, batcher.stats()

    results, stats = asyncio.run(main())
    assert results == ["A"] * 24
    assert stats.batch_sizes == {8: 3}
    assert stats.mean_batch_size == 8.0


def test_callers_in_a_closed_loop_stay_together():
    async def main():
        async with Batcher(upper, max_batch_size=64, max_wait=PATIENT) as batcher:

            async def caller():
                for _ in range(10):
                    await batcher.submit("a")

            await asyncio.gather(*[caller() for _ in range(8)])
            return batcher.stats()

    # With a max_wait of ten minutes this ends only if nobody waits for company that is not coming.
    assert asyncio.run(main()).batch_sizes == {8: 10}


def test_a_batch_is_sealed_when_the_device_is_free():
    gate = Gate()

    async def main():
        async with Batcher(gate, max_batch_size=64) as batcher:
            first = asyncio.create_task(batcher.submit("a"))
            await asyncio.to_thread(gate.entered.acquire)
            late = []
            for name in "bcdef":
                late.append(asyncio.create_task(batcher.submit(name)))
                await asyncio.sleep(0.001)
            gate.open.release(2)
            return await first, await asyncio.gather(*late)

    assert asyncio.run(main()) == ("A", list("BCDEF"))
    assert gate.batches == [["a"], list("bcdef")]


def test_company_that_was_missed_is_waited_for_next_time():
    """Blocking callers cannot be seen coming; that they came just too late can."""
    sizes = []

    def model(batch):
        sizes.append(len(batch))
        return batch

    gate = threading.Barrier(4)
    with virtual_time(autojump=False) as clock, Batcher(model, max_wait=1.0) as batcher:

        def caller():
            gate.wait()
            for _ in range(20):
                batcher.call("a")

        threads = [clock.thread(caller) for _ in range(4)]
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
            clock.advance(1.0)  # releases those who wait for a caller that has finished
        stats = batcher.stats()
    assert stats.n_done == 80
    assert stats.n_batches < 80


def test_max_wait_bounds_the_wait_for_company():
    with virtual_time(autojump=False) as clock, Batcher(upper, max_wait=5.0) as batcher:
        first = [clock.thread(batcher.call, "a") for _ in range(3)]
        while any(thread.is_alive() for thread in first):
            time.sleep(0.001)
            clock.advance(5.0)
        alone = clock.thread(batcher.call, "a")
        wait_until(lambda: batcher.stats().n_waiting == 1 or not alone.is_alive())
        clock.advance(7.0)
        alone.join(60)
        assert not alone.is_alive()
        assert batcher.call("b") == "B"  # and now nobody else is expected: no wait at all


def test_no_wait_when_max_wait_is_zero():
    with virtual_time(autojump=False), Batcher(upper, max_wait=0) as batcher:
        assert [batcher.call(name) for name in "abc"] == list("ABC")


def test_priority_first_then_first_come_first_served():
    gate = Gate()

    async def main():
        async with Batcher(gate, max_batch_size=3) as batcher:
            tasks = [asyncio.create_task(batcher.submit("plug"))]
            await asyncio.to_thread(gate.entered.acquire)
            for name, priority in [("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5), ("f", 0)]:
                tasks.append(asyncio.create_task(batcher.submit(name, priority=priority)))
                await asyncio.sleep(0)
            gate.open.release(9)
            await asyncio.gather(*tasks)

    asyncio.run(main())
    assert gate.batches == [["plug"], ["c", "e", "a"], ["d", "f", "b"]]


def test_threads_and_several_loops_at_once():
    def model(batch):
        return batch * 2

    start = threading.Barrier(6)
    failures = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with Batcher(model, max_batch_size=16) as batcher:

            def blocking(offset):
                start.wait()
                for i in range(offset, offset + 60):
                    if batcher.call(i) != 2 * i:
                        failures.append(i)

            def looping(offset):
                async def main():
                    return await asyncio.gather(
                        *[batcher.submit(i) for i in range(offset, offset + 60)]
                    )

                start.wait()
                for _ in range(3):
                    if asyncio.run(main()) != [2 * i for i in range(offset, offset + 60)]:
                        failures.append(offset)

            threads = [
                threading.Thread(target=target, args=(1000 * k,))
                for k, target in enumerate([blocking, looping] * 3)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            stats = batcher.stats()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []
    assert stats.n_done == 3 * 60 + 3 * 180
    assert consistent(stats)


def test_a_full_queue_rejects_at_once():
    gate = Gate()
    with Batcher(gate, max_queue=2) as batcher:
        threads = [threading.Thread(target=batcher.call, args=("a",))]
        threads[0].start()
        gate.entered.acquire()
        threads += [threading.Thread(target=batcher.call, args=("b",)) for _ in range(2)]
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: batcher.stats().n_waiting == 2)
        with pytest.raises(QueueFullError, match="maximum of 2") as caught:
            batcher.call("c")
        with pytest.raises(QueueFullError):
            asyncio.run(batcher.submit("d"))
        assert pickle.loads(pickle.dumps(caught.value)).max_queue == 2
        assert batcher.stats().n_rejected == 2
        gate.open.release(9)
        for thread in threads:
            thread.join()
        assert consistent(batcher.stats())


def test_a_deadline_is_answered_in_time_and_the_row_never_runs():
    gate = Gate()

    async def main():
        async with Batcher(gate, max_wait=0) as batcher:
            running = asyncio.create_task(batcher.submit("a", deadline=20))
            await asyncio.to_thread(gate.entered.acquire)
            waiting = asyncio.create_task(batcher.submit("b", deadline=10))
            patient = asyncio.create_task(batcher.submit("c", deadline=60))
            await asyncio.sleep(0)
            clock.advance(30)
            # Both are answered while the device still runs the first one.
            with pytest.raises(DeadlineExceededError, match="within 10 s"):
                await waiting
            with pytest.raises(TimeoutError):
                await running
            stats = batcher.stats()
            assert (stats.n_expired, stats.n_waiting, stats.n_running) == (1, 1, 1)
            gate.open.release(9)
            assert await patient == "C"
            return batcher.stats()

    with virtual_time(autojump=False) as clock:
        stats = clock.run(main())
    assert gate.batches == [["a"], ["c"]]
    assert consistent(stats)


def test_a_blocking_caller_gives_up_at_its_timeout_in_virtual_time():
    gate = Gate()
    with virtual_time(autojump=False) as clock, Batcher(gate, max_wait=0) as batcher:
        first = clock.thread(batcher.call, "a")
        gate.entered.acquire()
        caught = []

        def impatient():
            try:
                batcher.call("b", timeout=30.0)
            except DeadlineExceededError as error:
                caught.append(error)

        second = clock.thread(impatient)
        wait_until(lambda: batcher.stats().n_waiting == 1)
        clock.advance(29.0)
        second.join(0.02)
        assert second.is_alive()
        clock.advance(2.0)
        second.join(60)
        assert caught[0].seconds == 30.0
        assert batcher.stats().n_expired == 1
        gate.open.release(9)
        first.join()
    assert gate.batches == [["a"]]


def test_an_expired_row_is_left_out_by_the_device_itself():
    gate = Gate()

    async def main(clock):
        async with Batcher(gate, max_wait=0, clock=clock) as batcher:
            first = asyncio.create_task(batcher.submit("a"))
            await asyncio.to_thread(gate.entered.acquire)
            # Its timer is the loop's, in real time; the batcher's own clock is what decides whether it runs.
            late = asyncio.create_task(batcher.submit("b", deadline=50))
            await asyncio.sleep(0)
            clock.advance(51)
            gate.open.release(9)
            with pytest.raises(DeadlineExceededError):
                await late
            await first

    with virtual_time(autojump=False) as clock:
        asyncio.run(main(clock))
    assert gate.batches == [["a"]]


def test_a_deadline_of_zero_never_runs():
    async def main():
        async with Batcher(upper) as batcher:
            with pytest.raises(DeadlineExceededError):
                await batcher.submit("a", deadline=0)
            return batcher.stats()

    assert asyncio.run(main()).n_done == 0


def test_a_cancelled_caller_is_dropped_and_nobody_else_notices():
    gate = Gate()

    async def main():
        async with Batcher(gate, max_batch_size=4, max_wait=0) as batcher:
            running = [asyncio.create_task(batcher.submit("plug"))]
            await asyncio.to_thread(gate.entered.acquire)
            running += [asyncio.create_task(batcher.submit(name)) for name in "ab"]
            await asyncio.sleep(0)
            gate.open.release()
            await asyncio.to_thread(gate.entered.acquire)
            waiting = [asyncio.create_task(batcher.submit(name)) for name in "cde"]
            await asyncio.sleep(0)
            running[1].cancel()
            waiting[1].cancel()
            await asyncio.sleep(0)
            assert batcher.stats().n_waiting == 2
            gate.open.release(9)
            results = await asyncio.gather(*running, *waiting, return_exceptions=True)
            return [
                type(r) if isinstance(r, BaseException) else r for r in results
            ], batcher.stats()

    results, stats = asyncio.run(main())
    assert results == ["PLUG", asyncio.CancelledError, "B", "C", asyncio.CancelledError, "E"]
    assert gate.batches == [["plug"], ["a", "b"], ["c", "e"]]
    assert (stats.n_done, stats.n_cancelled) == (5, 1)
    assert consistent(stats)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        asyncio.CancelledError(),
        GeneratorExit(),
        BaseException("x"),
    ],
)
def test_what_is_no_exception_reaches_the_callers_and_the_batcher_goes_on(error):
    def model(batch):
        if "bad" in batch:
            raise error
        return upper(batch)

    gate = Gate(model)

    async def main():
        async with Batcher(gate, max_wait=0) as batcher:
            plug = asyncio.create_task(batcher.submit("plug"))
            await asyncio.to_thread(gate.entered.acquire)
            calls = [asyncio.create_task(batcher.submit(row)) for row in ["bad", "a"]]
            await asyncio.sleep(0)
            gate.open.release(9)
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
            assert await plug == "PLUG"
            assert await batcher.submit("b") == "B"
            with pytest.raises(InferenceError) as caught:
                await asyncio.to_thread(batcher.call, "bad")
            assert caught.value.__cause__ is error
            return results

    results = asyncio.run(main())
    assert len({id(result) for result in results}) == 2
    for result in results:
        assert isinstance(result, InferenceError)
        assert result.__cause__ is error
        assert f"batch of 2 rows: {type(error).__name__}" in str(result)


def test_stop_iteration_is_wrapped():
    def model(batch):
        raise StopIteration

    with Batcher(model) as batcher:
        with pytest.raises(InferenceError, match="StopIteration"):
            batcher.call("a")
        with pytest.raises(InferenceError, match="StopIteration"):
            asyncio.run(batcher.submit("a"))


def test_no_two_callers_get_the_same_error_object():
    one = ValueError("the same")

    def model(batch):
        raise one

    async def main(**options):
        async with Batcher(model, **options) as batcher:
            return await asyncio.gather(
                *[batcher.submit("a") for _ in range(4)], return_exceptions=True
            )

    for options in ({}, {"isolate": False}):
        results = asyncio.run(main(**options))
        assert len({id(result) for result in results}) == 4
        for result in results:
            assert result is one or result.__cause__ is one


class Unshowable(RuntimeError):
    def __str__(self):
        raise LookupError("no words")


class Uncopyable(ConfigurationError):
    def __init__(self):
        super().__init__("a", 1, "b")

    def __reduce__(self):
        raise TypeError("no copies")


@pytest.mark.parametrize("error", [Unshowable, Uncopyable])
def test_an_error_that_cannot_be_shown_or_copied_still_reaches_every_caller(error):
    def model(batch):
        raise error

    async def main():
        async with Batcher(model, isolate=False, max_wait=0.05) as batcher:
            calls = [batcher.submit("a") for _ in range(3)]
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
            # The batcher goes on.
            with pytest.raises((error, InferenceError)):
                await asyncio.wait_for(batcher.submit("b"), 60)
            return results

    results = asyncio.run(main())
    assert len({id(result) for result in results}) == 3
    for result in results:
        assert type(result) is error or type(result.__cause__) is error


def test_max_wait_ends_while_the_loop_is_busy_with_other_things():
    async def main():
        async with Batcher(upper, max_wait=0.01) as batcher:
            await batcher.submit("a")
            await asyncio.sleep(0.05)  # the device is idle by now
            task = asyncio.create_task(batcher.submit("b"))
            await asyncio.sleep(0)
            wait_until(lambda: batcher.stats().n_done == 2)  # and the loop does not turn meanwhile
            return await task

    assert asyncio.run(main()) == "B"


def test_a_start_that_failed_may_be_repeated(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    batcher = Batcher(upper)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            batcher.start()
    with pytest.raises(BatcherClosedError, match="not started"):
        batcher.call("a")
    with batcher:
        assert batcher.call("a") == "A"


def test_without_isolation_the_model_is_called_once():
    calls = []

    def model(batch):
        calls.append(len(batch))
        raise LookupError("down")

    async def main():
        async with Batcher(model, isolate=False, max_wait=PATIENT) as batcher:
            return await asyncio.gather(
                *[batcher.submit("a") for _ in range(4)], return_exceptions=True
            )

    results = asyncio.run(main())
    assert calls == [4]
    assert all(isinstance(result, InferenceError) for result in results)


@pytest.mark.parametrize(
    "output",
    [lambda b: b[1:], lambda b: b + b[:1], lambda b: None, lambda b: 3, lambda b: iter(b)],
    ids=["short", "long", "none", "number", "iterator"],
)
def test_a_wrong_number_of_results_is_an_error_for_all(output):
    calls = []

    def model(batch):
        calls.append(len(batch))
        return output(batch)

    async def main():
        async with Batcher(model, max_wait=PATIENT) as batcher:
            return await asyncio.gather(
                *[batcher.submit("a") for _ in range(4)], return_exceptions=True
            )

    results = asyncio.run(main())
    assert calls == [4]
    assert all(isinstance(result, OutputShapeError) for result in results)
    assert len({id(result) for result in results}) == 4
    assert "model was given a batch of 4 rows" in str(results[0])


def test_rows_that_do_not_fit_together_run_apart():
    shapes = []

    def model(batch):
        shapes.append(batch.shape)
        return batch.sum(axis=1)

    async def main():
        rows = [np.ones(2), np.ones(3), np.ones(2), np.ones(3, "f4"), np.ones(3)]
        async with Batcher(model, max_wait=PATIENT) as batcher:
            results = await asyncio.gather(*[batcher.submit(row) for row in rows])
            assert batcher.stats().n_batches == 1
            return results

    assert asyncio.run(main()) == [2, 3, 2, 3, 3]
    assert sorted(shapes) == [(1, 3), (2, 2), (2, 3)]


def test_a_row_that_cannot_be_collated_at_all_fails_alone():
    async def main():
        async with Batcher(lambda b: b.lengths, pad=0) as batcher:
            return await asyncio.gather(
                *[batcher.submit(row) for row in ([1, 2], [1, 2.5], [3])], return_exceptions=True
            )

    first, second, third = asyncio.run(main())
    assert (first, third) == (2, 1)
    assert isinstance(second, CollateError)


def test_out_of_memory_is_survived_and_remembered():
    def model(batch):
        if len(batch) > 3:
            raise MemoryError
        return upper(batch)

    async def main():
        async with Batcher(model, name="small", max_batch_size=8, max_wait=PATIENT) as batcher:
            for _ in range(2):
                results = await asyncio.gather(*[batcher.submit("a") for _ in range(8)])
                assert results == ["A"] * 8
            return batcher.stats()

    with record_events("inference.") as events:
        stats = asyncio.run(main())
    assert [(event.name, event.fields["limit"]) for event in events] == [("small", 4), ("small", 2)]
    assert stats.n_batches == 2
    assert stats.n_calls == 2 + 4 + 4


def test_buckets_fix_the_shape_and_the_bits():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 10))
    model.eval()
    rows = [row.numpy() for row in torch.randn(50, 64)]
    shapes = set()

    def watched(batch):
        shapes.add(batch.shape)
        with torch.inference_mode():
            return model(torch.from_numpy(batch)).numpy()

    async def main(size):
        async with Batcher(watched, max_batch_size=16, buckets=[16]) as batcher:
            results = []
            for start in range(0, 50, size):
                wave = [batcher.submit(row) for row in rows[start : start + size]]
                results += await asyncio.gather(*wave)
            return np.stack(results)

    first = asyncio.run(main(1))
    for size in (3, 16, 50):
        assert np.array_equal(asyncio.run(main(size)), first)
    assert shapes == {(16, 64)}
    offline = np.stack(list(map_batches(watched, rows, batch_size=16, buckets=[16])))
    assert np.array_equal(offline, first)


def test_a_module_runs_on_one_thread_with_the_settings_of_its_starter():
    seen = []

    class Model(torch.nn.Module):
        def forward(self, batch):
            info = torch.__config__.parallel_info()
            seen.append(
                (
                    threading.get_ident(),
                    torch.is_inference_mode_enabled(),
                    "omp_get_max_threads() : 1\n" in info,
                )
            )
            return batch * 2

    async def main():
        async with Batcher(Model().eval()) as batcher:
            result = await batcher.submit(np.ones(2, "f4"))
            await asyncio.to_thread(batcher.call, np.ones(2, "f4"))
            return result

    result = asyncio.run(main())
    assert type(result) is np.ndarray
    assert result.tolist() == [2, 2]
    assert set(seen) == {(seen[0][0], True, True)}
    assert seen[0][0] != threading.get_ident()


def test_a_device_that_is_not_there_is_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    batcher = Batcher(upper, device="cuda")
    with pytest.raises(ConfigurationError, match=r"Batcher\(device=.*torch sees 0 cuda devices"):
        batcher.start()
    batcher.close()


@pytest.mark.parametrize("isolate", [True, False])
def test_rows_of_another_dtype_than_the_module_are_explained_to_callers(isolate):
    words = "rows are float64, the module's parameters float32: pass row.astype('float32')"

    async def main():
        async with Batcher(torch.nn.Linear(2, 1).eval(), max_wait=5.0, isolate=isolate) as batcher:
            return await asyncio.gather(
                *[batcher.submit(np.ones(2)) for _ in range(2)], return_exceptions=True
            )

    for error in asyncio.run(main()):
        if isolate:  # the model's own error keeps its own words
            assert error.__notes__ == [words]
        else:
            assert isinstance(error, InferenceError)
            assert str(error).endswith(words)


def test_close_drains():
    gate = Gate()
    batcher = Batcher(gate, max_batch_size=2).start()
    assert batcher.start() is batcher

    async def main():
        tasks = [asyncio.create_task(batcher.submit(name)) for name in "abcde"]
        await asyncio.to_thread(gate.entered.acquire)
        closing = asyncio.create_task(batcher.aclose())
        await asyncio.to_thread(wait_until, lambda: refuses(batcher))
        with pytest.raises(BatcherClosedError, match="closed"):
            await batcher.submit("late")
        gate.open.release(9)
        await closing
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == list("ABCDE")
    batcher.close()
    with pytest.raises(BatcherClosedError):
        batcher.call("x")
    with pytest.raises(BatcherClosedError):
        batcher.start()
    assert consistent(batcher.stats())
    assert repr(batcher) == f"<Batcher {batcher.name!r} closed, max_batch_size=2>"


def refuses(batcher):
    return "closed" in repr(batcher)


def test_close_without_drain_answers_those_who_wait():
    gate = Gate()

    async def main():
        async with Batcher(gate, max_batch_size=1) as batcher:
            tasks = [asyncio.create_task(batcher.submit(name)) for name in "abc"]
            thread_error = []

            def blocking():
                with pytest.raises(BatcherClosedError):
                    batcher.call("d")
                thread_error.append(True)

            thread = threading.Thread(target=blocking)
            await asyncio.to_thread(gate.entered.acquire)
            thread.start()
            await asyncio.to_thread(wait_until, lambda: batcher.stats().n_waiting == 3)
            closing = asyncio.create_task(batcher.aclose(drain=False))
            results = await asyncio.gather(*tasks[1:], return_exceptions=True)
            thread.join()
            gate.open.release(9)
            await closing
            assert thread_error == [True]
            return [await tasks[0], *results], batcher.stats()

    results, stats = asyncio.run(main())
    assert results[0] == "A"
    assert [type(result) for result in results[1:]] == [BatcherClosedError] * 2
    assert (stats.n_done, stats.n_cancelled) == (1, 3)
    assert gate.batches == [["a"]]


def test_a_batcher_that_was_not_started_says_so():
    batcher = Batcher(upper)
    with pytest.raises(BatcherClosedError, match="not started"):
        batcher.call("a")
    with pytest.raises(BatcherClosedError, match="not started"):
        asyncio.run(batcher.submit("a"))
    batcher.close()
    batcher.close()
    with pytest.raises(BatcherClosedError, match="closed"):
        batcher.call("a")


def test_a_call_that_races_the_start_is_told_that_there_was_none(monkeypatch):
    batcher = Batcher(upper)
    real = mlkit.inference._online.batcher.refusal

    def start_meanwhile(*args, **options):
        batcher.start()
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(mlkit.inference._online.batcher, "refusal", start_meanwhile)
        with pytest.raises(BatcherClosedError, match="not started"):
            batcher.call("a")
    with batcher:
        assert batcher.call("a") == "A"


def test_whoever_has_an_answer_finds_it_counted():
    class Restless:
        """A clock whose waits end early, as those of a condition may."""

        def __getattr__(self, name):
            return getattr(current(), name)

        def wait(self, condition, timeout):
            return condition.wait(0.001 if timeout is None else min(timeout, 0.001))

    answered = threading.Event()
    shown = []

    class SlowToShow(Exception):
        def __str__(self):
            shown.append(1)
            if len(shown) == 2:  # the outcome of the first row is known
                answered.wait(0.2)
            return "slow"

    def model(batch):
        raise SlowToShow

    counted = []

    def caller():
        with pytest.raises((InferenceError, SlowToShow)):
            batcher.call("a")
        counted.append(batcher.stats().n_failed)
        answered.set()

    gate = Gate(model)
    with Batcher(gate, isolate=False, max_wait=0, clock=Restless()) as batcher:
        threads = [threading.Thread(target=caller) for _ in range(3)]
        threads[0].start()
        assert gate.entered.acquire(timeout=60)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: batcher.stats().n_waiting == 2)
        gate.open.release()
        threads[0].join()
        answered.clear()
        gate.open.release()
        for thread in threads:
            thread.join()
    assert counted == [1, 3, 3]


def test_the_model_cannot_call_its_own_batcher():
    def model(batch):
        return [batcher.call(row) for row in batch]

    with Batcher(model) as batcher, pytest.raises(InferenceError, match="inside its own model"):
        batcher.call("a")


def test_an_abandoned_event_loop_harms_nobody():
    gate = Gate()
    with Batcher(gate, max_wait=0.001) as batcher:
        for _ in range(3):

            async def leave():
                task = asyncio.create_task(batcher.submit("gone"))
                await asyncio.to_thread(gate.entered.acquire)
                return task

            asyncio.run(leave())  # cancels the task and closes the loop while its row runs
            gate.open.release()
        gate.open.release(99)
        assert batcher.call("a") == "A"
        assert asyncio.run(batcher.submit("b")) == "B"
        wait_until(lambda: batcher.stats().n_running == 0)
        assert consistent(batcher.stats())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_a_clear_error_and_the_parent_goes_on():
    with Batcher(upper) as batcher:
        assert batcher.call("a") == "A"
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            code = 1
            with contextlib.suppress(BaseException):
                batcher.stats()
                telemetry.collect()
                batcher.close()
                for use in (batcher.start, lambda: batcher.call("b")):
                    try:
                        use()
                    except BatcherClosedError as error:
                        assert "forked process" in str(error)
                    else:
                        raise AssertionError(use)
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert batcher.call("b") == "B"


def test_it_cannot_be_pickled():
    with pytest.raises(TypeError, match="owns a thread"):
        pickle.dumps(Batcher(upper))


def test_nothing_of_a_finished_batch_stays():
    class Row:
        pass

    class Result:
        pass

    watched = []

    def model(batch):
        results = [Result() for _ in batch]
        watched.extend(map(weakref.ref, results))
        if any(hasattr(row, "bad") for row in batch):
            raise ValueError("bad")
        return results

    async def main():
        async with Batcher(model) as batcher:
            rows = [Row() for _ in range(6)]
            rows[2].bad = True
            watched.extend(map(weakref.ref, rows))
            tasks = [asyncio.create_task(batcher.submit(row)) for row in rows]
            bad = weakref.ref(rows[2])
            del rows
            results = await asyncio.gather(*tasks, return_exceptions=True)
            error = results[2]
            assert isinstance(error, ValueError)
            del results, tasks
            await asyncio.sleep(0)
            gc.collect()
            # The error's traceback shows the frame in which its own row was run, and nobody else's.
            alive = [thing() for thing in watched if thing() is not None]
            assert all(thing is bad() or isinstance(thing, Result) for thing in alive)
            del error, alive
            gc.collect()
            assert [thing for thing in watched if thing() is not None] == []

    asyncio.run(main())


def test_stats_and_samples():
    async def main():
        async with Batcher(upper, name="words", max_batch_size=4, max_wait=PATIENT) as batcher:
            await asyncio.gather(*[batcher.submit("a") for _ in range(9)])
            stats = batcher.stats()
            samples = {
                (sample.name, sample.labels): sample.value
                for sample in telemetry.collect()
                if ("batcher", "words") in sample.labels
            }
            return stats, samples

    stats, samples = asyncio.run(main())
    assert stats[:11] == (9, 9, 0, 0, 0, 0, 0, 0, 3, 3, {1: 1, 4: 2})
    assert (stats.n_joined, stats.rejects, stats.batch_limit) == (0, {}, 4)
    assert stats.mean_batch_size == 3.0
    name = ("batcher", "words")
    assert samples["inference_rows_total", (name, ("outcome", "done"))] == 9
    assert samples["inference_batches_total", (name, ("rows", "4"))] == 2
    assert samples["inference_calls_total", (name,)] == 3
    assert Batcher(upper).stats().mean_batch_size == 0.0
    assert pickle.loads(pickle.dumps(stats)) == stats


def test_it_is_forgotten_by_telemetry_when_it_is_gone():
    batcher = Batcher(upper, name="gone").start()
    batcher.close()
    del batcher
    gc.collect()
    assert not [s for s in telemetry.collect() if ("batcher", "gone") in s.labels]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"max_wait": -1}, "max_wait.*seconds >= 0"),
        ({"max_wait": float("nan")}, "max_wait"),
        ({"max_wait": "0.1"}, "max_wait"),
        ({"max_wait": True}, "max_wait"),
        ({"max_wait": 10**400}, "max_wait"),
        ({"max_wait": None}, "max_wait"),
        ({"max_queue": 0}, "max_queue"),
        ({"max_queue": 1.5}, "max_queue"),
        ({"buckets": [16]}, "max_batch_size=32"),
        ({"fn": torch.nn.Linear(1, 1)}, r"model\.eval"),
    ],
)
def test_wrong_arguments_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        Batcher(**{"fn": upper, **options})
    assert "Batcher(" in str(caught.value)


def test_wrong_arguments_of_a_call_are_refused():
    async def model(batch):
        yield batch

    with pytest.raises(ConfigurationError, match="not a coroutine function"):
        Batcher(model)
    with Batcher(upper) as batcher:
        for wrong in (-1, float("nan"), "1", True):
            with pytest.raises(ConfigurationError, match="timeout"):
                batcher.call("a", timeout=wrong)
            with pytest.raises(ConfigurationError, match="deadline"):
                asyncio.run(batcher.submit("a", deadline=wrong))
        for wrong in (1.0, "high", True, None, False, 0.0, 2**63, np.array([1, 2])):
            with pytest.raises(ConfigurationError, match="priority"):
                batcher.call("a", priority=wrong)
        assert batcher.stats().n_accepted == 0
        assert batcher.call("a", priority=np.int64(-1)) == "A"


def wait_until(condition):
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came")
