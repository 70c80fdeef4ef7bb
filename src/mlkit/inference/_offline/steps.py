"""A runner that is given more rows than one batch, and a way to run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.inference._batch.runner import Runner

__all__ = ["Steps", "Way"]


class Way(Protocol):
    """How to run some rows in several batches: each row has its own result, whatever company it ran in."""

    @property
    def failed(self) -> bool:
        """Whether some rows of the last run may have failed."""
        ...

    def run(
        self, rows: Sequence[Any], *, hasty: bool, ahead: bool, done: Callable[[int], object]
    ) -> list[Any]:
        """Return for each row its result or a `Failure`, in order; None after a failure if *hasty*.

        With *ahead*, a thread may collate the next batch while one runs.
        *done* is told of rows that have run, in this thread; of fewer than all, if the way cannot tell.
        """
        ...


@final
class Steps:
    """What a `Runner` is to a job, for as many rows at once as the job reads.

    One thread at a time.

    Args:
        runner: Runs batches.
        way: Makes them.
        description: What the results depend on besides, as JSON data.
        others: The runners that *way* uses besides.

    Attributes:
        name: What events call the job.
        hasty: Whether the job ends at its first bad row.
        ahead: Whether a thread may collate the next batch while one runs.
        finished: What to tell how many rows have just run, or None.
        told: How many rows of the last run it was told of.
    """

    def __init__(
        self,
        runner: Runner,
        way: Way,
        description: dict[str, Any],
        others: Sequence[Runner] = (),
    ) -> None:
        self._runner, self._way, self._description = runner, way, description
        self._others = others
        self.name = runner.name
        self.hasty = self.ahead = False
        self.finished: Callable[[int], object] | None = None
        self.told = 0

    def run(self, rows: Sequence[Any]) -> list[Any]:
        """Return for each row its result or a `Failure`, in order."""
        self.told = 0
        return self._way.run(rows, hasty=self.hasty, ahead=self.ahead, done=self._done)

    def _done(self, n_rows: int) -> None:
        if self.finished is not None:
            self.told += n_rows
            self.finished(n_rows)

    @property
    def failed(self) -> bool:
        """Whether some rows of the last run may have failed."""
        return self._way.failed

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on besides the rows, as JSON data."""
        return {**self._runner.settings, **self._description}

    @property
    def learned(self) -> list[Any] | None:
        """None: a job that is resumed measures again."""
        return None

    @property
    def limit(self) -> int:
        """The most rows in one call of the function."""
        return self._runner.limit

    @property
    def example(self) -> list[Any]:
        """Empty, or the row that all others must fit."""
        return self._runner.example

    @property
    def worked(self) -> bool:
        """Whether some rows have had results."""
        return self._runner.worked

    @property
    def calls(self) -> int:
        """How often the function was called."""
        return self._runner.calls

    def resume(self, example: list[Any], learned: list[Any] | None, *, worked: bool) -> None:
        """Continue as one that has run rows before."""
        self._runner.resume(example, learned, worked=worked)

    def check_device(self) -> None:
        """Refuse a device that this machine has not."""
        for runner in (self._runner, *self._others):
            runner.check_device()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        self._runner.wait()
