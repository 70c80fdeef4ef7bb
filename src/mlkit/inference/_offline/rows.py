"""Rows from any iterable, some at a time, read in this thread or ahead of it."""

from __future__ import annotations

from itertools import islice
from os import getpid
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.errors import InferenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlkit.inference._offline.sizes import Sizes

__all__ = ["Chunk", "chunks", "readable"]

_GRACE = 1.0  # seconds that closing waits for an iterator that is just making a row


class Chunk(NamedTuple):
    """The next rows.

    Attributes:
        rows: At most as many as were asked for.
        last: Whether nothing comes after them.
        error: What the iterator raised after them.
        staged: What was made of them ahead, if anything; taken out when it is used.
    """

    rows: list[Any]
    last: bool
    error: Exception | None
    staged: list[Any]


def readable(rows: Any) -> Any:
    """Return *rows*, or what reads them one by one if they can only be asked for by number, as a torch `Dataset`."""
    by_number = hasattr(type(rows), "__getitem__") and not hasattr(type(rows), "__iter__")
    return _ByNumber(rows) if by_number else rows


@final
class _ByNumber:
    """Rows of a dataset that has no iterator. Python's own would go on until an `IndexError`, which not all raise."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        try:
            n_rows = len(self)
        except TypeError:
            return iter(self._dataset)
        return (self._dataset[place] for place in range(n_rows))


def chunks(
    source: Iterator[Any],
    sizes: Sizes,
    prefetch: int,
    stage: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Chunk]:
    """Yield all rows of *source*, as many at a time as *sizes* says.

    Args:
        source: The rows.
        sizes: How many to read; while that is being found out, nothing is read ahead.
        prefetch: How many chunks a thread may read ahead; 0 for no thread.
        stage: What that thread also does with the rows, or None.
    """
    while not (prefetch and sizes.settled):
        chunk = _read(source, sizes.size)
        last = chunk.last
        yield chunk
        if last:
            return
        del chunk
    ahead = _Ahead(source, sizes.size, prefetch, stage)
    try:
        yield from ahead.chunks()
    finally:
        ahead.close()


def _read(source: Iterator[Any], n: int) -> Chunk:
    rows: list[Any] = []
    try:
        rows.extend(islice(source, n))  # what came before an error stays
        return Chunk(rows, len(rows) < n, None, [])
    except Exception as error:  # noqa: BLE001 - it is raised in its place, after the results of the rows before it
        return Chunk(rows, last=True, error=error, staged=[])
    finally:
        del rows  # else the traceback of an error keeps them


@final
class _Ahead:
    """A thread that reads chunks until a bounded number of them wait.

    It is a daemon, so that an iterator that never returns cannot keep the program from ending.
    """

    def __init__(
        self,
        source: Iterator[Any],
        size: int,
        n_ahead: int,
        stage: Callable[[list[Any]], Any] | None,
    ) -> None:
        from contextvars import copy_context
        from queue import SimpleQueue
        from threading import Semaphore, Thread

        self._source, self._size, self._stage = source, size, stage
        # Taken before a chunk is read, not after: what is being read counts.
        self._room = Semaphore(n_ahead)
        self._ready: SimpleQueue[Chunk | None] = SimpleQueue()
        self._closed = False
        self._process = getpid()
        self._thread = Thread(
            target=copy_context().run, args=(self._work,), name="mlkit-rows", daemon=True
        )
        self._thread.start()

    def chunks(self) -> Iterator[Chunk]:
        while (chunk := self._next()) is not None:
            last = chunk.last
            # The caller runs this one, so that another may wait.
            self._room.release()
            yield chunk
            if last:
                return
            del chunk
        raise InferenceError(
            "the iterator of rows raised what is no Exception, and its thread ended"
        )

    def _next(self) -> Chunk | None:
        if getpid() != self._process:
            raise InferenceError(
                "the process was forked, and the thread that reads rows ahead is in the other one; "
                "call map_batches in the process that takes its results, or without prefetch="
            )
        return self._ready.get()

    def close(self) -> None:
        self._closed = True
        self._room.release()
        self._thread.join(_GRACE)

    def _work(self) -> None:
        try:
            while self._room.acquire() and not self._closed:
                chunk = _read(self._until_closed(), self._size)
                last = chunk.last
                if self._stage is not None:
                    staged = self._stage(chunk.rows)
                    if staged is not None:
                        chunk.staged.append(staged)
                    del staged
                self._ready.put(chunk)
                del chunk
                if last:
                    return
        finally:
            self._ready.put(None)  # whatever ended this thread, nobody waits for it

    def _until_closed(self) -> Iterator[Any]:
        for row in self._source:
            yield row
            del row
            if self._closed:
                return
