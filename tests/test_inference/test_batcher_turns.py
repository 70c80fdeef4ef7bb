"""A Batcher and the rows that its callers submit in one turn of their event loop: they wait together, and leave one by one."""

import asyncio
import random
import threading
import time
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlkit.errors import (
    BatcherClosedError,
    DeadlineExceededError,
    OverloadedError,
    QueueFullError,
)
from mlkit.inference import Batcher
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
        return [-row for row in batch]


async def behind_a_plug(batcher, gate):
    """Keep the device busy with a row of its own."""
    plug = asyncio.create_task(batcher.submit(1000))
    await asyncio.to_thread(gate.entered.acquire)
    return plug


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stay", "stay", "leave now", "leave later"]),
            st.sampled_from([0, 0, 1]),
        ),
        min_size=1,
        max_size=24,
    ),
    st.integers(1, 9),
    st.booleans(),
)
def test_rows_of_one_turn_leave_alone_and_keep_their_order(rows, largest, drain):
    gate = Gate()

    async def main():
        async with Batcher(gate, collate=list, max_batch_size=largest) as batcher:
            plug = await behind_a_plug(batcher, gate)
            tasks = [
                asyncio.create_task(batcher.submit(number, priority=priority))
                for number, (_, priority) in enumerate(rows)
            ]
            await asyncio.sleep(0)
            for task, (what, _) in zip(tasks, rows, strict=True):
                if what == "leave now":
                    task.cancel()
            await asyncio.sleep(0)
            n_left = sum(what == "leave now" for what, _ in rows)
            stats = batcher.stats()
            assert (stats.n_waiting, stats.n_cancelled) == (len(rows) - n_left, n_left)
            gate.open.release()
            assert await plug == -1000
            if n_left < len(rows):
                await asyncio.to_thread(gate.entered.acquire)  # the first batch of them runs
            for task, (what, _) in zip(tasks, rows, strict=True):
                if what == "leave later":
                    task.cancel()
            await asyncio.sleep(0)
            gate.open.release(100)
            await batcher.aclose(drain=drain)
            return await asyncio.gather(*tasks, return_exceptions=True), batcher.stats()

    results, stats = asyncio.run(main())
    asked = [number for number, (what, _) in enumerate(rows) if what != "leave now"]
    asked.sort(key=lambda number: -rows[number][1])
    first, rest = asked[:largest], asked[largest:]
    staying = [number for number in rest if rows[number][0] == "stay"]
    ran = [row for batch in gate.batches[1:] for row in batch]
    assert ran == (first + staying if drain else (first + staying)[: len(ran)])
    assert max(map(len, gate.batches)) <= largest
    for number, (what, _) in enumerate(rows):
        result = results[number]
        if what != "stay":
            assert isinstance(result, asyncio.CancelledError)
        elif number in ran:
            assert result == -number
        else:
            assert isinstance(result, BatcherClosedError)
    assert stats.n_waiting == stats.n_running == 0
    assert stats.n_done == 1 + len(ran)
    assert stats.n_cancelled == len(rows) - len(ran)


def test_a_row_that_comes_in_between_keeps_its_place():
    gate = Gate()

    async def main():
        async with Batcher(gate, collate=list, max_batch_size=3) as batcher:
            plug = await behind_a_plug(batcher, gate)
            tasks = [asyncio.create_task(batcher.submit(number)) for number in range(4)]
            tasks.append(asyncio.create_task(batcher.submit(4, deadline=60)))
            tasks += [asyncio.create_task(batcher.submit(number)) for number in (5, 6)]
            await asyncio.sleep(0)
            blocking = asyncio.create_task(asyncio.to_thread(batcher.call, 7))
            for _ in range(60_000):
                if batcher.stats().n_waiting == 8:
                    break
                await asyncio.sleep(0.001)
            tasks += [blocking, *[asyncio.create_task(batcher.submit(number)) for number in (8, 9)]]
            await asyncio.sleep(0)
            gate.open.release(100)
            return await asyncio.gather(plug, *tasks)

    assert asyncio.run(main()) == [-1000, *[-number for number in range(10)]]
    assert gate.batches[1:] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_the_bound_holds_within_a_turn_and_room_is_free_again_at_once():
    gate = Gate()

    async def main():
        async with Batcher(gate, collate=list, max_batch_size=2, max_queue=5) as batcher:
            plug = await behind_a_plug(batcher, gate)
            tasks = [asyncio.create_task(batcher.submit(number)) for number in range(7)]
            await asyncio.sleep(0)
            assert batcher.stats().n_waiting == 5
            tasks[2].cancel()
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(batcher.submit(number)) for number in (7, 8)]
            await asyncio.sleep(0)
            gate.open.release(100)
            await plug
            return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())
    kinds = [result if isinstance(result, int) else type(result) for result in results]
    full = QueueFullError
    assert kinds == [0, -1, asyncio.CancelledError, -3, -4, full, full, -7, full]
    assert gate.batches[1:] == [[0, 1], [3, 4], [7]]


def test_latency_counts_from_the_turn_in_which_a_row_came():
    with virtual_time(autojump=False) as clock:
        gate = Gate()

        async def main():
            async with Batcher(gate, collate=list, max_batch_size=4) as batcher:
                plug = await behind_a_plug(batcher, gate)
                tasks = []
                for number in range(8):  # also when there are more than a batch takes
                    tasks.append(asyncio.create_task(batcher.submit(number)))
                    for _ in range(3):
                        await asyncio.sleep(0)
                    clock.advance(10.0)
                gate.open.release(100)
                await asyncio.gather(plug, *tasks)
                return batcher.stats()

        stats = asyncio.run(main())
    assert (stats.latency.n, stats.latency.longest, stats.latency.p50) == (9, 80.0, 50.0)


def test_a_storm_of_callers_who_come_and_go_leaves_nobody_without_an_outcome():
    def model(batch):
        if any(row % 97 == 13 for row in batch):
            raise ValueError("bad")
        return [2 * row for row in batch]

    refused = (QueueFullError, OverloadedError, BatcherClosedError, DeadlineExceededError)
    outcomes = []

    async def caller(batcher, row, choose):
        wishes = {}
        if choose.random() < 0.1:
            wishes["key"] = row // 2
            row -= row % 2
        if choose.random() < 0.1:
            wishes["priority"] = choose.choice([-1, 1])
        if choose.random() < 0.1:
            wishes["deadline"] = choose.choice([0.0001, 0.01, 5.0])
        try:
            async with asyncio.timeout(choose.choice([0, 0.0005, 0.003, 60, 60, 60])):
                assert await batcher.submit(row, **wishes) == 2 * row
        except ValueError:
            assert row % 97 == 13
        except (TimeoutError, *refused):
            pass
        outcomes.append(row)

    async def many(batcher, choose, first):
        tasks = []
        for row in range(first, first + 200):
            tasks.append(asyncio.create_task(caller(batcher, row, choose)))
            if choose.random() < 0.1:
                await asyncio.sleep(0)
            if choose.random() < 0.05:
                choose.choice(tasks).cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result

    def blocking(batcher, first):
        for row in range(first, first + 50):
            with suppress(ValueError, *refused):
                assert batcher.call(row, timeout=5.0) == 2 * row

    failures = []

    def guarded(run, *arguments):
        try:
            run(*arguments)
        except BaseException as error:
            failures.append(error)

    for seed in range(6):
        choose = random.Random(seed)
        batcher = Batcher(
            model,
            collate=list,
            max_batch_size=choose.choice([1, 3, 64]),
            max_wait=choose.choice([0, 0.001]),
            max_queue=choose.choice([20, 10_000]),
        ).start()
        loops = [(many, batcher, random.Random(seed + n), 1000 * n) for n in range(3)]
        threads = [
            threading.Thread(target=guarded, args=(lambda *a: asyncio.run(a[0](*a[1:])), *each))
            for each in loops
        ]
        threads += [
            threading.Thread(target=guarded, args=(blocking, batcher, 1000 * n + 500))
            for n in range(2)
        ]
        for thread in threads:
            thread.start()
        if seed % 3 == 0:
            time.sleep(0.02)
            batcher.close(drain=seed % 2 == 0)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        stats = batcher.close()
        settled = stats.n_done + stats.n_failed + stats.n_expired + stats.n_cancelled
        assert stats.n_accepted == settled
        assert stats.n_waiting == stats.n_running == 0
    assert failures == []
    assert outcomes


@pytest.mark.parametrize("kind", ["debug", "uvloop"])
def test_another_loop_and_task_groups_are_served_alike(kind):
    factory = asyncio.new_event_loop
    if kind == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    async def main(batcher):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(batcher.submit(number)) for number in range(150)]
        return [task.result() for task in tasks]

    with Batcher(lambda batch: [-row for row in batch], collate=list, max_batch_size=8) as batcher:
        for _ in range(2):
            with asyncio.Runner(loop_factory=factory, debug=kind == "debug") as runner:
                assert runner.run(main(batcher)) == [-number for number in range(150)]


def test_a_thread_that_cannot_be_prepared_answers_its_callers_and_tries_again(monkeypatch):
    def fail(_):
        raise RuntimeError("no threads for torch")

    with Batcher(lambda batch: batch) as batcher:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "set_num_threads", fail)
            with pytest.raises(RuntimeError, match="no threads for torch"):
                batcher.call(1.0, timeout=30.0)
            with pytest.raises(RuntimeError, match="no threads for torch"):
                batcher.warm_up(1.0)
        assert batcher.call(2.0) == 2.0
