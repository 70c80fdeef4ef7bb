"""`map_batches` on an engine: chunks of rows go out, their results come back in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.errors import ConfigurationError, EngineError
from mlkit.inference._batch.runner import Failure
from mlkit.inference._engines.loaded import Loaded
from mlkit.inference._engines.packing import packed
from mlkit.inference._engines.unpicklable import pickled
from mlkit.inference._engines.wire import Answer, Task, unpickled
from mlkit.inference._engines.work import Work, opened, place
from mlkit.inference._offline.map import kept_in, rows_to_read, set_up
from mlkit.inference._offline.progress import reporter
from mlkit.inference._offline.stream import doubt
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from os import PathLike

    from mlkit.inference._engines.engine import Engine, Session
    from mlkit.inference._offline.checkpoint import Checkpoint, Stored
    from mlkit.inference._offline.map import Setup

__all__ = ["distribute"]

_AHEAD = 2  # tasks per slot: one runs, one waits
_MAX_AHEAD = 256
_LONG = 0.25  # seconds; a task that takes as long makes what sending it costs small
_MAX_BYTES = 4 * 2**20  # of a task; more would pass through a scheduler's memory
_MAX_ROWS = 65_536


def distribute(
    engine: Engine,
    fn: Callable[[Any], Any],
    rows: Any,
    options: dict[str, Any],
    *,
    on_error: str,
    checkpoint: str | PathLike[str] | None,
    progress: bool | Callable[[int], object] | None,
) -> Any:
    """Run `map_batches` with *options* on *engine*; arguments are refused here, not in a worker."""
    _check_engine(engine)
    for name in ("buckets", "widths"):
        if isinstance(options[name], Iterator):  # it goes to many workers
            options[name] = [*options[name]]
    if isinstance(fn, Loaded):
        options["name"] = options["name"] or fn.name
    setup = set_up(fn, **options)
    engine.check()
    work = Work(
        pickled(engine, fn, options),
        engine.dumps,
        engine=engine.name,
        name=setup.runner.name,
        on_error=on_error,
    )
    dataset = engine.dataset(work, rows)
    if dataset is not NotImplemented:
        _refuse_for_datasets(engine, rows, checkpoint, progress)
        return dataset
    rows = rows_to_read(rows)
    try:
        source = iter(rows)
    except TypeError as error:  # an array without axes, for one
        raise ConfigurationError("map_batches(rows)", rows, "an iterable of rows") from error
    kept = None
    if checkpoint is not None:
        kept = kept_in(checkpoint, setup.runner, options["batch_size"], rows)
    finished, close = reporter(progress, rows, setup.runner.name)
    job = _Job(engine, work, setup, source, on_error=on_error, checkpoint=kept)
    return job.results(finished, close)


def _check_engine(engine: Any) -> None:
    if not all(
        callable(getattr(engine, name, None)) for name in ("check", "dataset", "dumps", "open")
    ):
        raise ConfigurationError(
            "map_batches(engine=...)",
            engine,
            "an engine",
            hint="such as mlkit.integrations.dask.dask(client)",
        )


def _refuse_for_datasets(
    engine: Engine, rows: object, checkpoint: object, progress: object
) -> None:
    kind = f"{type(rows).__module__.partition('.')[0]} {type(rows).__name__}"
    if checkpoint is not None:
        raise ConfigurationError(
            "map_batches(checkpoint=...)",
            str(checkpoint),
            f"None for a {kind}, whose results stay in {engine.name}",
            hint="pass an iterable of rows, or keep the result as that library does",
        )
    if progress:
        raise ConfigurationError(
            "map_batches(progress=...)",
            progress,
            f"None or False for a {kind}, which runs when {engine.name} runs it",
            hint=f"{engine.name} shows its own progress",
        )


class _Chunk(NamedTuple):
    """Rows that were sent.

    Attributes:
        n_rows: How many.
        rows: They themselves, while a checkpoint or the next task needs them.
        wait: Waits for the answer.
        size: How large chunks were to be.
    """

    n_rows: int
    rows: list[Any]
    wait: Callable[[], bytes]
    size: int


@final
class _Job:
    """One run of `map_batches` on an engine.

    Args:
        engine: Where.
        work: What.
        setup: What would run here; it says how large a batch is, and is run nowhere.
        source: The rows.
        on_error: What to do about bad rows.
        checkpoint: Where to keep results, or None.
    """

    def __init__(
        self,
        engine: Engine,
        work: Work,
        setup: Setup,
        source: Iterator[Any],
        *,
        on_error: str,
        checkpoint: Checkpoint | None,
    ) -> None:
        self._engine, self._work, self._runner = engine, work, setup.runner
        self._source, self._on_error, self._checkpoint = source, on_error, checkpoint
        self._n_read = self._n_rows = 0  # rows sent, rows answered
        self._example = b""
        self._batch = self._size = setup.sizes.size
        self._most = _MAX_ROWS
        self._last = False
        self._raised: Exception | None = None  # by the iterator of rows

    def results(
        self, finished: Callable[[int], object] | None, close: Callable[[], object] | None
    ) -> Iterator[Any]:
        """Yield one result per row, or what stands for it."""
        try:
            with self._checkpoint or nullcontext():
                blocks = self._blocks()
                try:
                    for block in blocks:
                        n_rows = len(block)
                        yield from self._delivered(block)
                        if finished is not None:
                            finished(n_rows)
                finally:
                    blocks.close()
        finally:
            if close is not None:
                close()

    def _delivered(self, results: list[Any]) -> Iterator[Any]:
        results.reverse()
        while results:
            if not isinstance(results[-1], Failure):
                yield results.pop()  # no name here keeps it alive meanwhile
                continue
            error = results.pop().error
            if self._on_error == "raise":
                raise error
            if self._on_error == "return":
                yield error
            del error

    def _blocks(self) -> Generator[list[Any], None, None]:
        """Yield the results of each chunk, each a value or a `Failure`."""
        if self._checkpoint is not None:
            for stored in self._checkpoint.replay(self._source, self._resume):
                self._n_read = self._n_rows = self._n_rows + stored.n_rows
                self._last = stored.last
                yield stored.results
                del stored
        if self._last:
            return
        session = self._engine.open(self._work)
        try:
            yield from self._answers(session)
        finally:
            session.close()
        if self._raised is not None:
            raise self._raised

    def _answers(self, session: Session) -> Iterator[list[Any]]:
        under_way: deque[_Chunk] = deque()
        while True:
            # The first batch goes alone: it settles what all other rows must look like, and whether the model works.
            window = min(_AHEAD * session.slots(), _MAX_AHEAD) if self._n_rows else 1
            while not self._last and len(under_way) < window:
                chunk = self._send(session)
                if chunk is not None:
                    under_way.append(chunk)
            if not under_way:
                return
            chunk = under_way.popleft()
            answer = self._answer(chunk)
            results = self._taken(chunk, answer, last=self._last and not under_way)
            del chunk
            yield results
            del results
            if answer.error is not None:
                raise opened(answer, self._engine.name)

    def _answer(self, chunk: _Chunk) -> Answer:
        rows = f"for rows {self._n_rows} to {self._n_rows + chunk.n_rows - 1}"
        try:
            answer = Answer(*unpickled(chunk.wait()))
        except EngineError as error:
            raise EngineError(error.engine, f"{rows}, {error.reason}") from error.__cause__
        if answer.doing:
            return answer._replace(doing=f"{rows}, {answer.doing}")
        return answer

    def _send(self, session: Session) -> _Chunk | None:
        rows: list[Any] = []
        try:
            rows.extend(islice(self._source, self._size))
            self._last = len(rows) < self._size
        except Exception as error:  # noqa: BLE001 - it is raised after the results of the rows before it
            self._last, self._raised = True, error
        if not rows:
            return None
        task = pickled(self._engine, Task(self._n_read, packed(rows), self._example))
        self._n_read += len(rows)
        self._most = max(self._batch, min(_MAX_ROWS, _MAX_BYTES * len(rows) // len(task)))
        n_rows, size = len(rows), self._size
        if self._checkpoint is None and self._n_rows:
            rows = []
        return _Chunk(n_rows, rows, session.submit(task), size)

    def _taken(self, chunk: _Chunk, answer: Answer, *, last: bool) -> list[Any]:
        """Learn from an answer, keep its results, and return them."""
        results = answer.unpacked()
        for kind, name, fields in answer.events if answer.worker != place() else ():
            emit(kind, name, **fields)
        first = not self._n_rows
        if answer.example is not None and chunk.rows and not self._example:
            self._example = self._engine.dumps(chunk.rows[answer.example])
        if self._checkpoint is not None and self._storable(results, answer):
            from mlkit.inference._offline.checkpoint import Stored

            ended = last and self._raised is None
            stored = Stored(len(results), results, ended, answer.example, None, None)
            self._checkpoint.append(chunk.rows, self._n_rows, stored)
        self._n_rows += len(results)
        if first and self._on_error != "raise" and answer.error is None:
            doubt(self._runner, results)
        self._adapt(chunk, answer)
        return results

    def _adapt(self, chunk: _Chunk, answer: Answer) -> None:
        """Let chunks be as large as is worth sending, in whole batches."""
        if chunk.size == self._size and answer.n_rows:
            wanted = answer.n_rows * _LONG / max(answer.seconds, 1e-6)
            if not _LONG / 2 < answer.seconds < _LONG * 2:
                self._size = min(int(wanted), 8 * self._size)
        whole = max(min(self._size, self._most) // self._batch, 1)
        self._size = whole * self._batch

    def _storable(self, results: list[Any], answer: Answer) -> bool:
        """Return whether a later run shall not run these rows again."""
        if answer.error is not None or not results:
            return False
        return self._on_error != "raise" or not any(isinstance(one, Failure) for one in results)

    def _resume(self, stored: Stored, rows: list[Any]) -> None:
        """Be where the run was that has stored this."""
        if stored.example is not None:
            self._example = self._engine.dumps(rows[stored.example])
