"""The batcher against a plain model: a list of rows that wait, and what became of each."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlkit.errors import (
    BatcherClosedError,
    DeadlineExceededError,
    InferenceError,
    OverloadedError,
    QueueFullError,
)
from mlkit.inference import Batcher
from mlkit.testing import virtual_time

LARGEST, QUEUE = 3, 6


class Device:
    """A model that stops at every new batch until it is let through."""

    def __init__(self):
        self.batches = []
        self.seen = set()
        self.go = threading.Semaphore(0)

    def __call__(self, rows):
        if not self.seen.issuperset(rows):  # else a part of a batch that failed, run again
            assert not self.seen.intersection(rows), "a row runs in two batches"
            self.seen.update(rows)
            self.batches.append(list(rows))
            self.go.acquire()
        for _, kind in rows:
            if kind == "bad":
                raise ValueError("bad")
            if kind == "fatal":
                raise KeyboardInterrupt
        return [number for number, _ in rows]


class Item:
    """A row that was accepted, and the callers who share its run."""

    def __init__(self, row, priority, key, expires):
        self.row, self.priority, self.key = row, priority, key
        self.callers = {row: expires}

    def expired(self, now):
        return all(expires is not None and now >= expires for expires in self.callers.values())


class Machine(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.time = virtual_time(autojump=False)
        self.clock = self.time.__enter__()
        self.loop = asyncio.new_event_loop()
        self.threads = ThreadPoolExecutor(64)
        self.device = Device()
        self.batcher = Batcher(
            self.device, max_batch_size=LARGEST, max_queue=QUEUE, max_wait=0, collate=list
        ).start()
        self.waiting = []  # items in the order of arrival
        self.running = []  # items
        self.tasks = {}  # row: task
        self.expected = {}  # row: value or kind of error
        self.closed = False
        self.rejected = self.joined = 0

    def turn(self):
        async def turns():
            for _ in range(4):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    def until(self, condition):
        for _ in range(100_000):
            self.turn()
            if condition():
                return
            time.sleep(0.0002)
        raise AssertionError(f"never came: {self.batcher.stats()}")

    def seal(self):
        """Move what the device must take next from the model's queue."""
        now = self.clock.monotonic()
        self.running = []
        for item in sorted(self.waiting, key=lambda item: -item.priority):
            if len(self.running) == LARGEST:
                break
            self.waiting.remove(item)
            if item.expired(now):
                self.settle(item, DeadlineExceededError)
            else:
                self.running.append(item)
        if self.running:
            batches = len(self.device.batches)
            rows = [item.row for item in self.running]
            self.until(lambda: self.device.batches[-1:] == [rows])
            assert len(self.device.batches) - batches in (0, 1)

    def settle(self, item, outcome):
        for caller in item.callers:
            self.expected.setdefault(caller, outcome)

    @rule(
        kind=st.sampled_from(["good", "good", "good", "bad", "fatal"]),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        deadline=st.sampled_from([None, None, 500.0, 100_000.0]),
        key=st.sampled_from([None, None, "k", "l"]),
        blocking=st.booleans(),
    )
    def submit(self, kind, priority, deadline, key, blocking):
        row = (len(self.tasks), kind)
        if blocking:
            deadline = None  # its thread would give up by itself, at any moment
            awaitable = self._call(row, priority, key)
        else:
            awaitable = self.batcher.submit(row, deadline=deadline, priority=priority, key=key)
        before = self.batcher.stats()
        self.tasks[row] = task = self.loop.create_task(awaitable)
        expires = None if deadline is None else self.clock.monotonic() + deadline
        flight = next(
            (
                item
                for item in [*self.running, *self.waiting]
                if key is not None and item.key == key
            ),
            None,
        )
        if self.closed:
            self.expected[row] = BatcherClosedError
        elif flight is not None:
            self.joined += 1
            self.until(lambda: self.batcher.stats().n_joined == self.joined)
            flight.callers[row] = expires
            if flight in self.waiting and priority > flight.priority:
                flight.priority = priority
                self.waiting.remove(flight)
                self.waiting.append(flight)
            return
        elif len(self.waiting) == QUEUE:
            self.expected[row] = QueueFullError
            self.rejected += 1
        else:
            self.until(
                lambda: (
                    self.batcher.stats().n_accepted == before.n_accepted + 1
                    or self.batcher.stats().n_rejected == before.n_rejected + 1
                )
            )
            if self.batcher.stats().n_rejected > before.n_rejected:
                assert deadline is not None
                assert self.running  # an idle device refuses nobody
                self.expected[row] = OverloadedError
                self.rejected += 1
            else:
                self.waiting.append(Item(row, priority, key, expires))
                if not self.running:
                    self.seal()
                return
        self.until(task.done)

    @precondition(lambda self: self.running and not self.closed)
    @rule(kinds=st.lists(st.sampled_from(["good", "good", "good", "bad"]), min_size=2, max_size=5))
    def submit_in_one_turn(self, kinds):
        rows = [(len(self.tasks) + place, kind) for place, kind in enumerate(kinds)]
        for row in rows:
            self.tasks[row] = self.loop.create_task(self.batcher.submit(row))
            if len(self.waiting) == QUEUE:
                self.expected[row] = QueueFullError
                self.rejected += 1
            else:
                self.waiting.append(Item(row, 0, None, None))
        self.turn()
        assert self.batcher.stats().n_waiting == len(self.waiting)

    async def _call(self, row, priority, key):
        def call():
            return self.batcher.call(row, priority=priority, key=key)

        return await self.loop.run_in_executor(self.threads, call)

    @precondition(lambda self: self.running)
    @rule()
    def finish(self):
        fatal = any(item.row[1] == "fatal" for item in self.running)
        for item in self.running:
            number, kind = item.row
            self.settle(item, InferenceError if fatal else ValueError if kind == "bad" else number)
        done, self.running = self.running, []
        self.device.go.release()
        self.seal()
        callers = [caller for item in done for caller in item.callers]
        self.until(lambda: all(self.tasks[caller].done() for caller in callers))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel_waiting(self, data):
        item = data.draw(st.sampled_from(self.waiting))
        caller = data.draw(st.sampled_from(sorted(item.callers)))
        cancelled = self.batcher.stats().n_cancelled
        blocking = "_call" in repr(self.tasks[caller])
        self.tasks[caller].cancel()
        self.turn()
        if not blocking:  # else its thread cannot be cancelled, and its row goes on
            del item.callers[caller]
        if not item.callers:
            self.waiting.remove(item)
        assert self.batcher.stats().n_cancelled == cancelled + (not item.callers)
        self.expected[caller] = asyncio.CancelledError

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def cancel_running(self, data):
        item = data.draw(st.sampled_from(self.running))
        caller = data.draw(st.sampled_from(sorted(item.callers)))
        self.tasks[caller].cancel()
        self.expected[caller] = asyncio.CancelledError
        self.until(self.tasks[caller].done)

    @rule(seconds=st.sampled_from([100.0, 400.0, 1000.0]))
    def advance(self, seconds):
        self.clock.advance(seconds)

    @precondition(lambda self: not self.closed)
    @rule(drain=st.booleans())
    def close(self, drain):
        self.closed = True
        closing = threading.Thread(target=self.batcher.close, kwargs={"drain": drain})
        closing.start()
        self.until(lambda: "closed" in repr(self.batcher))
        if not drain:
            for item in self.waiting:
                self.settle(item, BatcherClosedError)
            dropped = [caller for item in self.waiting for caller in item.callers]
            self.waiting = []
            self.until(lambda: all(self.tasks[caller].done() for caller in dropped))
        self.closing = closing

    @invariant()
    def every_row_is_counted_once(self):
        if not hasattr(self, "batcher"):
            return
        stats = self.batcher.stats()
        settled = stats.n_done + stats.n_failed + stats.n_expired + stats.n_cancelled
        assert stats.n_accepted == settled + stats.n_waiting + stats.n_running
        assert stats.n_rejected == self.rejected
        assert stats.n_joined == self.joined
        expected = (len(self.waiting), len(self.running))
        self.until(lambda: self.batcher.stats()[6:8] == expected)  # n_waiting, n_running
        assert stats.n_running <= LARGEST
        assert stats.n_waiting <= QUEUE

    def teardown(self):
        if not hasattr(self, "batcher"):
            return
        try:
            while self.running:
                self.finish()
            self.batcher.close()
            self.until(lambda: all(task.done() for task in self.tasks.values()))
            for row, task in self.tasks.items():
                expected = self.expected[row]
                if task.cancelled():
                    assert expected is asyncio.CancelledError
                elif isinstance(expected, type):
                    assert type(task.exception()) is expected, row
                else:
                    assert task.result() == expected, row
            consumed = [row for batch in self.device.batches for row in batch]
            assert len(consumed) == len(set(consumed))
        finally:
            self.device.go.release(1000)
            self.batcher.close(drain=False)
            self.threads.shutdown(cancel_futures=True)
            self.loop.close()
            self.time.__exit__(None, None, None)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
