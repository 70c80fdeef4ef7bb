"""Batches online: callers hand in one row each, one thread runs the model on as many as there are."""

from __future__ import annotations

import os
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final, overload

from mlkit._arguments import seconds, whole
from mlkit._clock import current
from mlkit.inference._queue import LONGEST_WAIT, Queue
from mlkit.inference._reasons import error_for, refusal, too_late
from mlkit.inference._requests import Request
from mlkit.inference._runner import Failure, Runner
from mlkit.inference._stats import as_samples
from mlkit.telemetry import register

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import NoReturn, Self

    from mlkit._clock import Clock
    from mlkit.inference._collate import Pad
    from mlkit.inference._stats import BatcherStats
    from mlkit.telemetry import Sample

__all__ = ["Batcher"]

_Row = TypeVar("_Row")
_Result = TypeVar("_Result")


@final
class Batcher(Generic[_Row, _Result]):
    """Answer many callers, each with one row, by few calls of a model on batches of rows.

    Callers `await submit(row)` in any number of event loops, or block on `call(row)` in any number of threads, all at
    once. One thread of its own runs the model. A batch is put together when that thread is free, not before: it takes
    what waits, first come, first served, and it waits for more only while more is to be expected, at most *max_wait*
    seconds. Every accepted row gets exactly one outcome: the result for that row, or an error.

    - The model raises: the batch is run again in halves until the rows that break it stand alone. Each of their callers
      gets the error that the model raised for its row; all others get their results.
    - Rows that do not fit together (another shape, dtype or keys) run in separate batches, so that a row's outcome does
      not depend on its company.
    - The model raises something that is no `Exception` (`KeyboardInterrupt`, `SystemExit`, `CancelledError`): every
      caller of the batch gets an `InferenceError` from it, and the batcher goes on.
    - Memory runs out: the batch is halved (or lowered to the next bucket), the smaller size kept, and a larger one tried
      again later. This runs rows again also without *isolate*.
    - A caller is cancelled, or its deadline passes: its row is dropped if it does not run yet, and nobody else notices.

    Thread-safe. Not usable in a forked child, where its thread does not exist: calls there raise `BatcherClosedError`.
    Cannot be pickled. Use it with `with` or `async with`, or call `start` and `close`.

    Args:
        fn: Takes a batch of rows collated as by `mlkit.inference.collate` and returns one output per row, in order, cut
            as by `mlkit.inference.split`. A plain function, a callable object, or a torch module in evaluation mode,
            which runs in `torch.inference_mode` on the device of its parameters, with arrays for numpy rows. It may
            see a row more than once.
        max_batch_size: The most rows per call, at least 1.
        max_wait: The longest that a free device holds back a waiting row for company, in seconds. 0 never waits.
        max_queue: The most rows that may wait; more are rejected with `QueueFullError`.
        buckets: Batch sizes to keep to, e.g. `[1, 8, 32]`: a smaller batch is filled up to the next one by repeating
            its last row, and the surplus is cut off. With a single bucket, rows of one shape always make batches of
            one shape, so that for a model that treats rows alike a row's bits do not depend on its company. The largest must reach
            *max_batch_size*.
        pad: Fills up sequences of different lengths, see `mlkit.inference.collate`. They reach *fn* as `Padded`.
        collate: Your own function from a list of rows to a batch.
        device: Run on this torch device: tensors and arrays are moved there, through pinned memory on CUDA, and outputs
            back to where the rows were.
        isolate: Whether *fn* may be run again to find the bad rows of a failed batch. If not, all its callers get an
            `InferenceError` from the model's error.
        name: What metrics and events call it; by default the name of *fn*.
        clock: The clock for `max_wait` and deadlines; by default the context's at `start`.

    Raises:
        ConfigurationError: If an argument is wrong.

    Examples:
        >>> import numpy as np
        >>> with Batcher(lambda batch: batch.sum(axis=1)) as batcher:
        ...     float(batcher.call(np.array([1.0, 2.0])))
        3.0

    Note:
        Late binding is how Triton's dynamic batcher works; the two turns of the event loop before a batch leaves keep
        callers in a closed loop together, which greedy dispatch splits into alternating halves. Handing over a row is
        O(1); a batch wakes each event loop once.
    """

    @overload
    def __init__(
        self: Batcher[Any, _Result],
        fn: Callable[[Any], list[_Result]],
        *,
        max_batch_size: int = ...,
        max_wait: float = ...,
        max_queue: int = ...,
        buckets: Iterable[int] | None = ...,
        pad: Pad = ...,
        collate: Callable[[list[Any]], Any] | None = ...,
        device: object = ...,
        isolate: bool = ...,
        name: str | None = ...,
        clock: Clock | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self: Batcher[Any, Any],
        fn: Callable[[Any], Any],
        *,
        max_batch_size: int = ...,
        max_wait: float = ...,
        max_queue: int = ...,
        buckets: Iterable[int] | None = ...,
        pad: Pad = ...,
        collate: Callable[[list[Any]], Any] | None = ...,
        device: object = ...,
        isolate: bool = ...,
        name: str | None = ...,
        clock: Clock | None = ...,
    ) -> None: ...
    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        max_batch_size: int = 32,
        max_wait: float = 0.002,
        max_queue: int = 1024,
        buckets: Iterable[int] | None = None,
        pad: Pad = None,
        collate: Callable[[list[Any]], Any] | None = None,
        device: object = None,
        isolate: bool = True,
        name: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._runner = Runner(
            fn,
            owner="Batcher",
            name=name,
            limit=("max_batch_size", max_batch_size),
            buckets=buckets,
            pad=pad,
            collate=collate,
            device=device,
            isolate=isolate,
            group=True,
        )
        self._largest = self._runner.limit  # which sinks when memory runs out
        self._queue = Queue(
            self._largest,
            seconds("Batcher(max_wait=...)", max_wait, zero=True),
            whole("Batcher(max_queue=...)", max_queue, low=1),
        )
        self._given_clock = clock
        self._clock = current(clock)
        self._lock = threading.Lock()  # start against close; taken before the queue's, never after
        self._thread: threading.Thread | None = None
        self._ident = 0
        self._pid: int | None = None
        self._entered = False  # the device thread has its torch settings

    # --- life ----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What metrics and events call it."""
        return self._runner.name

    def start(self) -> Self:
        """Start the thread that runs the model; a second call does nothing.

        The thread runs in a copy of this context, with torch's number of threads as it is at the first batch.

        Returns:
            The batcher.

        Raises:
            BatcherClosedError: If it was closed, or started in another process.
            ConfigurationError: If *device* is not there; asked now, as the answer may start the device's driver.
            RuntimeError: If the system has no thread to give; the batcher may be started later.
        """
        if self._forked():
            raise refusal(self.name, self._pid, closed=self._queue.closing)
        with self._lock:
            if self._queue.closing:
                raise refusal(self.name, self._pid, closed=True)
            if self._thread is None:
                self._runner.leave_thread()
                self._clock = current(self._given_clock)
                context = copy_context()
                thread = threading.Thread(
                    target=context.run, args=(self._run,), name=f"mlkit-{self.name}", daemon=True
                )
                thread.start()  # may fail, and then nothing has happened
                self._thread, self._pid = thread, os.getpid()
                register(self)
        return self

    def close(self, *, drain: bool = True) -> None:
        """Take no more rows and stop the thread; blocks until it has ended. May be called again.

        Called from inside the model function it does not block: the thread ends when it has done what is left.
        Does nothing in a forked child. Not for a handler set by `signal.signal`, which may interrupt a thread that
        holds the batcher's lock.

        Args:
            drain: Whether to run the rows that wait. If not, their callers get `BatcherClosedError`. The batch that
                runs is finished in either case.
        """
        if self._forked():
            return  # a forked child: the thread to stop lives in the parent, and the lock may be held for ever
        with self._lock:
            thread = self._thread
            dropped = self._queue.close(drain=drain)
        self._turn_away(dropped, lambda _: refusal(self.name, self._pid, closed=True))
        if thread is not None and self._ident != threading.get_ident():
            thread.join()

    async def aclose(self, *, drain: bool = True) -> None:
        """Close without blocking the event loop.

        Args:
            drain: As for `close`.
        """
        from asyncio import to_thread

        await to_thread(self.close, drain=drain)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        await self.aclose()

    # --- callers -------------------------------------------------------------------------------------------------

    async def submit(
        self, row: _Row, *, deadline: float | None = None, priority: int = 0
    ) -> _Result:
        """Return the model's result for *row*.

        Args:
            row: The row.
            deadline: Seconds from now after which the answer is of no use. A row that has not begun by then never runs.
            priority: Rows of a larger priority run first; rows of the same in the order they came. A 64-bit integer.

        Returns:
            The result; made of arrays or tensors, it is a view into its batch.

        Raises:
            QueueFullError: At once, if *max_queue* rows wait already.
            DeadlineExceededError: At the deadline.
            BatcherClosedError: If the batcher is closed, not started, or was started in another process.
            CollateError: If the row cannot be put into a batch.
            OutputShapeError: If the model did not return one output per row.
            InferenceError: If an error is not this row's alone; its cause is the model's error.
            Exception: What the model raised for this row.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        request = self._request(row, "submit(deadline=...)", deadline, priority)
        request.loop, request.signal = loop, loop.create_future()
        timer = None
        try:
            self._push(request)
            if deadline is not None:
                timer = loop.call_later(request.allowed, self._expire, request)
            result, error = await request.signal
        finally:
            if timer is not None:
                timer.cancel()
            if request.waits:  # this task was cancelled
                self._queue.withdraw(request, expired=False)
        if error is not None:
            try:
                raise error
            finally:
                del error, request  # the error refers to this frame by its traceback
        return result  # type: ignore[no-any-return]

    def call(self, row: _Row, *, timeout: float | None = None, priority: int = 0) -> _Result:
        """Return the model's result for *row*, blocking this thread.

        Args:
            row: The row.
            timeout: As the *deadline* of `submit`.
            priority: As for `submit`.

        Returns:
            The result.

        Raises:
            Exception: As `submit`.
        """
        request = self._request(row, "call(timeout=...)", timeout, priority)
        request.signal = threading.Condition(threading.Lock())
        self._push(request)
        late = False
        try:
            with request.signal:
                while request.outcome is None:
                    left = None
                    if request.expires is not None:
                        left = request.expires - self._clock.monotonic()
                        if left <= 0:
                            late = True
                            break
                        left = min(left, LONGEST_WAIT)
                    self._clock.wait(request.signal, left)
        finally:
            if request.waits:
                self._queue.withdraw(request, expired=late)
        result: Any
        result, error = request.outcome or (None, too_late(self.name, request.allowed))
        if error is not None:
            try:
                raise error
            finally:
                del error, request
        return result  # type: ignore[no-any-return]

    def stats(self) -> BatcherStats:
        """Return what it has done so far, all figures of the same moment."""
        if self._forked():
            return self._queue.snapshot(self._runner)  # whoever held the lock is in the parent
        return self._queue.stats(self._runner)

    def samples(self) -> list[Sample]:
        """Return the figures of `stats` for `mlkit.telemetry.collect`, labelled with the batcher's name."""
        return as_samples(self._queue.snapshot(self._runner), self.name)

    def _request(self, row: Any, argument: str, limit: float | None, priority: int) -> Request:
        if type(priority) is not int or priority:  # a plain 0, as nearly always, needs no look
            priority = whole("priority", priority, low=-(2**63), high=2**63 - 1)
        if limit is None:
            return Request(row, priority, None, 0.0)
        allowed = seconds(argument, limit, zero=True)
        return Request(row, priority, self._clock.monotonic() + allowed, allowed)

    def _push(self, request: Request) -> None:
        # Read once, as `start` may set it meanwhile; without the lock, which a forked child must not take.
        process = self._pid
        if process != os.getpid() or threading.get_ident() == self._ident:
            raise refusal(self.name, process, closed=self._queue.closing)
        if not self._queue.push(request, self._clock):
            raise refusal(self.name, process, closed=True)

    def _expire(self, request: Request) -> None:
        """Answer a row whose deadline has come, running or not. Runs in its loop."""
        self._queue.withdraw(request, expired=True)
        if not request.signal.done():
            request.signal.set_result((None, too_late(self.name, request.allowed)))

    def _forked(self) -> bool:
        return self._pid is not None and self._pid != os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Batcher owns a thread and cannot be pickled; make one in each process")

    def __repr__(self) -> str:
        state = "new" if self._pid is None else "closed" if self._queue.closing else "running"
        return f"<Batcher {self.name!r} {state}, max_batch_size={self._largest}>"

    # --- the device thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while batch := self._next_batch():
                self._serve(batch)
                # What an idle thread still names stays in memory, perhaps in the device's.
                del batch
        finally:
            self.close(drain=False)  # nobody waits for a thread that is no more

    def _next_batch(self) -> list[Request]:
        """Wait until a batch should run and take it out of the queue; empty once closed and drained."""
        while True:
            batch, late = self._queue.take(self._clock)
            self._turn_away(late, lambda request: too_late(self.name, request.allowed))
            if batch or not late:
                return batch
            del late  # an idle thread names no caller

    def _serve(self, batch: list[Request]) -> None:
        rows = [request.row for request in batch]
        for request in batch:
            request.row = None
        results: list[Any]
        try:
            if not self._entered:
                self._runner.enter_thread()
                self._entered = True
            results = self._runner.run(rows)
        except BaseException as error:  # noqa: BLE001 - a thread that dies here leaves every caller waiting
            results = [Failure(error, len(batch))] * len(batch)
        seen: set[int] = set()
        outcomes: list[tuple[Any, BaseException | None]] = [
            (None, error_for(self.name, result, seen))
            if isinstance(result, Failure)
            else (result, None)
            for result in results
        ]
        failed = sum(isinstance(result, Failure) for result in results)
        self._queue.ran(batch, failed)
        # Only now: a blocking caller may look at any time, and whoever has an answer must find it counted.
        for request, outcome in zip(batch, outcomes, strict=True):
            request.outcome = outcome
        self._deliver(batch, settle=True)
        # An error that a caller keeps also keeps this frame; the neighbours' data must not stay with it.
        del rows, results, outcomes, outcome, request, batch

    def _turn_away(
        self, requests: list[Request], error: Callable[[Request], BaseException]
    ) -> None:
        """Answer rows that will not run, each with an error of its own."""
        for request in requests:
            request.row, request.outcome = None, (None, error(request))
        self._deliver(requests)

    def _deliver(self, requests: list[Request], *, settle: bool = False) -> None:
        """Wake the callers of *requests*, each event loop once."""
        loops: dict[AbstractEventLoop, list[Request]] = {}
        for request in requests:
            if request.loop is None:
                request.answer_thread()
            else:
                loops.setdefault(request.loop, []).append(request)
        for loop, theirs in loops.items():
            try:
                loop.call_soon_threadsafe(self._answer, loop, theirs, settle)
            except RuntimeError:  # the loop is closed, and its callers are gone with it
                self._queue.forget(loop)

    def _answer(self, loop: AbstractEventLoop, requests: list[Request], settle: bool) -> None:  # noqa: FBT001
        """Give the tasks of one loop their outcomes. Runs in that loop."""
        for request in requests:
            if not request.signal.done():
                request.signal.set_result(request.outcome)
        if settle:
            self._queue.answered(loop)
