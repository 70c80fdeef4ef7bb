"""Somewhere else to run batches: what `map_batches` asks of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.inference._engines.work import Work

__all__ = ["Engine", "Session"]


class Session(Protocol):
    """The workers of one job.

    Laws: each submitted task has exactly one answer, though a worker dies, or its waiter raises `EngineError`; answers
    may be asked for in any order, and tasks run at the same time as workers allow.
    """

    def slots(self) -> int:
        """Return how many tasks can run at once, as of now; at least 1."""
        ...

    def submit(self, task: bytes) -> Callable[[], bytes]:
        """Begin `work(task)` in some worker and return a function that waits for what it returns.

        Raises:
            EngineError: From here or from the waiter, if no worker can run the task.
        """
        ...

    def close(self) -> None:
        """Cancel what has not ended, and let go of the workers and of the model they hold. May be called twice."""
        ...


class Engine(Protocol):
    """Where `map_batches(engine=...)` runs. `mlkit.testing.EngineContract` tests one of your own.

    An engine moves bytes: rows are pickled before it sees them, and a *work* turns the bytes of a task into those of its
    answer in a worker, where it holds on to the model between tasks.
    """

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def check(self) -> None:
        """Refuse to begin if there is no cluster: closed, stopped, of an unknown kind.

        Raises:
            EngineError: If there is none.
        """
        ...

    def dumps(self, value: object) -> bytes:
        """Return *value* as bytes that `pickle.loads` takes in a worker; a function that `Work` may pickle by name.

        Functions and classes of the main program, which a worker cannot import, are best pickled by value.
        """
        ...

    def open(self, work: Work) -> Session:
        """Return a session in which workers run *work*.

        Raises:
            EngineError: If there is no cluster.
        """
        ...

    def dataset(self, work: Work, rows: Any) -> Any:
        """Return what *work* makes of *rows*, as the engine's own lazy dataset.

        Returns:
            `NotImplemented` if *rows* is no dataset of this engine; it is then read as an iterable.
        """
        ...
