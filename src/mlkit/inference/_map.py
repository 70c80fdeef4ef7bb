"""Batches offline: any iterable in, results streaming out in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from mlkit._arguments import one_of
from mlkit._optional import require
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, DegradedWarning, RowError
from mlkit.inference._runner import Failure, Runner
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlkit.inference._collate import Pad

__all__ = ["map_batches"]

_Row = TypeVar("_Row")
_Result = TypeVar("_Result")
_ON_ERROR = ("raise", "skip", "return")


@overload
def map_batches(
    fn: Callable[[Any], list[_Result]],
    rows: Iterable[_Row],
    *,
    batch_size: int = ...,
    on_error: Literal["raise", "skip"] = ...,
    buckets: Iterable[int] | None = ...,
    pad: Pad = ...,
    collate: Callable[[list[_Row]], Any] | None = ...,
    device: object = ...,
    isolate: bool = ...,
    progress: bool | Callable[[int], object] = ...,
    name: str | None = ...,
) -> Iterator[_Result]: ...
@overload
def map_batches(
    fn: Callable[[Any], list[_Result]],
    rows: Iterable[_Row],
    *,
    batch_size: int = ...,
    on_error: Literal["return"],
    buckets: Iterable[int] | None = ...,
    pad: Pad = ...,
    collate: Callable[[list[_Row]], Any] | None = ...,
    device: object = ...,
    isolate: bool = ...,
    progress: bool | Callable[[int], object] = ...,
    name: str | None = ...,
) -> Iterator[_Result | RowError]: ...
@overload
def map_batches(
    fn: Callable[[Any], Any],
    rows: Iterable[_Row],
    *,
    batch_size: int = ...,
    on_error: Literal["raise", "skip", "return"] = ...,
    buckets: Iterable[int] | None = ...,
    pad: Pad = ...,
    collate: Callable[[list[_Row]], Any] | None = ...,
    device: object = ...,
    isolate: bool = ...,
    progress: bool | Callable[[int], object] = ...,
    name: str | None = ...,
) -> Iterator[Any]: ...
def map_batches(
    fn: Callable[[Any], Any],
    rows: Iterable[Any],
    *,
    batch_size: int = 32,
    on_error: Literal["raise", "skip", "return"] = "raise",
    buckets: Iterable[int] | None = None,
    pad: Pad = None,
    collate: Callable[[list[Any]], Any] | None = None,
    device: object = None,
    isolate: bool = True,
    progress: bool | Callable[[int], object] = False,
    name: str | None = None,
) -> Iterator[Any]:
    """Run *fn* on batches of *rows* and yield one result per row, in the order of the rows.

    Rows are collated as by `mlkit.inference.collate`, the output is cut as by `mlkit.inference.split`. One batch is
    read ahead of what is yielded, so an endless generator is fine. When *fn* fails, the batch is run again in halves
    until the rows that break it stand alone; when memory runs out, the batch is halved and the smaller size kept, and a
    larger one tried again later. *fn* may thus see a row more than once.

    Args:
        fn: Takes a batch, returns one output per row, in order. A torch module, which must be in evaluation mode, runs
            in `torch.inference_mode` on the device of its parameters; numpy rows are fed to it as tensors, and its
            outputs come back as arrays on the CPU.
        rows: Any iterable of rows. A row that differs in structure, dtype or shape from the majority of the first batch
            is a bad row.
        batch_size: Rows per call, at least 1.
        on_error: What to do about a row that breaks *fn*: `"raise"` a `RowError` in its turn, `"skip"` it, or
            `"return"` the `RowError` in its place. If all rows of the first batch, two or more, fail alike, a
            `DegradedWarning` asks whether *fn* is broken, and `inference.rows.failed` is emitted.
        buckets: Batch sizes to keep to, e.g. `[8, 32]`: a smaller batch is filled up to the next one by repeating its
            last row, and the surplus is cut off. The largest must reach *batch_size*.
        pad: Fills up sequences of different lengths, see `mlkit.inference.collate`. They reach *fn* as `Padded`.
        collate: Your own function from a list of rows to a batch, instead of `mlkit.inference.collate`.
        device: Run on this torch device: tensors and arrays are moved there, through pinned memory on CUDA, and outputs
            back to where the rows were.
        isolate: Whether *fn* may be run again to find the bad rows of a failed batch. If not, all its rows fail.
        progress: True for a tqdm bar, or a callable that is given the number of rows each batch finished, like
            `bar.update`.
        name: What events call this job; by default the name of *fn*.

    Returns:
        An iterator over the results. Those made of arrays and tensors are views into their batch.

    Raises:
        ConfigurationError: If an argument is wrong or *device* is not there; at the call, not at the first result.
        RowError: For a bad row, with its index and the model's own error as `__cause__`.
        OutputShapeError: If *fn* does not return one output per row, whatever *on_error* says: no row is to blame.
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
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise ConfigurationError(
            "map_batches(rows)",
            type(rows).__name__,
            "an iterable of rows",
            hint="for columns, pass rows of dicts",
        )
    if type(rows).__name__ in {"DataFrame", "LazyFrame"}:
        raise ConfigurationError(
            "map_batches(rows)",
            type(rows).__name__,
            "an iterable of rows, not of columns",
            hint="pass df.to_dict('records') (pandas) or df.iter_rows(named=True) (polars)",
        )
    if not (isinstance(progress, bool) or callable(progress)):
        raise ConfigurationError("map_batches(progress=...)", progress, "True, False or a callable")
    runner = Runner(
        fn,
        owner="map_batches",
        name=name,
        limit=("batch_size", batch_size),
        buckets=buckets,
        pad=pad,
        collate=collate,
        device=device,
        isolate=isolate,
        group=False,
    )
    runner.check_device()
    try:
        source = iter(rows)
    except TypeError as error:  # an array without axes, for one
        raise ConfigurationError("map_batches(rows)", rows, "an iterable of rows") from error
    finished, close = _progress(progress, rows, runner.name)
    results = _stream(runner, source, batch_size, on_error, finished)
    return results if close is None else _closing(results, close)


def _stream(
    runner: Runner,
    source: Iterator[Any],
    batch_size: int,
    on_error: str,
    finished: Callable[[int], object] | None,
) -> Iterator[Any]:
    index = 0
    while batch := list(islice(source, batch_size)):
        n_rows = len(batch)
        results = runner.run(batch)
        del batch
        if not index and on_error != "raise":
            _doubt(runner, results)
        results.reverse()
        for place in range(n_rows):
            if not isinstance(results[-1], Failure):
                yield results.pop()  # no name here keeps it alive meanwhile
                continue
            failure = results.pop()
            if failure.of_the_program:
                raise failure.error
            error = RowError(index + place, failure.error)
            if failure.hint:
                error.args = (f"{error}; {failure.hint}",)
            if on_error == "raise":
                raise error
            if on_error == "return":
                yield error
            del failure, error
        index += n_rows
        if finished is not None:
            finished(n_rows)


def _doubt(runner: Runner, results: list[Any]) -> None:
    """Say so when all rows of the first batch failed alike, which hides a function that never works."""
    if len(results) < 2 or any(
        not isinstance(result, Failure) or result.of_the_program for result in results
    ):
        return
    try:
        said = {(type(result.error), str(result.error)) for result in results}
    except Exception:  # noqa: BLE001 - errors that cannot be shown cannot be compared
        return
    if len(said) > 1:
        return
    (kind, text), hint = said.pop(), results[0].hint
    emit(
        "inference.rows.failed",
        runner.name,
        rows=len(results),
        failed=len(results),
        error_type=kind.__name__,
    )
    import warnings

    question = "is the function broken?"
    if results[0].n_rows > 1:  # not run one by one
        question = "is the function broken, or one of the rows? isolate=False does not tell"
    warnings.warn(
        f"all {len(results)} rows of the first batch failed alike: {kind.__name__}: {clip(text, 400)}; "
        f"{hint + '; ' if hint else ''}{question}",
        DegradedWarning,
        stacklevel=3,
    )


def _progress(
    progress: bool | Callable[[int], object],  # noqa: FBT001 - the public argument as it came
    rows: Iterable[Any],
    name: str,
) -> tuple[Callable[[int], object] | None, Callable[[], object] | None]:
    if callable(progress):
        return progress, None
    if not progress:
        return None, None
    tqdm = require("tqdm", extra="demo", feature="map_batches(progress=True)")
    bar = tqdm.tqdm(total=_length(rows), unit="row", desc=name)
    return bar.update, bar.close


def _closing(results: Iterator[Any], close: Callable[[], object]) -> Iterator[Any]:
    try:
        yield from results
    finally:
        close()


def _length(rows: Iterable[Any]) -> int | None:
    try:
        return len(rows)  # type: ignore[arg-type]
    except TypeError:
        return None
