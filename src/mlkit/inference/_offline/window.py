"""Rows of different lengths, a window at a time: put together by what they cost, not as they come."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit.inference._batch.lengths import structure, whole_length
from mlkit.inference._batch.runner import Failure, Runner
from mlkit.inference._offline.cost import learned_for
from mlkit.inference._offline.plan import cut, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from concurrent.futures import Future

    from mlkit.inference._batch.model import Staged

__all__ = ["Planner"]

_SAMPLE = 32  # rows whose majority decides what the others must look like
# Where in the sorted rows, and how many of them.
_PROBES = ((0.5, 4), (0.25, 1), (0.9, 1), (0.6, 8))
_LEARNING = 32  # measurements, until which the rest of a window is planned anew with each fit
_RARELY = 8  # afterwards, on a device that runs behind, every how many batches are waited for and measured


@final
class Planner:
    """Runs a window of rows as batches of rows alike in length.

    One thread at a time. Holds on to no row or result but the runner's example.

    Args:
        runner: Runs batches.
        measure: How long a row is.

    Attributes:
        failed: Whether some rows of the last run may have failed.
    """

    def __init__(self, runner: Runner, measure: Callable[[Any], Any]) -> None:
        self._runner, self._measure = runner, measure
        self._learned = learned_for(*runner.identity)
        self._hasty, self._end, self._ahead = False, 0, False
        self._done: Callable[[int], object] | None = None
        self.failed = False

    def run(
        self, rows: Sequence[Any], *, hasty: bool, ahead: bool, done: Callable[[int], object]
    ) -> list[Any]:
        """Return for each row its result or a `Failure`, in order.

        Args:
            rows: The rows.
            hasty: Whether nothing after a bad row is wanted: such a row has None.
            ahead: Whether a thread may make the next batch while one runs.
            done: Is told of each batch how many rows it had.
        """
        results: list[Any] = [None] * len(rows)
        try:
            self.failed = False
            self._hasty, self._end, self._ahead, self._done = hasty, len(rows), ahead, done
            lengths = self._lengths(rows, results)
            self._settle(rows)
            todo = sorted(range(len(rows)), key=lengths.__getitem__)
            if self.failed:
                todo = [place for place in todo if lengths[place] >= 0]
            if not self._learned.n_seen and len(todo) >= _SAMPLE:
                todo = self._probed(rows, lengths, todo, results)
            while todo:
                todo = self._some(rows, lengths, todo, results)
            return results
        finally:
            self._done = None
            del rows, results  # an error that somebody keeps also keeps this frame

    def _lengths(self, rows: Sequence[Any], results: list[Any]) -> list[int]:
        """Return the length of each row, -1 for one that has none and is given its failure."""
        lengths: list[int] = []
        measure = self._measure
        for place, row in enumerate(rows):
            try:
                length = measure(row)
                if type(length) is not int or length < 0:
                    length = whole_length(length)
                lengths.append(length)
            except Exception as error:  # noqa: BLE001 - it is given to the row that it belongs to
                results[place] = Failure(error, 1)
                self.failed = True
                lengths.append(-1)
        return lengths

    def _settle(self, rows: Sequence[Any]) -> None:
        """Let the majority of the first rows say what a row looks like: a batch of the plan may hold odd ones only."""
        runner = self._runner
        if runner.example or not rows:
            return
        kinds = [structure(row) for row in rows[:_SAMPLE]]
        most = Counter(kinds).most_common(1)[0][0]
        runner.resume([rows[kinds.index(most)]], None, worked=runner.worked)

    def _probed(
        self, rows: Sequence[Any], lengths: list[int], todo: list[int], results: list[Any]
    ) -> list[int]:
        """Run a few rows of the window in small batches, which tell what starting one costs; return what is left."""
        todo = todo.copy()
        for quantile, size in _PROBES:
            start = int(quantile * (len(todo) - size))
            part = todo[start : start + min(size, self._runner.limit)]
            del todo[start : start + len(part)]
            self._batch(rows, part, lengths, results)
            if self.failed:
                break
        if self.failed and not self._runner.worked and 0 in todo:
            todo.remove(0)  # does it fail for the very first row?
            self._batch(rows, [0], lengths, results)
        return self._wanted(todo)

    def _some(
        self, rows: Sequence[Any], lengths: list[int], todo: list[int], results: list[Any]
    ) -> list[int]:
        """Run rows of *todo*, sorted by length, until all have run or there is a better plan; return what is left."""
        learned = self._learned
        sizes = cut(
            [lengths[place] for place in todo],
            learned.cost,
            max_rows=self._runner.limit,
            cap=learned.cap,
            buckets=self._runner.buckets,
        )
        parts: list[list[int]] = []
        start = 0
        for size in sizes:
            parts.append(todo[start : start + size])
            start += size
        learning = learned.n_seen < _LEARNING
        # The longest first, so that memory runs out early if it does; while learning, of all lengths.
        turns = spread(len(parts)) if learning else range(len(parts) - 1, -1, -1)
        left = set(range(len(parts)))
        with closing(self._staged(rows, parts, turns, ahead=not learning)) as batches:
            for turn, part, staged in batches:
                left.discard(turn)
                cap = learned.cap
                renewed = self._batch(rows, part, lengths, results, staged)
                del staged
                if learned.cap < cap or (learning and (renewed or learned.cap > cap)):
                    break
        return self._wanted([place for turn in sorted(left) for place in parts[turn]])

    def _staged(
        self, rows: Sequence[Any], parts: list[list[int]], turns: Iterable[int], *, ahead: bool
    ) -> Generator[tuple[int, list[int], Staged | None], None, None]:
        """Yield the parts in their turns, each with its batch if a thread has made it while the one before ran."""
        runner = self._runner
        if not (ahead and self._ahead and len(parts) > 1):
            for turn in turns:
                yield turn, self._wanted(parts[turn]), None
            return
        from concurrent.futures import ThreadPoolExecutor
        from contextvars import copy_context

        runner.leave_thread()
        with ThreadPoolExecutor(1, thread_name_prefix="mlkit-batches") as pool:

            def begun(turn: int) -> tuple[int, list[int], Future[Staged | None]]:
                part = self._wanted(parts[turn])
                some = [rows[place] for place in part]
                return turn, part, pool.submit(copy_context().run, runner.stage, some)

            following = map(begun, turns)
            coming = next(following, None)
            while coming is not None:
                turn, part, making = coming
                staged = making.result()
                del making, coming
                coming = next(following, None)
                wanted = self._wanted(part)  # a row may have failed meanwhile
                yield turn, wanted, staged if len(wanted) == len(part) else None
                del staged

    def _wanted(self, part: list[int]) -> list[int]:
        """Return the places that a job which ends at its first bad row still asks for."""
        if self._hasty and self.failed:
            return [place for place in part if place < self._end]
        return part

    def _batch(
        self,
        rows: Sequence[Any],
        part: list[int],
        lengths: list[int],
        results: list[Any],
        staged: Staged | None = None,
    ) -> bool:
        """Run one batch and learn from it; return whether it changed what batches are thought to cost."""
        if not part:
            return False
        runner, learned, asked = self._runner, self._learned, self._runner.limit
        longest = max(lengths[part[-1]], 1)
        measured = not runner.runs_behind or (
            learned.n_seen < _LEARNING or runner.calls % _RARELY == 0
        )
        if runner.runs_behind and measured:
            runner.wait()  # what was given to it before is not this batch's
        n_calls, clock = runner.calls, current()
        start = clock.monotonic()
        outcome = runner.run([rows[place] for place in part], staged)
        if measured:
            runner.wait()
        seconds = clock.monotonic() - start
        for place, result in zip(part, outcome, strict=True):
            results[place] = result
        if self._done is not None:
            self._done(len(part))
        broken: list[int] = []
        if runner.failed:
            broken = [place for place in part if isinstance(results[place], Failure)]
        if broken:
            self.failed = True
            self._end = min(self._end, *broken) if self._hasty else self._end
        if runner.limit < asked:  # memory ran out
            learned.ran_out(runner.limit * longest)
            runner.resume(runner.example, None, worked=runner.worked)
            return False
        if runner.calls != n_calls + 1 or broken:
            return False
        learned.fitted(len(part), longest)
        return measured and learned.observe(runner.filled(len(part)), longest, seconds)
