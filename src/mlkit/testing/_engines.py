"""The laws of an engine for `map_batches` as tests, for those who write one."""

# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from mlkit.errors import ConfigurationError, EngineError, RowError
from mlkit.inference import Loaded, map_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlkit.inference import Engine

__all__ = ["EngineContract"]

_N_ROWS = 2_000
_BAD = (700, 1_234)


class EngineContract:
    """The laws of `mlkit.inference.Engine`, to be inherited by a test class for pytest.

    Workers must be able to import what the test process imports, and see its temporary files.

    Attributes:
        survives: Whether the engine runs tasks again when a worker process dies. If so, one will be killed.

    Examples:
        ```python
        class TestMyEngine(EngineContract):
            survives = True

            def make_engine(self) -> Engine:
                return MyEngine(cluster)
        ```
    """

    survives: bool = False

    def make_engine(self) -> Engine:
        """Return an engine whose cluster is there."""
        raise NotImplementedError

    def test_results_are_those_of_this_process(self, tmp_path: Path) -> None:
        """Each row has its own result, in order, and a bad row its error; a process loads the model once."""
        model = Loaded(partial(_load, str(tmp_path)))
        results: list[Any] = list(
            map_batches(model, _rows(), batch_size=8, on_error="return", engine=self.make_engine())
        )
        assert len(results) == _N_ROWS
        assert [i for i, one in enumerate(results) if isinstance(one, RowError)] == list(_BAD)
        for index in _BAD:
            assert results[index].index == index
            assert isinstance(results[index].__cause__, ArithmeticError)
            assert any("_strict" in note for note in results[index].__cause__.__notes__), (
                "where the model failed is not told"
            )
        good = [index for index in range(_N_ROWS) if index not in _BAD]
        assert [results[index]["name"] for index in good] == [f"r{index}" for index in good]
        assert [float(results[index]["sum"]) for index in good] == [2.0 * index for index in good]
        processes = [file.name.partition("-")[0] for file in tmp_path.iterdir()]
        assert processes
        assert len(processes) == len(set(processes)), "a process loaded the model twice"

    def test_no_more_is_read_than_is_under_way(self) -> None:
        """An endless generator is fine, the loop may be left at any time, and another job can follow."""
        n_read = 0

        def endless() -> Iterator[int]:
            nonlocal n_read
            while True:
                n_read += 1
                yield n_read

        engine = self.make_engine()
        results: Any = map_batches(_slow, endless(), batch_size=4, engine=engine)
        for n_results, result in enumerate(results, 1):
            assert int(result) == n_results + 1
            if n_results == 400:
                break
        results.close()
        assert n_read < 400 + 65_536, "rows were read without bound"
        assert [int(one) for one in map_batches(_slow, [1, 2, 3], engine=engine)] == [2, 3, 4]

    def test_answers_may_be_asked_for_in_any_order(self) -> None:
        """Each submitted task has its own answer, and a session closes twice."""
        caught = _Caught(self.make_engine())
        assert list(map_batches(_slow, range(3), engine=caught)) == [1, 2, 3]
        session = caught.engine.open(caught.work)
        try:
            assert session.slots() >= 1
            waiters = [session.submit(caught.task) for _ in range(5)]
            answers = [wait() for wait in reversed(waiters)]
        finally:
            session.close()
            session.close()
        assert [isinstance(answer, bytes) for answer in answers] == [True] * 5

    def test_what_cannot_be_sent_or_loaded_is_said(self) -> None:
        """A model that cannot be pickled is refused at the call; one that cannot be loaded, at the first result."""
        import threading

        engine = self.make_engine()
        refused: Exception | None = None
        try:
            map_batches(partial(_slow, lock=threading.Lock()), range(3), engine=engine)
        except ConfigurationError as error:
            refused = error
        assert "Loaded" in str(refused), "it took a model that holds a lock"
        try:
            list(map_batches(Loaded(_missing), range(3), engine=engine))
        except EngineError as error:
            refused = error.__cause__  # type: ignore[assignment]
        assert isinstance(refused, FileNotFoundError), "it ran a model that could not be loaded"

    def test_a_worker_may_die(self, tmp_path: Path) -> None:
        """If `survives`: a process that is killed costs no row its result, and gives none two."""
        if not self.survives:
            return
        model = partial(_deadly, str(tmp_path / "dead"))
        results = list(map_batches(model, range(400), batch_size=4, engine=self.make_engine()))
        assert (tmp_path / "dead").exists()
        assert [int(one) for one in results] == list(range(1, 401))


class _Caught:
    """An engine that keeps what it was asked to do."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name = engine.name
        self.dumps = engine.dumps
        self.check, self.dataset = engine.check, engine.dataset
        self.work: Any = None
        self.task = b""

    def open(self, work: Any) -> Any:
        self.work = work
        session = self.engine.open(work)
        submit = session.submit

        def caught(task: bytes) -> Callable[[], bytes]:
            self.task = task
            return submit(task)

        return _Session(session, caught)


class _Session:
    def __init__(self, session: Any, submit: Callable[[bytes], Callable[[], bytes]]) -> None:
        self.slots, self.close, self.submit = session.slots, session.close, submit


def _rows() -> Iterator[dict[str, Any]]:
    import numpy as np

    for index in range(_N_ROWS):
        yield {"x": np.array([index, index], np.float32), "name": f"r{index}"}


def _load(folder: str) -> Callable[[Any], Any]:
    from pathlib import Path

    Path(folder, f"{os.getpid()}-{os.urandom(4).hex()}").touch()
    return _strict


def _strict(batch: Any) -> Any:
    if any(index in batch["x"][:, 0] for index in _BAD):
        raise ArithmeticError("a row that this model cannot do")
    return {"sum": batch["x"].sum(axis=1), "name": batch["name"]}


def _slow(batch: Any, lock: Any = None) -> Any:  # noqa: ARG001 - what it holds is the point
    return batch + 1


def _missing() -> Any:
    raise FileNotFoundError("no weights here")


def _deadly(mark: str, batch: Any) -> Any:
    if 100 in batch:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return batch + 1
        os.kill(os.getpid(), signal.SIGKILL)
    return batch + 1
