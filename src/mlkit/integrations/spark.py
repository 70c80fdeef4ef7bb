"""`map_batches` on a Spark cluster. Needs PySpark: `pip install 'mlkit-blocks[spark]'`, and Java."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

from mlkit._optional import require
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, EngineError
from mlkit.inference._engines import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlkit.inference import Work

__all__ = ["SparkEngine", "spark"]

_MOST = 128  # jobs at once: each has a thread here


def spark(session: Any, *, schema: Any = None) -> SparkEngine:
    """Return the engine that runs batches in the Python workers of a Spark cluster.

    Rows from any iterable are sent to the workers in chunks, each a Spark job of one task, and their results come back
    in order. The model is broadcast, and a Python worker process, which Spark keeps for later tasks, holds it. When a
    worker dies, Spark runs its task again, `spark.task.maxFailures` times in all, then the chunk is given up with an
    `EngineError` that names its rows; the master `local[2]` allows no failure, `local[2,4]` four.

    A Spark `DataFrame`, whose rows reach *fn* as dicts, gives a lazy data frame with the results as further columns:
    one for each key of a result that is a dict, else one named `"result"`. `on_error="return"` adds a column `"error"`
    with the text of a bad row's error, whose results are null. Such errors name the partition and the row in it. In a row
    a missing number of a floating type is NaN, and anything else that is missing is None, which fails in a batch of
    numbers: that row, and no other. A result that its column would change, such as 0.5 one of integers, is an error; a
    time without a zone is one of UTC.

    Args:
        session: A `pyspark.sql.SparkSession`. It is not stopped. One of Spark Connect takes data frames only.
        schema: For data frames: names and types of the results' columns, as text or a `StructType`: `"score double"`.

    Returns:
        The engine, for `map_batches(engine=...)`.

    Raises:
        MissingDependencyError: If PySpark is not installed.
        ConfigurationError: If *session* is no session.

    Examples:
        ```text
        session = SparkSession.builder.master("local[4,4]").getOrCreate()
        scored = map_batches(model, session.read.parquet("rows"), engine=spark(session, schema="score double"))
        scored.write.parquet("scores")
        ```
    """
    require("pyspark", extra="spark", feature="the Spark engine")
    if not callable(getattr(session, "createDataFrame", None)):
        raise ConfigurationError("spark(session)", session, "a pyspark.sql.SparkSession")
    return SparkEngine(session, schema)


@final
class SparkEngine:
    """What `spark` returns. Thread-safe as its session is; not to be pickled or used after a fork."""

    name = "spark"

    def __init__(self, session: Any, schema: Any) -> None:
        self._session, self._schema = session, schema

    def __repr__(self) -> str:
        return f"spark({self._session!r})"

    @property
    def dumps(self) -> Callable[[object], bytes]:
        """`pyspark.cloudpickle.dumps`."""
        from pyspark import cloudpickle

        return cloudpickle.dumps  # type: ignore[no-any-return]

    def check(self) -> None:
        """Refuse a session that was stopped."""
        if self._remote():
            if self._session.is_stopped:
                raise EngineError(self.name, "the session was stopped; make a new one")
            return
        context = self._session.sparkContext
        try:
            stopped = context._jsc is None or context._jsc.sc().isStopped()  # noqa: SLF001 - PySpark has no other way to ask
        except Exception as error:
            raise _broken(error, "the session does not answer") from error
        if stopped:
            raise EngineError(self.name, "the session was stopped; make a new one")

    def open(self, work: Work) -> _Session:
        """Broadcast *work* and return the session."""
        self.check()
        return _Session(self._session.sparkContext, work)

    def dataset(self, work: Work, rows: Any) -> Any:
        """Return the lazy results of a `DataFrame`, else `NotImplemented`."""
        if type(rows).__module__.partition(".")[0] != "pyspark" or not hasattr(rows, "mapInArrow"):
            if self._remote():
                raise EngineError(
                    self.name,
                    "over Spark Connect only data frames can be run; make one of the rows with session.createDataFrame",
                )
            return NotImplemented
        from pyspark.sql.pandas.types import to_arrow_type
        from pyspark.sql.types import StringType, StructType

        if self._schema is None:
            raise ConfigurationError(
                "spark(schema=...)",
                self._schema,
                "the names and types of the results' columns, for a DataFrame",
                hint='such as spark(session, schema="score double")',
            )
        new = self._schema
        if not isinstance(new, StructType):
            new = self._session.createDataFrame([], new).schema
        if work.on_error == "return":
            new = StructType([*new.fields]).add(tables.ERROR, StringType())
        old = [field for field in rows.schema.fields if field.name not in new.names]
        whole = StructType([*old, *new.fields])
        threads = _threads(self._session)
        # Spark reads what it said it would get, and does not look whether that is what it got.
        types = {field.name: to_arrow_type(field.dataType, timezone="UTC") for field in new.fields}
        return rows.mapInArrow(_Blocks(work, types, threads), whole)

    def _remote(self) -> bool:
        return ".connect." in type(self._session).__module__


def _threads(session: Any) -> int:
    return max(int(session.conf.get("spark.task.cpus", "1")), 1)


@final
class _Session:
    """One job's broadcast model, and the threads that wait for its Spark jobs."""

    def __init__(self, context: Any, work: Work) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._context = context
        self._group = f"mlkit-{os.urandom(6).hex()}"
        self._name = f"mlkit {work.name}"
        self._threads = int(context.getConf().get("spark.task.cpus", "1"))
        try:
            self._work = context.broadcast(work)
        except Exception as error:
            raise _broken(error, "the model cannot be broadcast") from error
        self._pool = ThreadPoolExecutor(_MOST, thread_name_prefix="mlkit-spark")

    def slots(self) -> int:
        """Return how many tasks Spark runs at once."""
        cores = int(self._context.defaultParallelism)
        return max(min(cores // self._threads, _MOST // 2), 1)

    def submit(self, task: bytes) -> Callable[[], bytes]:
        """Begin a Spark job of one task."""
        future = self._pool.submit(self._run, task)

        def answer() -> bytes:
            try:
                return future.result()
            except Exception as error:
                raise _broken(error, "a task has no answer") from error

        return answer

    def close(self) -> None:
        """Cancel the jobs, and let go of the model."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with suppress(Exception):  # the context may be stopped by now
            self._context.cancelJobGroup(self._group)
        self._pool.shutdown(wait=True)
        with suppress(Exception):
            self._work.destroy()

    def _run(self, task: bytes) -> bytes:
        self._context.setJobGroup(self._group, self._name, interruptOnCancel=False)
        work, threads = self._work, self._threads
        rows = self._context.parallelize([task], 1)
        return bytes(rows.map(lambda one: work.value(one, threads=threads)).collect()[0])


@final
class _Blocks:
    """What Spark runs on each partition: from record batches to record batches with more columns."""

    def __init__(self, work: Work, types: dict[str, Any], threads: int) -> None:
        self._work, self._types, self._threads = work, types, threads

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        from pyspark import TaskContext

        context = TaskContext.get()
        run = self._work.partition(0 if context is None else context.partitionId())
        for batch in batches:
            names = batch.schema.names
            rows = tables.rows_of(
                {name: tables.values_of(column) for name, column in zip(names, batch, strict=True)}
            )
            results = run(rows or [{}] * batch.num_rows, threads=self._threads)
            kept, columns = tables.added(results, self._work.on_error, list(self._types))
            yield self._extended(batch, kept, columns)

    def _extended(self, batch: Any, kept: list[int] | None, columns: dict[str, list[Any]]) -> Any:
        import pyarrow as pa

        if kept is not None:
            batch = batch.take(pa.array(kept, pa.int64()))
        old = {
            name: batch.column(place)
            for place, name in enumerate(batch.schema.names)
            if name not in columns
        }
        new = {}
        for name, values in columns.items():
            try:
                new[name] = _column(values, self._types[name])
            except pa.ArrowException as error:
                reason = (
                    f"the results' column {name!r} cannot be {self._types[name]} as schema= says"
                )
                raise EngineError("spark", f"{reason}: {clip(str(error), 300)}") from error
        return pa.RecordBatch.from_pydict({**old, **new})


def _column(values: list[Any], wanted: Any) -> Any:
    """Return *values* as a column of the type that was said.

    Raises:
        pyarrow.ArrowInvalid: If a value would be another one there.
    """
    import pyarrow as pa

    values = [_nested(value) for value in values]
    inner = wanted
    while pa.types.is_list(inner):
        inner = inner.value_type
    if not pa.types.is_nested(inner):
        # Told the type, Arrow would make 0 of 0.5 for a column of integers.
        return pa.array(values).cast(wanted)
    return pa.array(values, wanted)


def _nested(value: Any) -> Any:
    """Return arrays of several axes as lists, which Arrow wants of them."""
    return value.tolist() if getattr(value, "ndim", 1) > 1 else value


def _broken(error: Exception, what: str) -> EngineError:
    words = str(error)
    # Below Java's stack trace is the line of Python that says it.
    for line in words.splitlines():
        if "Python worker exited" in line or "Error:" in line:
            words = line.strip()
    return EngineError("spark", f"{what}: {type(error).__name__}: {clip(words, 300)}")
