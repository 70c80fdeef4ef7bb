"""Batches offline: any iterable in, results streaming out in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

from mlkit._arguments import one_of, whole
from mlkit._optional import require
from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError, RowError
from mlkit.inference._batch.check import bucket_sizes
from mlkit.inference._batch.model import Model
from mlkit.inference._batch.modes import Modes
from mlkit.inference._batch.runner import Runner
from mlkit.inference._engines.loaded import Loaded
from mlkit.inference._offline.progress import how_many, reporter
from mlkit.inference._offline.rows import readable
from mlkit.inference._offline.sizes import LADDER, Sizes
from mlkit.inference._offline.steps import Steps
from mlkit.inference._offline.stream import Job
from mlkit.inference._offline.ways import Ways

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike
    from typing import Protocol

    from mlkit.inference._batch.collate import Pad
    from mlkit.inference._engines.engine import Engine
    from mlkit.inference._offline.checkpoint import Checkpoint

    _Item_co = TypeVar("_Item_co", covariant=True)

    class _Numbered(Protocol[_Item_co]):
        """A dataset that is read by number."""

        def __getitem__(self, place: int, /) -> _Item_co: ...


__all__ = ["kept_in", "map_batches", "rows_to_read", "set_up"]

_Row = TypeVar("_Row")
_Result = TypeVar("_Result")
_ON_ERROR = ("raise", "skip", "return")
_TABLES = {  # iterating one gives its columns, if anything; its rows are
    "DataFrame": "df.to_dict('records') (pandas) or df.iter_rows(named=True) (polars)",
    "LazyFrame": "df.collect().iter_rows(named=True)",
    "Table": "table.to_pylist()",
    "RecordBatch": "batch.to_pylist()",
}


@overload
def map_batches(
    fn: Callable[[Any], list[_Result]],
    rows: Iterable[_Row] | _Numbered[_Row],
    *,
    batch_size: int | Literal["auto"] = ...,
    on_error: Literal["raise", "skip"] = ...,
    buckets: Iterable[int] | None = ...,
    pad: Pad = ...,
    collate: Callable[[list[_Row]], Any] | None = ...,
    device: object = ...,
    isolate: bool = ...,
    length: Callable[[_Row], int] | None = ...,
    window: int | None = ...,
    widths: Iterable[int] | None = ...,
    exact: bool = ...,
    autocast: object = ...,
    compile: bool | Mapping[str, Any] = ...,
    graphs: bool = ...,
    checkpoint: str | PathLike[str] | None = ...,
    prefetch: int = ...,
    progress: bool | Callable[[int], object] | None = ...,
    name: str | None = ...,
    engine: Engine | None = ...,
) -> Iterator[_Result]: ...
@overload
def map_batches(
    fn: Callable[[Any], list[_Result]],
    rows: Iterable[_Row] | _Numbered[_Row],
    *,
    batch_size: int | Literal["auto"] = ...,
    on_error: Literal["return"],
    buckets: Iterable[int] | None = ...,
    pad: Pad = ...,
    collate: Callable[[list[_Row]], Any] | None = ...,
    device: object = ...,
    isolate: bool = ...,
    length: Callable[[_Row], int] | None = ...,
    window: int | None = ...,
    widths: Iterable[int] | None = ...,
    exact: bool = ...,
    autocast: object = ...,
    compile: bool | Mapping[str, Any] = ...,
    graphs: bool = ...,
    checkpoint: str | PathLike[str] | None = ...,
    prefetch: int = ...,
    progress: bool | Callable[[int], object] | None = ...,
    name: str | None = ...,
    engine: Engine | None = ...,
) -> Iterator[_Result | RowError]: ...
@overload
def map_batches(
    fn: Callable[[Any], Any],
    rows: Iterable[_Row] | _Numbered[_Row],
    *,
    batch_size: int | Literal["auto"] = ...,
    on_error: Literal["raise", "skip", "return"] = ...,
    buckets: Iterable[int] | None = ...,
    pad: Pad = ...,
    collate: Callable[[list[_Row]], Any] | None = ...,
    device: object = ...,
    isolate: bool = ...,
    length: Callable[[_Row], int] | None = ...,
    window: int | None = ...,
    widths: Iterable[int] | None = ...,
    exact: bool = ...,
    autocast: object = ...,
    compile: bool | Mapping[str, Any] = ...,
    graphs: bool = ...,
    checkpoint: str | PathLike[str] | None = ...,
    prefetch: int = ...,
    progress: bool | Callable[[int], object] | None = ...,
    name: str | None = ...,
    engine: Engine | None = ...,
) -> Iterator[Any]: ...
@overload
def map_batches(
    fn: Callable[[Any], Any],
    rows: object,
    *,
    batch_size: int | Literal["auto"] = ...,
    on_error: Literal["raise", "skip", "return"] = ...,
    buckets: Iterable[int] | None = ...,
    pad: Pad = ...,
    collate: Callable[[list[Any]], Any] | None = ...,
    device: object = ...,
    isolate: bool = ...,
    length: Callable[[Any], int] | None = ...,
    window: int | None = ...,
    widths: Iterable[int] | None = ...,
    exact: bool = ...,
    autocast: object = ...,
    compile: bool | Mapping[str, Any] = ...,
    graphs: bool = ...,
    name: str | None = ...,
    engine: Engine,
) -> Any: ...
def map_batches(
    fn: Callable[[Any], Any],
    rows: Any,
    *,
    batch_size: int | Literal["auto"] = 32,
    on_error: Literal["raise", "skip", "return"] = "raise",
    buckets: Iterable[int] | None = None,
    pad: Pad = None,
    collate: Callable[[list[Any]], Any] | None = None,
    device: object = None,
    isolate: bool = True,
    length: Callable[[Any], int] | None = None,
    window: int | None = None,
    widths: Iterable[int] | None = None,
    exact: bool = False,
    autocast: object = False,
    compile: bool | Mapping[str, Any] = False,  # noqa: A002 - torch's word
    graphs: bool = False,
    checkpoint: str | PathLike[str] | None = None,
    prefetch: int = 0,
    progress: bool | Callable[[int], object] | None = None,
    name: str | None = None,
    engine: Engine | None = None,
) -> Any:
    """Run *fn* on batches of *rows* and yield one result per row, in the order of the rows.

    Rows are collated as by `mlkit.inference.collate`, the output is cut as by `mlkit.inference.split`. One batch is
    read ahead of what is yielded, so an endless generator is fine. If *rows* itself raises, the rows before it have
    their results first. When *fn* fails, the batch is run again in halves
    until the rows that break it stand alone; when memory runs out, the batch is halved and the smaller size kept, and a
    larger one tried again later. *fn* may thus see a row more than once.

    Args:
        fn: Takes a batch, returns one output per row, in order. A torch module, which must be in evaluation mode, runs
            in `torch.inference_mode` on the device of its parameters; numpy rows are fed to it as tensors, and its
            outputs come back as arrays on the CPU.
        rows: Any iterable of rows, or a dataset that is read by number, `rows[0]` to `rows[len(rows) - 1]`. A row that differs in structure, dtype or shape from the majority of the first batch
            is a bad row.
        batch_size: Rows per call, at least 1. With `"auto"` the first batches have 8, 16, 32, ... rows, at most 4096 (or
            the sizes in *buckets*), two of each, until the time per row no longer falls; the smallest size within 5 % of
            the best is kept, and remembered for the function and device in this process. Where *pad* is given too, rows
            are planned instead: a *window* of them is sorted by length and cut into batches so that they cost least, by a
            cost per batch, row, entry and squared length that is fitted to the batches that ran. That reads a window of
            rows before the first result.
        on_error: What to do about a row that breaks *fn*: `"raise"` a `RowError` in its turn, `"skip"` it, or
            `"return"` the `RowError` in its place. If all rows of the first batch, two or more, fail alike, a
            `DegradedWarning` asks whether *fn* is broken, and `inference.rows.failed` is emitted.
        buckets: Batch sizes to keep to, e.g. `[8, 32]`: a smaller batch is filled up to the next one by repeating its
            last row, and the surplus is cut off. The largest must reach *batch_size*.
        pad: Fills up sequences of different lengths, see `mlkit.inference.collate`. They reach *fn* as `Padded`.
        collate: Your own function from a list of rows to a batch, instead of `mlkit.inference.collate`.
        device: Run on this torch device: tensors and arrays are moved there, through pinned memory on CUDA, and outputs
            back to where the rows were. Several devices, `["cuda:0", "cuda:1"]`, each get a copy of the module, a thread,
            and an equal share of the rows, which are then read some batches at a time; a function that is no module is
            called by all of the threads.
        isolate: Whether *fn* may be run again to find the bad rows of a failed batch. If not, all its rows fail.
        length: How long a row is, at least 0, for planning rows that are not padded here, e.g. `len` for texts that *fn*
            takes apart itself. With it, or with *window*, rows are planned whatever *batch_size* is, which is then the
            most rows per call.
        window: How many rows are planned together; by default 4096. Rows and results of a window are in memory at once.
        widths: Lengths that padded leaves are filled up to, e.g. `[32, 64, 128]`, so that a model meets few shapes; beyond
            the last one powers of two and one and a half times those.
        exact: Whether a row's result is the same bits whatever rows are beside it, how many, and in which order. Every call
            then has *batch_size* rows, filled up by repeating the last one, and padded rows run with those of their own
            width, by default 8, 12, 16, 24, 32, ... entries. The first rows of each width are run several times to see
            that this suffices; where it does not, a `DegradedWarning` says so and rows run one at a time. It holds for
            one machine, device, number of threads and *batch_size*.
        autocast: Run torch operations in half precision where torch deems it right: `"bfloat16"`, `"float16"`, or True for
            the device's default. Results that are arrays come back as float32 from bfloat16.
        compile: Whether to compile *fn* with `torch.compile`, or its options, e.g. `{"dynamic": True}`. Each new shape may
            compile again: give *buckets*, and *widths* if rows are padded.
        graphs: Whether to capture the calls of a model on CUDA as graphs, one for each shape, and to replay them. It pays
            for small models; *buckets* and *widths* keep the shapes few.
        checkpoint: A file that keeps the results of each batch, written before they are yielded. A job that was killed
            and is started again with the same rows and arguments yields what the file holds, reads past the rows of
            it, and runs the rest. Failed rows are kept too, unless *on_error* is `"raise"`. Results must be numbers,
            text, bytes, None, arrays, tensors, or dicts, lists, tuples, named tuples and dataclasses of them; no
            pickle is written or read.
        prefetch: How many batches a thread reads from *rows* and collates while the model runs, counting the one it is
            reading; on CUDA it also copies them to the device, on a stream of its own. 0 reads in the calling thread,
            which iterators that are bound to one thread need.
        progress: True for a tqdm bar, False for none, or a callable that is given the number of rows each batch finished,
            like `bar.update`. By default a bar if the standard error is a terminal, tqdm is installed and the job
            takes more than half a second.
        name: What events call this job; by default the name of *fn*.
        engine: Where to run instead of in this process: `mlkit.integrations.dask.dask(client)`,
            `mlkit.integrations.ray.ray()`, `mlkit.integrations.spark.spark(session)`, or your own `Engine`. Rows are
            sent in chunks of whole batches, a few ahead of what is yielded, which takes the place of *prefetch*; *fn*
            is pickled, or is a `Loaded` model, which is loaded once in each worker. *device* is looked for there.

    Returns:
        An iterator over the results. Those made of arrays and tensors are views into a copy of their batch's output, which
        has no autograd graph. If *rows* is a
        dataset of the engine, e.g. a Spark DataFrame, a dataset of the results, which runs when the engine runs it.

    Raises:
        ConfigurationError: If an argument is wrong or *device* is not there; at the call, not at the first result.
        RowError: For a bad row, with its index and the model's own error as `__cause__`.
        OutputShapeError: If *fn* does not return one output per row, whatever *on_error* says: no row is to blame.
        CheckpointError: If *checkpoint* is the file of another job, at the call, or of other rows, is in use, or cannot
            hold a result.
        EngineError: If the engine's cluster is not there, *fn* cannot be loaded in a worker, or a worker died more often
            than the engine allows.
        MissingDependencyError: If *device* or *progress* needs a package that is not installed.

    Examples:
        >>> import numpy as np
        >>> rows = (np.array([i, i + 1.0]) for i in range(5))
        >>> [float(total) for total in map_batches(lambda batch: batch.sum(axis=1), rows, batch_size=2)]
        [1.0, 3.0, 5.0, 7.0, 9.0]

    Note:
        A batch of `n` rows of which `k` are bad costs at most about `2 * k * log2(n)` further calls.
    """
    one_of("map_batches(on_error=...)", on_error, _ON_ERROR)
    n_ahead = whole("map_batches(prefetch=...)", prefetch)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "buckets": buckets,
        "pad": pad,
        "collate": collate,
        "device": device,
        "isolate": isolate,
        "length": length,
        "window": window,
        "widths": widths,
        "exact": exact,
        "autocast": autocast,
        "compile": compile,
        "graphs": graphs,
        "name": name,
    }
    if engine is not None:
        from mlkit.inference._engines.distribute import distribute

        return distribute(
            engine, fn, rows, options, on_error=on_error, checkpoint=checkpoint, progress=progress
        )
    if isinstance(fn, Loaded):
        options["name"], fn = name or fn.name, fn.load()
    rows = rows_to_read(rows)
    runner, sizes = set_up(fn, **options)
    runner.check_device()
    if isinstance(runner, Steps):
        runner.hasty, runner.ahead = on_error == "raise", n_ahead > 0
    try:
        source = iter(rows)
    except TypeError as error:  # an array without axes, for one
        raise ConfigurationError("map_batches(rows)", rows, "an iterable of rows") from error
    kept = None
    if checkpoint is not None:
        kept = kept_in(checkpoint, runner, batch_size, rows)
    job = Job(
        runner,
        source,
        sizes,
        on_error=on_error,
        checkpoint=kept,
        prefetch=n_ahead,
    )
    finished, close = reporter(progress, rows, runner.name)
    results = job.results(finished)
    return results if close is None else _closing(results, close)


class Setup(NamedTuple):
    """What runs batches, and how large they are.

    Attributes:
        runner: Runs them.
        sizes: Says how many rows the next one has.
    """

    runner: Runner | Steps
    sizes: Sizes


def set_up(
    fn: Callable[[Any], Any],
    *,
    batch_size: int | Literal["auto"],
    buckets: Iterable[int] | None,
    pad: Pad,
    collate: Callable[[list[Any]], Any] | None,
    device: object,
    isolate: bool,
    length: Callable[[Any], int] | None,
    window: int | None,
    widths: Iterable[int] | None,
    exact: bool,
    autocast: object,
    compile: bool | Mapping[str, Any],  # noqa: A002 - torch's word
    graphs: bool,
    name: str | None,
) -> Setup:
    """Return what `map_batches` runs with these arguments, wherever it runs."""
    ladder = _ladder(batch_size, buckets)
    ways = Ways.chosen(
        batch_size=batch_size,
        buckets=buckets,
        pad=pad,
        collate=collate,
        length=length,
        window=window,
        widths=widths,
        exact=exact,
    )
    modes = Modes.chosen(owner="map_batches", autocast=autocast, compile=compile, graphs=graphs)
    places = _devices(device)

    def made(model: Callable[[Any], Any], where: object, most: int, sizes: Any) -> Runner:
        return Runner(
            model,
            owner="map_batches",
            name=name,
            limit=("batch_size", most),
            buckets=sizes,
            pad=pad,
            collate=collate,
            device=where,
            isolate=isolate,
            group=False,
            widths=ways.widths,
            modes=modes,
        )

    if len(places) > 1 and len(ladder) > 1 and not ways.planned:
        raise ConfigurationError(
            "map_batches(batch_size=...)", batch_size, "a number on several devices, without pad="
        )
    from mlkit.inference._offline.lanes import Lane

    lanes: list[Lane] = []
    for model, where in zip(_copies(fn, places), places, strict=True):
        fixed = made(model, where, ladder[-1], ladder[-1:] if exact else buckets)
        alone = made(model, where, 1, None) if exact else None
        lanes.append(Lane(fixed, ways.way(fixed, alone, pad)))
    runner = ways.steps(lanes, pad)
    if isinstance(runner, Steps):
        rows = ways.rows_at_once(runner.limit, pad, len(lanes))
        return Setup(runner, Sizes([rows]))
    sizes = Sizes(ladder, *runner.identity) if len(ladder) > 1 else Sizes([runner.limit])
    return Setup(runner, sizes)


def _devices(device: object) -> list[Any]:
    """Return the devices that were asked for; None is one too, the model's own."""
    if not isinstance(device, (list, tuple)):
        return [device]
    if not device:
        raise ConfigurationError("map_batches(device=...)", device, "a device, or some devices")
    return list(device)


def _copies(fn: Callable[[Any], Any], devices: list[Any]) -> list[Callable[[Any], Any]]:
    """Return what to run on each device."""
    if len(devices) == 1:
        return [fn]
    require("torch", extra="torch", feature="map_batches(device=[...])")
    from mlkit.inference._offline.lanes import replicas

    for device in devices:  # before anything is copied to it
        Model(len, device, owner="map_batches").check_device()
    return replicas(fn, devices)


def rows_to_read(rows: Any) -> Iterable[Any]:
    """Return *rows*, or what reads them one by one; refuse what is no iterable of rows and no dataset."""
    kind = type(rows).__name__
    if kind in _TABLES:
        expected, hint = "an iterable of rows, not of columns", f"pass {_TABLES[kind]}"
        raise ConfigurationError("map_batches(rows)", kind, expected, hint=hint)
    rows = readable(rows)
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise ConfigurationError(
            "map_batches(rows)",
            kind,
            "an iterable of rows",
            hint="for columns, pass rows of dicts",
        )
    return rows


def _ladder(batch_size: object, buckets: Iterable[int] | None) -> tuple[Any, ...]:
    """Return the batch sizes to try: the one that was asked for, or, for "auto", the buckets or powers of two."""
    if not isinstance(batch_size, str):
        return (batch_size,)
    if batch_size != "auto":
        near = did_you_mean(batch_size, ["auto"]).removeprefix("; ")
        expected = "a whole number >= 1, or 'auto'"
        raise ConfigurationError("map_batches(batch_size=...)", batch_size, expected, hint=near)
    where = "map_batches(buckets=...)"
    return bucket_sizes(where, buckets, largest=1, limit="batch_size") or LADDER


def kept_in(
    path: str | PathLike[str], runner: Runner | Steps, batch_size: object, rows: Iterable[Any]
) -> Checkpoint:
    """Return the checkpoint at *path*; a file of another job is refused."""
    from mlkit.inference._offline.checkpoint import Checkpoint

    size = "auto" if isinstance(batch_size, str) else runner.limit
    job = {**runner.settings, "batch_size": size, "rows": how_many(rows)}
    kept = Checkpoint(path, job)
    kept.check()
    return kept


def _closing(results: Iterator[Any], close: Callable[[], object]) -> Iterator[Any]:
    try:
        yield from results
    finally:
        close()
