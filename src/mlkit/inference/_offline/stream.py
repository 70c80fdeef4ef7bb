"""The loop under `map_batches`: read, run, store, deliver."""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._suggest import clip
from mlkit.errors import DegradedWarning, OutputShapeError, RowError
from mlkit.inference._batch.runner import Failure, Runner
from mlkit.inference._offline.rows import chunks
from mlkit.inference._offline.steps import Steps
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from mlkit.inference._offline.checkpoint import Checkpoint, Stored
    from mlkit.inference._offline.rows import Chunk
    from mlkit.inference._offline.sizes import Sizes

__all__ = ["Job", "doubt"]


@final
class Job:
    """One run of `map_batches`.

    Args:
        runner: Runs batches.
        source: The rows.
        sizes: How large the batches are.
        on_error: What to do about bad rows.
        checkpoint: Where to keep results, or None.
        prefetch: How many batches to read ahead.
        n_before: How many rows of the input came before *source*.
    """

    def __init__(
        self,
        runner: Runner | Steps,
        source: Iterator[Any],
        sizes: Sizes,
        *,
        on_error: str,
        checkpoint: Checkpoint | None,
        prefetch: int,
        n_before: int = 0,
    ) -> None:
        self._runner, self._source, self._sizes = runner, source, sizes
        self._on_error, self._checkpoint, self._prefetch = on_error, checkpoint, prefetch
        self._n_rows = n_before
        self._failed = False  # the batch that is delivered may hold a `Failure`

    def results(self, finished: Callable[[int], object] | None) -> Iterator[Any]:
        """Yield one result per row, or what stands for it."""
        steps = self._runner if isinstance(self._runner, Steps) else None
        if steps is not None:
            steps.finished = finished
        with self._checkpoint or nullcontext():
            batches = self.batches()
            try:
                for results in batches:
                    if self._n_rows == len(results) and self._on_error != "raise":
                        doubt(self._runner, results)
                    n_rows = len(results)
                    results.reverse()
                    if not self._failed:
                        while results:
                            yield results.pop()  # no name here keeps it alive meanwhile
                    while results:
                        if not isinstance(results[-1], Failure):
                            yield results.pop()
                            continue
                        error = results.pop().error
                        if self._on_error == "raise" or not isinstance(error, RowError):
                            raise error
                        if self._on_error == "return":
                            yield error
                        del error
                    told = 0 if steps is None else steps.told
                    if finished is not None and n_rows > told:
                        finished(n_rows - told)
            finally:
                batches.close()

    def batches(self) -> Generator[list[Any], None, None]:
        """Yield the results of each batch, each a value or a `Failure`: those that are stored, then those that are not."""
        if self._checkpoint is not None:
            for stored in self._checkpoint.replay(self._source, self._resume):
                self._n_rows += stored.n_rows
                last, self._failed = stored.last, True
                yield stored.results
                del stored
                if last:
                    return
        stage = None
        if self._prefetch and isinstance(self._runner, Runner):
            self._runner.leave_thread()
            stage = self._runner.stage
        for chunk in chunks(self._source, self._sizes, self._prefetch, stage):
            results = self._run(chunk)
            error = chunk.error
            chunk.rows.clear()  # the reader still names it
            del chunk
            yield results
            del results
            if error is not None:
                raise error

    def _resume(self, stored: Stored, rows: list[Any]) -> None:
        """Be where the run was that has stored this."""
        runner = self._runner
        example = runner.example if stored.example is None else [rows[stored.example]]
        worked = runner.worked or not all(isinstance(one, Failure) for one in stored.results)
        runner.resume(example, stored.state, worked=worked)
        if stored.batch_size is not None and not self._sizes.settled:
            self._sizes.settle(stored.batch_size)

    def _run(self, chunk: Chunk) -> list[Any]:
        runner = self._runner
        had_example = bool(runner.example)
        results: list[Any] = []
        if chunk.staged and isinstance(runner, Runner):
            results = runner.run(chunk.rows, chunk.staged.pop())
        elif chunk.rows:
            results = self._timed(chunk.rows)
        self._failed = runner.failed
        for place, result in enumerate(results if runner.failed else ()):
            if isinstance(result, Failure) and not result.of_the_program:
                results[place] = _blame(result, self._n_rows + place)
            elif isinstance(result, Failure) and isinstance(result.error, OutputShapeError):
                rows = f"{self._n_rows} to {self._n_rows + len(results) - 1}"
                error = copy(result.error)  # one for all rows of the batch
                error.args = (f"{error}; it happened among rows {rows}",)
                results[place] = result._replace(error=error)
        if self._checkpoint is not None and self._storable(chunk, results):
            from mlkit.inference._offline.checkpoint import Stored

            example = None
            if runner.example and not had_example:
                example = next(i for i, row in enumerate(chunk.rows) if row is runner.example[0])
            size = self._sizes.size if self._sizes.settled else None
            last = chunk.last and chunk.error is None
            stored = Stored(len(results), results, last, example, runner.learned, size)
            self._checkpoint.append(chunk.rows, self._n_rows, stored)
        self._n_rows += len(results)
        return results

    def _storable(self, chunk: Chunk, results: list[Any]) -> bool:
        """Return whether a later run shall not run these rows again."""
        for result in results:
            if isinstance(result, Failure) and (
                self._on_error == "raise" or not isinstance(result.error, RowError)
            ):
                return False
        return bool(results) or (chunk.last and chunk.error is None)

    def _timed(self, rows: list[Any]) -> list[Any]:
        runner = self._runner
        if self._sizes.settled:
            return runner.run(rows)
        clock = current()
        n_calls, start = runner.calls, clock.monotonic()
        results = runner.run(rows)
        runner.wait()
        seconds = clock.monotonic() - start
        self._sizes.observe(
            len(rows), seconds, plain=runner.calls == n_calls + 1, limit=runner.limit
        )
        return results


def _blame(failure: Failure, index: int) -> Failure:
    """Return *failure* with the error that names the row by its place in the input."""
    error = RowError(index, failure.error)
    if failure.hint:
        error.args = (f"{error}; {failure.hint}",)
    return failure._replace(error=error)


def doubt(runner: Runner | Steps, results: list[Any]) -> None:
    """Say so when all rows of the first batch failed alike, which hides a function that never works."""
    if len(results) < 2 or not all(
        isinstance(result, Failure) and isinstance(result.error, RowError) for result in results
    ):
        return
    causes = [result.error.__cause__ for result in results]
    if None in causes:  # from a checkpoint: doubted when it was run
        return
    try:
        said = {(type(cause), str(cause)) for cause in causes}
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
