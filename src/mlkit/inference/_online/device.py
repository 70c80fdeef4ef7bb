"""The thread of a `Batcher`: it runs the model on what waits, and answers the callers."""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any, final

from mlkit.inference._batch.runner import Failure
from mlkit.inference._online.delivery import deliver
from mlkit.inference._online.groups import Failed, take_rows
from mlkit.inference._online.reasons import echo, error_for, refusal, too_late

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.errors import InferenceError
    from mlkit.inference._batch.runner import Runner
    from mlkit.inference._online.awaited import Awaited
    from mlkit.inference._online.groups import Group
    from mlkit.inference._online.queue import Queue

__all__ = ["Device"]


@final
class Device:
    """What the device thread does, and how callers are told who are answered without a run.

    Args:
        runner: Runs the model.
        queue: What waits.
        awaited: The async function that *runner* runs, if it is one.
    """

    __slots__ = ("_awaited", "_entered", "_queue", "_runner")

    def __init__(self, runner: Runner, queue: Queue, awaited: Awaited | None) -> None:
        self._runner = runner
        self._queue = queue
        self._awaited = awaited
        self._entered = False  # the thread has its torch settings

    def run(self) -> None:
        """Serve until the queue is closed and empty."""
        self._queue.device = get_ident()
        try:
            while self._work():
                pass
        finally:
            self.stop(drain=False)  # nobody waits for a thread that is no more
            self.turn_away(self._queue.running(), lambda _: self._closed())
            try:
                if self._awaited is not None:
                    self._awaited.close()
            finally:
                self._queue.over()

    def _work(self) -> bool:
        """Wait for something to do and do it; return False once closed and drained.

        In a frame of its own: what an idle thread still names stays in memory, perhaps in the device's.
        """
        batch, late, warm_up = self._queue.take()
        if late:
            self.turn_away(late, lambda group: too_late(self._runner.name, group.allowed))
        if batch:
            self._serve(batch)
        elif warm_up is not None:
            warm_up.run(self._enter, self._runner, self._queue.clock, self._queue.observe)
        goes_on = bool(batch or late or warm_up is not None)
        # An error that a caller keeps also keeps this frame; the neighbours' data must not stay with it.
        del batch, late, warm_up
        return goes_on

    def _serve(self, batch: list[Group]) -> None:
        rows = take_rows(batch)
        outcomes: list[Any]
        failed = 0
        try:
            if not self._entered:
                self._enter()
            outcomes = self._runner.run(rows)
            if self._runner.failed:
                failed = self._give_errors(outcomes)
        except BaseException as error:  # noqa: BLE001 - a thread that dies here leaves every caller waiting
            outcomes = [Failure(error, len(rows))] * len(rows)
            failed = self._give_errors(outcomes)
        # Only then the outcomes: a blocking caller may look at any time, and whoever has an answer must find it counted.
        loops = {group.loop for group in batch}
        shared = self._queue.ran(batch, failed, loops)
        if shared:
            batch = [*batch, *[group for _, group in shared]]
            outcomes = [*outcomes, *[self._again(outcomes[place]) for place, _ in shared]]
            loops = {group.loop for group in batch}
        deliver(batch, outcomes, loops, self._queue.settle, self._queue.forget)
        del rows, outcomes, batch, shared  # as in `_work`

    def _enter(self) -> None:
        """Give the thread its torch settings, which may fail as a batch may."""
        self._runner.enter_thread()
        self._entered = True

    def _give_errors(self, outcomes: list[Any]) -> int:
        """Put the error of each failure in its place; return how many there are."""
        seen: set[int] = set()
        failed = 0
        for place, outcome in enumerate(outcomes):
            if isinstance(outcome, Failure):
                outcomes[place] = Failed(error_for(self._runner.name, outcome, seen))
                failed += 1
        return failed

    def _again(self, outcome: Any) -> Any:
        """Return *outcome* for one more caller: the same result, or an error of its own."""
        return (
            Failed(echo(self._runner.name, outcome.error)) if type(outcome) is Failed else outcome
        )

    def turn_away(self, groups: list[Group], error: Callable[[Group], BaseException]) -> None:
        """Answer callers whose rows will not run, or run too long, each with an error of its own."""
        if groups:
            outcomes = [Failed(error(group)) for group in groups for _ in group.signals]
            loops = {group.loop for group in groups}
            deliver(groups, outcomes, loops, None, self._queue.forget)

    def stop(self, *, drain: bool) -> None:
        """Take no more rows; unless *drain*, answer those who wait."""
        dropped, warm_ups = self._queue.close(drain=drain)
        for group in dropped:
            group.rows = []
        self.turn_away(dropped, lambda _: self._closed())
        for warm_up in warm_ups:
            warm_up.fail(self._closed())

    def _closed(self) -> InferenceError:
        return refusal(self._runner.name, None, closed=True)
