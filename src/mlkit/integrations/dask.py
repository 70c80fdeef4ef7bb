"""`map_batches` on a Dask cluster. Needs distributed: `pip install 'mlkit-blocks[dask]'`."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from math import inf as _inf
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._optional import require
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, EngineError, RowError
from mlkit.inference._engines import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.inference import Work

__all__ = ["DaskEngine", "dask"]

_WARNED_ABOUT = 10 * 2**20  # bytes of one task
_FRESH = 1.0  # seconds that the number of workers is taken to be what it was
_BLOCK = 4_096  # rows of a partition that are made into dicts at a time


def dask(client: Any, *, meta: Any = None) -> DaskEngine:
    """Return the engine that runs batches on the workers of a Dask cluster.

    Rows from any iterable are sent to the workers in chunks, and their results come back in order. A worker process
    holds one model and runs it in one thread at a time, with as many torch threads as the worker has. When a worker dies,
    Dask runs its chunks on another one; a chunk that was running on `distributed.scheduler.allowed-failures` workers when
    they died, 3 by default, is given up with an `EngineError` that names its rows.

    A `dask.bag.Bag` gives a lazy bag of the results. A Dask data frame, whose rows reach *fn* as dicts, gives a lazy data
    frame with the results as further columns: one for each key of a result that is a dict, else one named `"result"`.
    `on_error="return"` adds a column `"error"` with the text of a bad row's error, whose results are missing. Such
    errors name the partition and the row in it.

    Args:
        client: A synchronous `distributed.Client`. It is not closed.
        meta: For data frames: what the results look like, as for `map_partitions`, e.g. `{"score": "f8"}`.

    Returns:
        The engine, for `map_batches(engine=...)`.

    Raises:
        MissingDependencyError: If distributed is not installed.
        ConfigurationError: If *client* is none, or is asynchronous.

    Examples:
        ```text
        from distributed import Client, LocalCluster

        with LocalCluster(n_workers=4, threads_per_worker=1) as cluster, Client(cluster) as client:
            for score in map_batches(model, rows, engine=dask(client)):
                ...
        ```
    """
    distributed = require("distributed", extra="dask", feature="the Dask engine")
    if not isinstance(client, distributed.Client):
        raise ConfigurationError("dask(client)", client, "a distributed.Client")
    if client.asynchronous:
        raise ConfigurationError(
            "dask(client)", client, "a synchronous client", hint="make it with asynchronous=False"
        )
    return DaskEngine(client, meta)


@final
class DaskEngine:
    """What `dask` returns. Thread-safe as its client is; not to be pickled or used after a fork."""

    name = "dask"

    def __init__(self, client: Any, meta: Any) -> None:
        self._client, self._meta = client, meta

    def __repr__(self) -> str:
        return f"dask({self._client!r})"

    def check(self) -> None:
        """Refuse a client that is closed."""
        if self._client.status != "running":
            raise EngineError(
                self.name, f"the client is {self._client.status}; connect a new one to the cluster"
            )

    @property
    def dumps(self) -> Callable[[object], bytes]:
        """`cloudpickle.dumps`, which Dask pickles functions with."""
        import cloudpickle

        return cloudpickle.dumps  # type: ignore[no-any-return]

    def open(self, work: Work) -> _Session:
        """Hand *work* to the scheduler and return the session."""
        self.check()
        return _Session(self._client, work)

    def dataset(self, work: Work, rows: Any) -> Any:
        """Return the lazy results of a bag or a data frame, else `NotImplemented`."""
        import sys

        bag, frame = sys.modules.get("dask.bag"), sys.modules.get("dask.dataframe")
        if bag is not None and isinstance(rows, bag.Bag):
            return _bag(work, rows)
        if frame is not None and isinstance(rows, (frame.DataFrame, frame.Series)):
            return _frame(work, rows, self._meta)
        return NotImplemented


@final
class _Session:
    """The workers of one cluster and the works they hold for one job."""

    def __init__(self, client: Any, work: Work) -> None:
        self._client, self._work = client, work
        # Another job may run the same work, and end first.
        self._job = f"mlkit-{work.name}-{os.urandom(6).hex()}"
        self._futures: dict[str, Any] = {}
        self._n_sent, self._closed = 0, False
        self._n_slots, self._asked = 1, -_inf
        # A task, so that Dask brings its result to each worker once, makes it again if all who had it died, and drops
        # it if this client goes away.
        self._held = self._submitted(work.n_bytes, _same, work, "work")

    def slots(self) -> int:
        """Return how many worker processes there are."""
        now = current().monotonic()
        if now - self._asked > _FRESH:
            try:
                self._n_slots = max(len(self._client.nthreads()), 1)
            except Exception as error:
                raise _broken(error, "the scheduler does not answer") from error
            self._asked = now
        return self._n_slots

    def submit(self, task: bytes) -> Callable[[], bytes]:
        """Send a task to the scheduler."""
        key = str(self._n_sent)
        self._n_sent += 1
        future = self._submitted(len(task), _answer, self._held, task, key)
        self._futures[key] = future
        del task

        def answer() -> bytes:
            try:
                return future.result()  # type: ignore[no-any-return]
            except Exception as error:
                raise _broken(error, "a task has no answer") from error
            finally:
                self._futures.pop(key, None)
                future.release()

        return answer

    def close(self) -> None:
        """Cancel what runs, and let the workers forget the model."""
        futures, self._futures = list(self._futures.values()), {}
        if self._closed or self._client.status != "running":
            return
        self._closed = True
        # Results that nobody closed may be collected in the client's own thread, which cannot wait for itself.
        if self._client.asynchronous:
            self._client.loop.add_callback(self._let_go, futures)
        else:
            self._client.sync(self._let_go, futures)

    async def _let_go(self, futures: list[Any]) -> None:
        with suppress(Exception):  # whatever has broken by now was said by the answers
            await self._client.cancel([*futures, self._held])
            await self._client.run(_forget, self._work.key, on_error="ignore")

    def _submitted(self, n_bytes: int, function: Callable[..., Any], *args: Any) -> Any:
        from contextlib import nullcontext

        from dask import config

        *arguments, key = args
        # One batch of images is more than Dask would like to see in a graph, and cannot be made smaller.
        limit = {"distributed.admin.large-graph-warning-threshold": 2 * n_bytes}
        try:
            with config.set(limit) if n_bytes > _WARNED_ABOUT // 2 else nullcontext():
                return self._client.submit(
                    function, *arguments, key=f"{self._job}-{key}", pure=False
                )
        except Exception as error:
            raise _broken(error, "the scheduler takes no task") from error


def _broken(error: Exception, what: str) -> EngineError:
    words = f"{type(error).__name__}: {clip(str(error), 300)}"
    return EngineError("dask", f"{what}: {words}")


def _same(work: Work) -> Work:
    return work


def _answer(work: Work, task: bytes) -> bytes:
    return work(task, threads=_threads())


def _forget(key: str) -> None:
    from mlkit.inference._engines.work import forget

    forget(key)


def _threads() -> int | None:
    from distributed import get_worker

    try:
        return int(get_worker().state.nthreads)
    except ValueError:  # not in a worker: a dataset that some other scheduler computes
        return None


def _bag(work: Work, bag: Any) -> Any:
    from dask import delayed
    from dask.bag import from_delayed

    shared = delayed(work, pure=True)
    parts = bag.to_delayed()
    return from_delayed([delayed(_bag_part)(shared, i, part) for i, part in enumerate(parts)])


def _bag_part(work: Work, number: int, part: Iterable[Any]) -> list[Any]:
    run, rows, results = work.partition(number), iter(part), list[Any]()
    while block := list(islice(rows, _BLOCK)):
        done = run(block, threads=_threads())
        if work.on_error == "skip":
            done = [one for one in done if not isinstance(one, RowError)]
        results += done
    return results


def _frame(work: Work, frame: Any, meta: Any) -> Any:
    from dask import dataframe, delayed

    if meta is None:
        raise ConfigurationError(
            "dask(meta=...)",
            meta,
            "what the results look like, for a data frame",
            hint='such as dask(client, meta={"score": "f8"})',
        )
    new = dataframe.utils.make_meta(meta)
    if new.ndim == 1:
        new = new.to_frame(new.name or tables.RESULT)
    whole = frame._meta.to_frame() if frame.ndim == 1 else frame._meta  # noqa: SLF001 - the only way to it
    whole = whole.assign(**{name: new[name].array for name in new.columns})
    if work.on_error == "return":
        whole = whole.assign(**{tables.ERROR: new.index[:0].astype(object)})
    shared, kinds = delayed(work, pure=True), dict(new.dtypes)
    parts = [
        delayed(_frame_part)(shared, i, part, kinds) for i, part in enumerate(frame.to_delayed())
    ]
    return dataframe.from_delayed(parts, meta=whole, divisions=frame.divisions)


def _frame_part(work: Work, number: int, part: Any, kinds: dict[str, Any]) -> Any:
    import pandas as pd

    run, results = work.partition(number), list[Any]()
    for start in range(0, len(part), _BLOCK):
        block = part.iloc[start : start + _BLOCK]
        if block.ndim == 1:
            rows = list(_values(block))
        else:
            rows = tables.rows_of({name: _values(block[name]) for name in block.columns})
        results += run(rows, threads=_threads())
    table = part.to_frame() if part.ndim == 1 else part
    kept, columns = tables.added(results, work.on_error, list(kinds))
    if kept is not None:
        table = table.iloc[kept]
    new = {
        name: pd.Series(values, table.index, dtype=kinds.get(name, object))
        for name, values in columns.items()
    }
    return table.assign(**new)


def _values(column: Any) -> Any:
    """Return the values of a column, of a type that is the same in all of its blocks, whatever is missing in one."""
    import numpy as np

    return column.to_numpy() if isinstance(column.dtype, np.dtype) else list(column)
