"""What a worker of an engine does: hold one model, and run tasks with it."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._digest import digest_bytes
from mlkit._suggest import clip
from mlkit.errors import EngineError, RowError
from mlkit.inference._batch.runner import Failure
from mlkit.inference._engines.loaded import Loaded
from mlkit.inference._engines.packing import packed, unpacked
from mlkit.inference._engines.wire import Answer, Sent, Task, received, sent, unpickled
from mlkit.telemetry import listen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlkit.inference._offline.map import Setup

__all__ = ["Partition", "Work", "forget", "opened", "place"]

_KEPT = 2  # models that a process holds on to; a worker may serve two jobs in turn

# In each process. A model is in its queue while nobody runs it: one thread does at a time, and one loads it.
_models: dict[str, SimpleQueue[_Held]] = {}
_lock = Lock()


@final
class _Held:
    """A model, once it is loaded, and the row that its rows had to fit last."""

    __slots__ = ("example", "setup")

    def __init__(self) -> None:
        self.setup: Setup | None = None
        self.example = b""


def _turns(key: str) -> SimpleQueue[_Held]:
    with _lock:
        turns = _models.pop(key, None)
        if turns is None:
            turns = SimpleQueue()
            turns.put(_Held())
        _models[key] = turns  # the one that was wanted last is the last to go
        while len(_models) > _KEPT:
            del _models[next(iter(_models))]
    return turns


def forget(key: str) -> None:
    """Let go of the model of the work with this key in this process."""
    with _lock:
        _models.pop(key, None)


@final
class Work:
    """A function from the bytes of a task to the bytes of its answer, made by `map_batches` and given to an `Engine`.

    Its first call in a process loads the model; a process holds on to the two models it used last. Pickles, as large as
    the model if that was not given as `Loaded`; equal ones share a model. Thread-safe: one thread runs a model at a
    time, the others wait. Not to be called in a process that forked while one ran.

    Args:
        packed: The pickled model and the arguments of `map_batches`.
        dumps: How to pickle answers; itself pickled by its name.
        engine: The engine's name.
        name: The name of the job.
        on_error: What to do about bad rows of a dataset.
    """

    __slots__ = ("_packed", "dumps", "engine", "key", "name", "on_error")
    dumps: Callable[[Any], bytes]
    engine: str
    key: str
    name: str
    on_error: str

    def __init__(
        self,
        packed: bytes,
        dumps: Callable[[Any], bytes],
        *,
        engine: str,
        name: str,
        on_error: str,
    ) -> None:
        self._packed, self.dumps = packed, dumps
        self.engine, self.name, self.on_error = engine, name, on_error
        self.key = digest_bytes(packed)

    def __reduce__(self) -> tuple[Any, ...]:
        return _work, (self._packed, self.dumps, self.engine, self.name, self.on_error)

    def __call__(self, task: bytes, *, threads: int | None = None) -> bytes:
        """Run a task, whatever it raises, and return the answer.

        Args:
            task: The rows, as `map_batches` made them.
            threads: How many threads torch may use: the worker's share of its machine. None leaves them.
        """
        events: list[tuple[str, str, dict[str, Any]]] = []
        with listen(
            lambda one: events.append((one.kind, one.name, dict(one.fields))), scope="context"
        ):
            answer = self._answer(task, threads)
        answer = answer._replace(events=tuple(events), worker=place())
        return self._packed_answer(answer)

    def forget(self) -> None:
        """Let go of the model in this process; the next task would load it again."""
        forget(self.key)

    @property
    def n_bytes(self) -> int:
        """How many bytes it has, pickled."""
        return len(self._packed)

    def partition(self, number: int) -> Partition:
        """Return what runs the rows of one part of a dataset.

        Args:
            number: Which part it is, for errors.
        """
        return Partition(self, number, self._turn)

    def _turn(self, task: Task, threads: int | None) -> Answer:
        """Run a task when no other thread runs one."""
        turns = _turns(self.key)
        held = turns.get()
        try:
            if held.setup is None:
                try:
                    held.setup = self._load()
                except Exception as error:  # noqa: BLE001 - it goes to whoever waits for the answer
                    return self._ended(error, "loading the model")
            with _torch_threads(threads):
                return self._run(held, held.setup, task)
        finally:
            turns.put(held)

    def _answer(self, task: bytes, threads: int | None) -> Answer:
        try:
            rows = Task(*unpickled(task))
            rows = rows._replace(rows=unpacked(rows.rows))
        except Exception as error:  # noqa: BLE001 - as above
            return self._ended(error, "reading the rows")
        return self._turn(rows, threads)

    def _load(self) -> Setup:
        from mlkit.inference._offline.map import set_up

        fn, options = unpickled(self._packed)
        if isinstance(fn, Loaded):
            options["name"], fn = options["name"] or fn.name, fn.load()
        setup = set_up(fn, **options)
        setup.runner.check_device()
        return setup

    def _run(self, held: _Held, setup: Setup, task: Task) -> Answer:
        from mlkit.inference._offline.stream import Job

        runner = setup.runner
        if task.example != held.example or not task.example:
            # What rows must look like is the job's, not the worker's; what memory allowed is the worker's.
            example = [unpickled(task.example)] if task.example else []
            runner.resume(example, runner.learned, worked=runner.worked)
            held.example = task.example
        job = Job(
            runner,
            iter(task.rows),
            setup.sizes,
            on_error="return",
            checkpoint=None,
            prefetch=0,
            n_before=task.n_before,
        )
        clock = current()
        start = clock.monotonic()  # now that the model is loaded
        results: list[Any] = []
        failures: dict[int, tuple[Failure, Sent]] = {}
        seen: dict[str, Sent] = {}
        error: Sent | None = None
        n_rows = 0
        batches = job.batches()
        try:
            for batch in batches:
                for result in batch:
                    if not isinstance(result, Failure):
                        results.append(result)
                    elif isinstance(result.error, RowError):
                        failures[n_rows] = result, sent(_cause(result.error), self.dumps, seen)
                    else:
                        error = sent(result.error, self.dumps, seen)
                        break
                    n_rows += 1
                if error is not None:
                    break
        finally:
            batches.close()
        example_at = None
        if runner.example and not task.example:
            example_at = next(i for i, row in enumerate(task.rows) if row is runner.example[0])
        seconds = clock.monotonic() - start
        return Answer(n_rows, results, failures, error, example=example_at, seconds=seconds)

    def _ended(self, error: Exception, doing: str) -> Answer:
        return Answer(0, [], {}, sent(error, self.dumps, {}), doing)

    def _packed_answer(self, answer: Answer) -> bytes:
        try:
            return self.dumps(tuple(answer._replace(results=packed(answer.results))))
        except Exception as error:  # noqa: BLE001 - as above
            what = "sending the results"
            for place, value in enumerate(answer.results):
                if not self._pickles(value):
                    what = f"sending result {place} of these, a {type(value).__qualname__},"
                    break
            return self.dumps(tuple(self._ended(error, what)._replace(worker=answer.worker)))

    def _pickles(self, value: Any) -> bool:
        try:
            self.dumps(value)
        except Exception:  # noqa: BLE001 - whatever it is, it does not
            return False
        return True


@final
class Partition:
    """Runs the rows of one part of a dataset, some at a time: what `Work.partition` returns.

    For one thread; not to be pickled. What all rows must look like is settled by its first batch.

    Args:
        work: What it is a part of the work of.
        number: Which part it is.
        run: How to run a task.
    """

    def __init__(self, work: Work, number: int, run: Callable[[Task, int | None], Answer]) -> None:
        self._work, self._number, self._run = work, number, run
        self._n_before = 0
        self._example = b""

    def __call__(self, rows: Sequence[Any], *, threads: int | None = None) -> list[Any]:
        """Return for each of the next rows its result, or the `RowError` it had, which is its only kind of error.

        Raises:
            RowError: If `Work.on_error` is `"raise"`.
            EngineError: If the model cannot be loaded.
            Exception: What the model raised that is no row's fault.
        """
        work, task = self._work, Task(self._n_before, list(rows), self._example)
        answer = self._run(task, threads)._replace(worker=place())
        if answer.example is not None:
            self._example = work.dumps(task.rows[answer.example])
        self._n_before += len(rows)
        results = answer.unpacked()
        for index in answer.failures:
            failure = results[index]
            error = RowError(failure.error.index, failure.error.__cause__, partition=self._number)
            if failure.hint:
                error.args = (f"{error}; {failure.hint}",)
            if work.on_error == "raise":
                raise error
            results[index] = error
        if answer.error is not None:
            raise opened(answer, work.engine)
        return results


def opened(answer: Answer, engine: str) -> Exception:
    """Return the error that ended *answer*."""
    one = answer.error
    if one is None:
        raise RuntimeError("there is no error in this answer")
    error = received(one, answer.worker)
    if not answer.doing:
        return error
    hint = ""
    if one.kind in {"ModuleNotFoundError", "AttributeError"}:
        hint = (
            "; install there what is installed here, mlkit-blocks and the module of the model too"
        )
    raised = EngineError(
        engine, f"{answer.doing} failed in a worker: {one.kind}: {clip(one.text, 300)}{hint}"
    )
    raised.__cause__ = error
    return raised


def _work(
    packed: bytes, dumps: Callable[[Any], bytes], engine: str, name: str, on_error: str
) -> Work:
    return Work(packed, dumps, engine=engine, name=name, on_error=on_error)


def _cause(error: RowError) -> BaseException:
    return error if error.__cause__ is None else error.__cause__


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use *count* threads meanwhile: torch keeps them per thread, and any thread may come for a task."""
    torch = sys.modules.get("torch")
    if torch is None or count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)  # the process may be the user's own


def place() -> tuple[str, int]:
    """Return the names of this host and process."""
    return os.uname().nodename, os.getpid()
