"""`map_batches` on a Ray cluster. Needs Ray: `pip install 'mlkit-blocks[ray]'`."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

from mlkit._arguments import number, whole
from mlkit._optional import require
from mlkit._suggest import clip
from mlkit.errors import EngineError
from mlkit.inference._engines import tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.inference import Work

__all__ = ["RayEngine", "ray"]

_RETRIES = 3  # as Ray's own for tasks
_BLOCK = 4_096  # rows of a dataset that are made into dicts at a time


def ray(*, n_workers: int | None = None, n_cpus: float = 1, n_gpus: float = 0) -> RayEngine:
    """Return the engine that runs batches in Ray actors.

    Rows from any iterable are sent to the actors in chunks, and their results come back in order. An actor holds one
    model; actors are started as there is work for them, and end with the job. When an actor or its node dies, Ray starts
    it again, loads the model there and runs its chunks again; a chunk whose actors died four times is given up with an
    `EngineError` that names its rows. Ray is connected to as by `ray.init()` if it is not yet; an address of `ray://` will
    do, but for datasets.

    A `ray.data.Dataset`, whose rows reach *fn* as dicts, gives a lazy dataset with the results as further columns: one
    for each key of a result that is a dict, else one named `"result"`. `on_error="return"` adds a column `"error"` with
    the text of a bad row's error, whose results are missing. Rows of a dataset have no numbers: errors count within a
    part of at most 4,096 rows, and these parts within an actor.

    Args:
        n_workers: At most how many actors, at least 1; by default as many as the cluster's CPUs (or GPUs) hold.
        n_cpus: CPUs of one actor, above 0: as many threads does torch use there, at least one.
        n_gpus: GPUs of one actor; pass `device="cuda"` to `map_batches` as well.

    Returns:
        The engine, for `map_batches(engine=...)`.

    Raises:
        MissingDependencyError: If Ray is not installed.
        ConfigurationError: If an argument is wrong.

    Examples:
        ```text
        for score in map_batches(model, rows, engine=ray(n_cpus=2)):
            ...
        ```
    """
    require("ray", extra="ray", feature="the Ray engine")
    if n_workers is not None:
        n_workers = whole("ray(n_workers=...)", n_workers, low=1, also="None or ")
    n_cpus = number("ray(n_cpus=...)", n_cpus, "a number of CPUs > 0", low=1e-4, high=1e6)
    n_gpus = number("ray(n_gpus=...)", n_gpus, "a number of GPUs >= 0", low=0, high=1e6)
    return RayEngine(n_workers, n_cpus, n_gpus)


@final
class RayEngine:
    """What `ray` returns. Thread-safe, and picklable into Ray's tasks."""

    name = "ray"

    def __init__(self, n_workers: int | None, n_cpus: float, n_gpus: float) -> None:
        self._n_workers, self._n_cpus, self._n_gpus = n_workers, n_cpus, n_gpus

    def __repr__(self) -> str:
        return f"ray(n_workers={self._n_workers}, n_cpus={self._n_cpus:g}, n_gpus={self._n_gpus:g})"

    @property
    def dumps(self) -> Callable[[object], bytes]:
        """`ray.cloudpickle.dumps`."""
        from ray import cloudpickle

        return cloudpickle.dumps  # type: ignore[no-any-return]

    def check(self) -> None:
        """Connect to Ray, and refuse a cluster that cannot hold one actor."""
        import ray

        try:
            if not ray.is_initialized():
                ray.init()
            there = ray.cluster_resources()
        except Exception as error:
            raise _broken(error, "Ray is not there") from error
        for kind, wanted in (("CPU", self._n_cpus), ("GPU", self._n_gpus)):
            if wanted > there.get(kind, 0):
                raise EngineError(
                    self.name,
                    f"an actor needs {wanted:g} {kind}s and the cluster has {there.get(kind, 0):g}; ask for fewer, or "
                    f"start ray with more",
                )

    def open(self, work: Work) -> _Session:
        """Return a session; its actors start with the first tasks."""
        self.check()
        return _Session(work, self._most(), self._options(), self._threads())

    def dataset(self, work: Work, rows: Any) -> Any:
        """Return the lazy results of a `ray.data.Dataset`, else `NotImplemented`."""
        import sys

        data = sys.modules.get("ray.data")
        if data is None or not isinstance(rows, data.Dataset):
            return NotImplemented
        from ray.util import client

        if client.ray.is_connected():
            raise EngineError(
                self.name,
                "Ray Data does not run over a ray:// address; pass the rows, or run this program as a Ray job",
            )
        return rows.map_batches(
            _Blocks,
            fn_constructor_args=(work, self._threads()),
            batch_size=_BLOCK,
            batch_format=None,
            compute=data.ActorPoolStrategy(min_size=1, max_size=self._most()),
            num_cpus=self._n_cpus,
            num_gpus=self._n_gpus,
        )

    def _most(self) -> int:
        """Return how many actors fit on what there is now."""
        import ray

        if self._n_workers is not None:
            return self._n_workers
        there = ray.cluster_resources()
        most = there.get("CPU", 1) / self._n_cpus
        if self._n_gpus:
            most = min(most, there.get("GPU", 0) / self._n_gpus)
        return max(int(most), 1)

    def _options(self) -> dict[str, Any]:
        return {
            "num_cpus": self._n_cpus,
            "num_gpus": self._n_gpus,
            "max_restarts": -1,
            "max_task_retries": _RETRIES,
        }

    def _threads(self) -> int:
        return max(int(self._n_cpus), 1)


class _Actor:
    """What runs in an actor's process."""

    def __init__(self, threads: int) -> None:
        self._work: Work | None = None
        self._threads = threads

    def ready(self) -> bool:
        return True

    def answer(self, held: list[Any], task: bytes) -> bytes:
        # Not given to the constructor, as Ray complains that it may be lost before the actor starts again; in a list, as
        # Ray would otherwise copy it for each call.
        if self._work is None:
            import ray

            self._work = ray.get(held[0])
        return self._work(task, threads=self._threads)


@final
class _Worker:
    """One actor, and what it has not answered yet."""

    __slots__ = ("actor", "ready", "refs")

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.ready = actor.ready.remote()
        self.refs: list[Any] = []


@final
class _Session:
    """The actors of one job. For one thread."""

    def __init__(self, work: Work, most: int, options: dict[str, Any], threads: int) -> None:
        import ray

        self._kind = ray.remote(**options)(_Actor)
        self._held, self._threads = [ray.put(work)], threads
        self._most = most
        self._workers: list[_Worker] = []
        self._starting: list[_Worker] = []

    def slots(self) -> int:
        """Return how many actors there may be."""
        return self._most

    def submit(self, task: bytes) -> Callable[[], bytes]:
        """Give the task to the actor that has the least to do."""
        import ray

        try:
            worker = self._least_busy()
            ref = worker.actor.answer.remote(self._held, task)
        except Exception as error:
            raise _broken(error, "no actor can be started") from error
        worker.refs.append(ref)

        def answer() -> bytes:
            try:
                return ray.get(ref)  # type: ignore[no-any-return]
            except Exception as error:
                raise _broken(error, "a task has no answer") from error

        return answer

    def close(self) -> None:
        """Kill the actors: what they still run is wanted by nobody."""
        import ray

        workers = [*self._workers, *self._starting]
        self._workers, self._starting = [], []
        for worker in workers:
            with suppress(Exception):  # Ray may be gone by now
                ray.kill(worker.actor)

    def _least_busy(self) -> _Worker:
        """Return an actor that is there; start another one while all have something to do."""
        import ray

        for worker in self._workers:
            if worker.refs:
                _, worker.refs = ray.wait(
                    worker.refs, num_returns=len(worker.refs), timeout=0, fetch_local=False
                )
        idle = any(not worker.refs for worker in self._workers)
        n_workers, n_starting = len(self._workers), len(self._starting)
        # As many again as there are, so that a small job starts few and a large cluster is soon in use.
        if not idle and n_starting <= n_workers and n_workers + n_starting < self._most:
            self._starting.append(_Worker(self._kind.remote(self._threads)))
        if self._starting:
            # Tasks wait for no actor that is still waiting for a place, unless there is no other.
            refs = [worker.ready for worker in self._starting]
            done, _ = ray.wait(
                refs,
                num_returns=1 if not n_workers else len(refs),
                timeout=0 if n_workers else None,
            )
            ray.get(done)  # raises why one could not start
            self._workers += [worker for worker in self._starting if worker.ready in done]
            self._starting = [worker for worker in self._starting if worker.ready not in done]
        return min(self._workers, key=lambda worker: len(worker.refs))


class _Blocks:
    """What Ray Data makes in its actors: from a block to a block with more columns."""

    def __init__(self, work: Work, threads: int) -> None:
        self._work, self._threads = work, threads
        self._n_blocks = 0

    def __call__(self, block: Any) -> Any:
        import numpy as np
        from ray.data.block import BlockAccessor

        columns = _values(block, BlockAccessor.for_block(block).to_numpy())
        run = self._work.partition(self._n_blocks)
        self._n_blocks += 1
        results = run(tables.rows_of(columns), threads=self._threads)
        kept, new = tables.added(results, self._work.on_error)
        more = {name: _column(np, values) for name, values in new.items()}
        if kept is not None:
            block = BlockAccessor.for_block(block).take(kept)
        return _extended(block, BlockAccessor.batch_to_block(more))


def _values(block: Any, columns: dict[str, Any]) -> dict[str, Any]:
    """Return *columns*, but those anew of which numpy has made floats, because of a number that is missing."""
    import pyarrow as pa

    if not isinstance(block, pa.Table):
        return columns
    anew = {
        field.name: tables.values_of(block.column(field.name).combine_chunks())
        for field in block.schema
        if pa.types.is_integer(field.type) or pa.types.is_list(field.type)
    }
    return {**columns, **anew}


def _extended(block: Any, more: Any) -> Any:
    """Return *block* with the columns of *more*, and its own as they are."""
    import pyarrow as pa

    if not (isinstance(block, pa.Table) and isinstance(more, pa.Table)):
        from ray.data.block import BlockAccessor

        frame = BlockAccessor.for_block(more).to_pandas()
        return BlockAccessor.for_block(block).to_pandas().reset_index(drop=True).assign(**frame)
    for name in more.column_names:
        place = block.schema.get_field_index(name)
        if place < 0:
            block = block.append_column(name, more.column(name))
        else:
            block = block.set_column(place, name, more.column(name))
    return block


def _column(np: Any, values: list[Any]) -> Any:
    """Return *values* as one array: of their dtype if they are alike, else of objects."""
    shapes = {np.shape(value) for value in values}
    if len(shapes) == 1 and not any(value is None for value in values):
        return np.asarray(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _broken(error: Exception, what: str) -> EngineError:
    return EngineError("ray", f"{what}: {type(error).__name__}: {clip(str(error), 300)}")
