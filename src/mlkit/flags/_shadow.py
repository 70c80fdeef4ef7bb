"""The candidate run beside the incumbent, after the answer is given: what it would have said, at nobody's cost."""

from __future__ import annotations

import threading
from collections import deque
from contextvars import copy_context
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, NamedTuple, final
from weakref import WeakKeyDictionary

from mlkit._clock import current
from mlkit.telemetry import Counter, Sample, emit

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Awaitable, Callable

__all__ = ["Shadow", "ShadowReport", "same"]

_WAITING = 16


class ShadowReport(NamedTuple):
    """What the shadow runs of a rollout showed.

    Attributes:
        n: How many ended, well or not.
        n_failed: In how many the candidate, or the comparison, raised.
        n_different: In how many it gave another result than the incumbent.
        n_dropped: How many were left out because others were still waiting.
        seconds: How long the candidate took, all together.
    """

    n: int
    n_failed: int
    n_different: int
    n_dropped: int
    seconds: float


@final
class Shadow:
    """A thread that runs the candidate on a share of the requests that the incumbent answered.

    It takes one request after the other, and at most 16 wait: a slow candidate leaves requests out and slows nobody down.

    Args:
        key: The flag.
        share: Of the requests, within [0, 1].
        same: Whether two results are equal enough.
    """

    share: float

    def __init__(self, key: str, share: float, same: Callable[[Any, Any], object]) -> None:
        self.share = share
        self._key, self._same = key, same
        self._lock = threading.Lock()
        self._credit = 0.0
        self._reported: set[str] = set()
        self._seconds = 0.0
        names = ("runs", "failures", "differences", "dropped")
        self._n, self._failed, self._different, self._dropped = self._counters = [
            Counter(f"flags_shadow_{name}_total", flag=key) for name in names
        ]
        self._waiting: Queue[tuple[Any, Callable[[], Any], Any]] = Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._loops: WeakKeyDictionary[Any, deque[Any]] = WeakKeyDictionary()
        self._tasks: set[Task[None]] = set()  # a loop holds its tasks weakly

    def due(self) -> bool:
        """Return whether this request is to be run, which spends from the budget."""
        if not self.share:
            return False
        with self._lock:
            self._credit += self.share
            if self._credit < 1.0 - 1e-9:  # ten times 0.1 is a little less than 1
                return False
            self._credit -= 1.0
            return True

    def put(self, run: Callable[[], Any], answer: Any) -> None:
        """Have *run* called later, and its result compared with *answer*."""
        context = copy_context()
        try:
            self._waiting.put_nowait((context.run, run, answer))
        except Full:
            self._dropped.add()
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"mlkit-shadow-{self._key}", daemon=True
                )
                self._thread.start()

    def put_async(self, run: Callable[[], Awaitable[Any]], answer: Any) -> None:
        """Have a coroutine function run later by this event loop, one after the other as well."""
        import asyncio

        loop = asyncio.get_running_loop()
        with self._lock:
            waiting = self._loops.get(loop)
            begun = waiting is not None
            if waiting is None:
                waiting = self._loops[loop] = deque()
        if len(waiting) >= _WAITING:
            self._dropped.add()
            return
        waiting.append((copy_context(), run, answer))
        if not begun:
            task = loop.create_task(self._work_async(loop, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def await_tasks(self) -> None:
        """Wait until this event loop has run all that is waiting now."""
        import asyncio

        loop = asyncio.get_running_loop()
        mine = [task for task in self._tasks if task.get_loop() is loop]
        if mine:
            await asyncio.wait(mine)

    def report(self) -> ShadowReport:
        """Return what there was so far."""
        n, failed, different, dropped = (counter.value for counter in self._counters)
        return ShadowReport(n, failed, different, dropped, self._seconds)

    def samples(self) -> list[Sample]:
        """Return the counters, for `mlkit.telemetry`."""
        return [sample for counter in self._counters for sample in counter.samples()]

    def wait(self) -> None:
        """Wait until all that is waiting now has been run."""
        if self._thread is not None:
            self._waiting.join()

    def after_fork(self) -> None:
        """Begin anew in a child, which has no thread."""
        self._lock = threading.Lock()
        self._waiting = Queue(_WAITING)
        self._thread = None
        self._loops, self._tasks = WeakKeyDictionary(), set()

    def _work(self) -> None:
        while True:
            try:
                inside, run, answer = self._waiting.get(timeout=5.0)
            except Empty:
                with self._lock:  # who puts something in afterwards starts another thread
                    if self._waiting.empty():
                        self._thread = None
                        return
                continue
            try:
                inside(self._run, run, answer)
            finally:
                self._waiting.task_done()

    def _run(self, run: Callable[[], Any], answer: Any) -> None:
        begin = current().monotonic()
        try:
            self._compare(run(), answer, begin)
        except BaseException as error:  # noqa: BLE001 - whatever the candidate does, as to exit, it ends no thread of ours
            self._fail(error)
        finally:
            self._n.add()

    async def _work_async(self, loop: Any, waiting: deque[Any]) -> None:
        try:
            while waiting:
                context, run, answer = waiting.popleft()
                await loop.create_task(self._run_async(run, answer), context=context)
        finally:  # without a wait since the last look: who puts something in afterwards begins anew
            self._loops.pop(loop, None)

    async def _run_async(self, run: Callable[[], Awaitable[Any]], answer: Any) -> None:
        begin = current().monotonic()
        try:
            self._compare(await run(), answer, begin)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
        finally:
            self._n.add()

    def _compare(self, result: Any, answer: Any, begin: float) -> None:
        self._seconds += current().monotonic() - begin
        if not self._same(answer, result):
            self._different.add()

    def _fail(self, error: BaseException) -> None:
        self._failed.add()
        kind = type(error).__name__
        if kind not in self._reported and len(self._reported) < 64:
            self._reported.add(kind)
            emit("flags.shadow.failed", self._key, error=kind)


def same(one: Any, other: Any) -> bool:
    """Return whether two results are equal, arrays and tensors in every element."""
    equal = one == other
    if hasattr(equal, "all"):
        return getattr(one, "shape", None) == getattr(other, "shape", None) and bool(equal.all())
    return bool(equal)
