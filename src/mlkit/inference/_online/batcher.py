"""Batches online: callers hand in one row each, one thread runs the model on as many as there are."""

from __future__ import annotations

import os
import threading
from contextvars import copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final, overload

from mlkit._arguments import seconds, whole
from mlkit._clock import current
from mlkit.errors import ConfigurationError
from mlkit.inference._batch.check import is_coroutine_function
from mlkit.inference._batch.model import name_of
from mlkit.inference._batch.modes import Modes
from mlkit.inference._batch.runner import Runner
from mlkit.inference._online.awaited import Awaited
from mlkit.inference._online.bell import Bell
from mlkit.inference._online.device import Device
from mlkit.inference._online.groups import PENDING, Failed, Group
from mlkit.inference._online.process import forks
from mlkit.inference._online.queue import LONGEST_WAIT, Queue
from mlkit.inference._online.reasons import refusal, still_runs, too_late
from mlkit.inference._online.stats import as_samples
from mlkit.inference._online.warm_up import WarmUp
from mlkit.telemetry import register

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping
    from types import TracebackType
    from typing import NoReturn, Self

    from mlkit._clock import Clock
    from mlkit.errors import InferenceError
    from mlkit.inference._batch.collate import Pad
    from mlkit.inference._online.stats import BatcherStats
    from mlkit.telemetry import Sample

__all__ = ["Batcher"]

_USUAL = 0  # the priority of most rows; told by identity, which is quick and lets no False pass
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
    - Rows of equal keys that are there at the same time run once, for all their callers.

    Thread-safe. Not usable in a forked child, where its thread does not exist: calls there raise `BatcherClosedError`.
    Cannot be pickled. Use it with `with` or `async with`, or call `start` and `close`.

    Args:
        fn: Takes a batch of rows collated as by `mlkit.inference.collate` and returns one output per row, in order, cut
            as by `mlkit.inference.split`. A plain function, a callable object, or a torch module in evaluation mode,
            which runs in `torch.inference_mode` on the device of its parameters, with arrays for numpy rows; or an
            async function, which runs in an event loop of the batcher's own thread. It may see a row more than once.
            It runs in a copy of the context in which `start` was called, not in those of the callers.
        max_batch_size: The most rows per call, at least 1.
        max_wait: The longest that a free device holds back a waiting row for company, in seconds. 0 never waits.
        max_queue: The most rows that may wait; more are rejected with `QueueFullError`.
        target_latency: A latency objective in seconds, from the arrival of a row to its outcome. Batches are then as
            large as run in half of it, by the times of the batches so far, and the wait for company is cut to what it
            leaves; a backlog of more than two such batches makes them larger again, up to *max_batch_size*. By default
            there is none.
        buckets: Batch sizes to keep to, e.g. `[1, 8, 32]`: a smaller batch is filled up to the next one by repeating
            its last row, and the surplus is cut off. With a single bucket, rows of one shape always make batches of
            one shape, so that for a model that treats rows alike a row's bits do not depend on its company. The largest must reach
            *max_batch_size*.
        pad: Fills up sequences of different lengths, see `mlkit.inference.collate`. They reach *fn* as `Padded`.
        collate: Your own function from a list of rows to a batch.
        device: Run on this torch device: tensors and arrays are moved there, through pinned memory on CUDA, and outputs
            back to where the rows were.
        autocast: As for `map_batches`.
        compile: As for `map_batches`; not for an async function. `warm_up` keeps compiling away from callers.
        graphs: As for `map_batches`; not for an async function.
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
        O(1); a batch wakes each event loop once. A caller who leaves is looked for among at most 256 rows.
    """

    @overload
    def __init__(
        self: Batcher[Any, _Result],
        fn: Callable[[Any], list[_Result] | Coroutine[Any, Any, list[_Result]]],
        *,
        max_batch_size: int = ...,
        max_wait: float = ...,
        max_queue: int = ...,
        target_latency: float | None = ...,
        buckets: Iterable[int] | None = ...,
        pad: Pad = ...,
        collate: Callable[[list[Any]], Any] | None = ...,
        device: object = ...,
        autocast: object = ...,
        compile: bool | Mapping[str, Any] = ...,
        graphs: bool = ...,
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
        target_latency: float | None = ...,
        buckets: Iterable[int] | None = ...,
        pad: Pad = ...,
        collate: Callable[[list[Any]], Any] | None = ...,
        device: object = ...,
        autocast: object = ...,
        compile: bool | Mapping[str, Any] = ...,
        graphs: bool = ...,
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
        target_latency: float | None = None,
        buckets: Iterable[int] | None = None,
        pad: Pad = None,
        collate: Callable[[list[Any]], Any] | None = None,
        device: object = None,
        autocast: object = False,
        compile: bool | Mapping[str, Any] = False,  # noqa: A002 - torch's word
        graphs: bool = False,
        isolate: bool = True,
        name: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        awaited = Awaited(fn) if is_coroutine_function(fn) else None
        modes = Modes.chosen(owner="Batcher", autocast=autocast, compile=compile, graphs=graphs)
        if awaited is not None and (graphs or compile):
            which, given = ("graphs", graphs) if graphs else ("compile", compile)
            raise ConfigurationError(
                f"Batcher({which}=...)", given, f"False for an async function: {name_of(fn)}"
            )
        self._runner = Runner(
            fn if awaited is None else awaited,
            owner="Batcher",
            name=name,
            limit=("max_batch_size", max_batch_size),
            buckets=buckets,
            pad=pad,
            collate=collate,
            device=device,
            isolate=isolate,
            group=True,
            modes=modes,
        )
        self._largest = self._runner.limit  # which sinks when memory runs out
        if target_latency is not None:
            target_latency = seconds("Batcher(target_latency=...)", target_latency)
        self._queue = Queue(
            self._runner.name,
            largest=self._largest,
            max_wait=seconds("Batcher(max_wait=...)", max_wait, zero=True),
            max_queue=whole("Batcher(max_queue=...)", max_queue, low=1),
            buckets=self._runner.buckets,
            target=target_latency,
        )
        self._device = Device(self._runner, self._queue, awaited)
        self._given_clock = clock
        self._clock = current(clock)
        self._lock = threading.Lock()  # start against close; taken before the queue's, never after
        self._thread: threading.Thread | None = None
        self._gave_up = False  # a `close` has not waited for the model to end
        self._pid: int | None = None
        self._forks = -1  # how often mlkit's first process had been forked at `start`
        self._running_loop: Callable[[], AbstractEventLoop] = self._find_running_loop

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
                self._queue.go_by(self._clock)
                context = copy_context()
                thread = threading.Thread(
                    target=context.run,
                    args=(self._device.run,),
                    name=f"mlkit-{self.name}",
                    daemon=True,
                )
                thread.start()  # may fail, and then nothing has happened
                self._thread, self._pid = thread, os.getpid()
                self._forks = forks.n
                register(self)
        return self

    def warm_up(self, row: _Row, *, sizes: Iterable[int] | None = None) -> dict[int, float]:
        """Run the model on batches of *row* alone, so that no caller pays for what only first calls do.

        Blocks until all have run; in an event loop, `await asyncio.to_thread(batcher.warm_up, row)`. Rows that wait
        run afterwards. Each size runs twice, and how long the second run took is what deadlines and the latency
        objective go by until callers come.

        Args:
            row: A row such as callers will send. Where rows come in several shapes, call it with one of each.
            sizes: Rows per batch; by default the *buckets*, or, if there are none, 1 and *max_batch_size*.

        Returns:
            For each size the seconds that its second batch took.

        Raises:
            BatcherClosedError: If the batcher is closed, not started, or was started in another process.
            ConfigurationError: If a size is no whole number from 1 to the largest batch.
            Exception: What the model raised for a batch of one row.
            InferenceError: From what it raised for a larger batch; running out of memory is such an error as well.

        Examples:
            >>> with Batcher(lambda batch: batch * 2, buckets=[1, 8, 32]) as batcher:
            ...     list(batcher.warm_up(1.0))
            [1, 8, 32]
        """
        largest = max(self._runner.buckets or (self._largest,))
        asked = (self._runner.buckets or (1, self._largest)) if sizes is None else sizes
        where = "warm_up(sizes=...)"
        each = sorted({whole(where, size, low=1, high=largest) for size in asked})
        warm_up = WarmUp(row, each)
        inside = get_ident() == self._queue.device
        if self._forks != forks.n or inside or not self._queue.warm_up(warm_up):
            raise self._refusal()
        return warm_up.wait(self._clock)

    def close(self, *, drain: bool = True, timeout: float | None = None) -> BatcherStats:
        """Take no more rows and stop the thread; blocks until it has ended. May be called again.

        Called from inside the model function it does not block: the thread ends when it has done what is left.
        Does nothing in a forked child. Not for a handler set by `signal.signal`, which may interrupt a thread that
        holds the batcher's lock.

        Args:
            drain: Whether to run the rows that wait. If not, their callers get `BatcherClosedError`. The batch that
                runs is finished in either case.
            timeout: The seconds after which to give up. Whoever then still waits gets `BatcherClosedError`, also for a
                row that runs; the model cannot be stopped, and what it returns later is dropped. The end of a `with`
                does not wait for it either then. By default there is no limit.

        Returns:
            The counts at the end. If `n_running` is not 0, the model still runs.

        Raises:
            ConfigurationError: If *timeout* is no number of seconds.
        """
        if timeout is not None:
            timeout = seconds("close(timeout=...)", timeout, zero=True)
        if self._forked():
            # The thread to stop lives in the parent, and the lock may be held for ever.
            return self.stats()
        with self._lock:
            thread = self._thread
            self._device.stop(drain=drain)
        if thread is not None and self._queue.device != get_ident():
            if self._queue.wait_until_over(timeout):
                thread.join()
            else:
                self._gave_up = True
                self._device.stop(drain=False)
                self._device.turn_away(
                    self._queue.running(), lambda _: still_runs(self.name, timeout or 0.0)
                )
        return self.stats()

    async def aclose(self, *, drain: bool = True, timeout: float | None = None) -> BatcherStats:  # noqa: ASYNC109 - as close
        """Close without blocking the event loop. Cancelled, it is closed none the less, and ends by itself.

        Args:
            drain: As for `close`.
            timeout: As for `close`.

        Returns:
            As `close`.
        """
        from asyncio import to_thread

        if timeout is not None:
            timeout = seconds("close(timeout=...)", timeout, zero=True)
        if self._forked() or self._queue.device == get_ident():  # `close` does not block
            return self.close(drain=drain, timeout=timeout)
        # Not only in the thread below: if all are busy, whoever cancels this takes that away before it begins.
        self._device.stop(drain=drain)
        return await to_thread(self.close, drain=drain, timeout=timeout)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close(timeout=0.0 if self._gave_up else None)

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        await self.aclose(timeout=0.0 if self._gave_up else None)

    # --- callers -------------------------------------------------------------------------------------------------

    async def submit(
        self,
        row: _Row,
        *,
        deadline: float | None = None,
        priority: int = 0,
        key: Hashable = None,
    ) -> _Result:
        """Return the model's result for *row*.

        Args:
            row: The row.
            deadline: Seconds from now after which the answer is of no use. A row that has not begun by then never runs.
            priority: Rows of a larger priority run first; rows of the same in the order they came. A 64-bit integer.
            key: What only rows with the same result have in common: text, bytes, a number or a tuple of these. While a
                row of the same key waits or runs, this one shares its run and its result, which is then one object for
                several callers. None shares nothing.

        Returns:
            The result; made of arrays or tensors, it is a view into its batch.

        Raises:
            QueueFullError: At once, if *max_queue* rows wait already.
            OverloadedError: At once, if the device is busy and, by the batches so far, *deadline* will have passed
                before the result is there.
            DeadlineExceededError: At the deadline.
            BatcherClosedError: If the batcher is closed, not started, or was started in another process.
            CollateError: If the row cannot be put into a batch.
            OutputShapeError: If the model did not return one output per row.
            InferenceError: If an error is not this row's alone; its cause is the model's error.
            Exception: What the model raised for this row.
        """
        loop = self._running_loop()
        signal = loop.create_future()
        group: Group | None
        if self._forks != forks.n:
            raise self._refusal()
        if priority is _USUAL and deadline is None and key is None:
            group = self._queue.submit(loop, row, signal)
        else:
            group = self._asked(
                Group([row], loop, [signal]), ("submit(deadline=...)", deadline), priority, key
            )
        if group is None:
            raise self._refusal()
        timer = None
        outcome = PENDING
        try:
            if deadline is not None:
                timer = loop.call_later(group.allowed, self._expire, group, signal)
            outcome = await signal
        finally:
            if timer is not None:
                timer.cancel()
            if outcome is PENDING:  # this task was cancelled
                self._queue.withdraw(group, signal, expired=False)
                del group, signal  # the error refers to this frame by its traceback
        if type(outcome) is Failed:
            try:
                raise outcome.error
            finally:
                del outcome, group, signal  # as above
        return outcome  # type: ignore[no-any-return]

    def call(
        self,
        row: _Row,
        *,
        timeout: float | None = None,
        priority: int = 0,
        key: Hashable = None,
    ) -> _Result:
        """Return the model's result for *row*, blocking this thread.

        Args:
            row: The row.
            timeout: As the *deadline* of `submit`.
            priority: As for `submit`.
            key: As for `submit`.

        Returns:
            The result.

        Raises:
            Exception: As `submit`.
        """
        signal = Bell()
        if self._forks != forks.n:
            raise self._refusal()
        group = self._asked(
            Group([row], None, [signal]), ("call(timeout=...)", timeout), priority, key
        )
        if group is None:
            raise self._refusal()
        late = False
        try:
            with signal:
                while group.outcome is PENDING:
                    left = None
                    if group.expires is not None:
                        left = group.expires - self._clock.monotonic()
                        if left <= 0:
                            late = True
                            break
                        left = min(left, LONGEST_WAIT)
                    self._clock.wait(signal, left)  # type: ignore[arg-type]  # as a condition
        finally:
            if group.waits:
                self._queue.withdraw(group, signal, expired=late)
        outcome = group.outcome
        if outcome is PENDING:
            raise too_late(self.name, group.allowed)
        if type(outcome) is Failed:
            try:
                raise outcome.error
            finally:
                del outcome, group, signal
        return outcome  # type: ignore[no-any-return]

    def stats(self) -> BatcherStats:
        """Return what it has done so far, all figures of the same moment."""
        # Whoever held the lock in a forked child is in the parent.
        return self._queue.stats(self._runner, locked=not self._forked())

    def samples(self) -> list[Sample]:
        """Return the figures of `stats` for `mlkit.telemetry.collect`, labelled with the batcher's name."""
        return as_samples(self._queue.stats(self._runner, locked=False), self.name)

    def _asked(
        self, group: Group, limit: tuple[str, float | None], priority: int, key: Hashable
    ) -> Group | None:
        """Let *group* wait with what its caller asks for; return None if it is not taken."""
        group.alone = True
        if priority is not _USUAL:
            group.priority = whole("priority", priority, low=-(2**63), high=2**63 - 1)
        argument, allowed = limit
        if allowed is not None:
            group.allowed = seconds(argument, allowed, zero=True)
            group.expires = self._clock.monotonic() + group.allowed
        if key is not None:
            if not _is_plain_key(key):
                raise ConfigurationError("key", key, "text, bytes, a number or a tuple of these")
            group.key = key
        return group if self._queue.push(group) else None

    def _refusal(self) -> InferenceError:
        """Return why no row is taken from this thread, or from none."""
        process, closing = self._pid, self._queue.closing
        if process == os.getpid() and not closing and get_ident() != self._queue.device:
            process = None  # `start` came meanwhile
        return refusal(self.name, process, closed=closing)

    def _expire(self, group: Group, signal: Future[Any]) -> None:
        """Answer a row whose deadline has come, running or not. Runs in its loop."""
        self._queue.withdraw(group, signal, expired=True)
        if not signal.done():
            signal.set_result(Failed(too_late(self.name, group.allowed)))

    def _find_running_loop(self) -> AbstractEventLoop:
        from asyncio import get_running_loop  # loaded by whoever runs a loop

        self._running_loop = get_running_loop
        return get_running_loop()

    def _forked(self) -> bool:
        return self._pid is not None and self._pid != os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Batcher owns a thread and cannot be pickled; make one in each process")

    def __repr__(self) -> str:
        state = "new" if self._pid is None else "closed" if self._queue.closing else "running"
        return f"<Batcher {self.name!r} {state}, max_batch_size={self._largest}>"


def _is_plain_key(key: object) -> bool:
    """Return whether *key* is made of built-in values: comparing others would run a user's code within a lock."""
    if type(key) is tuple:
        return all(map(_is_plain_key, key))
    return key is None or type(key) in (str, bytes, int, float, bool)
