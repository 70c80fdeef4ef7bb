"""Run a model on some rows, whatever happens to some of them: the core of `map_batches` and `Batcher`."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._arguments import whole
from mlkit.errors import CollateError, ConfigurationError, OutputShapeError
from mlkit.inference._batch.check import bucket_sizes
from mlkit.inference._batch.collate import Pad, alike, check_pad, stack
from mlkit.inference._batch.memory import is_out_of_memory, release
from mlkit.inference._batch.model import Model, name_of
from mlkit.inference._batch.modes import PLAIN, Modes
from mlkit.inference._batch.split import split_output
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mlkit.inference._batch.model import Staged

__all__ = ["Failure", "Runner"]


_PATIENCE = 16  # full batches at a lowered limit before the next larger one is tried


class Failure(NamedTuple):
    """In place of a row's result: what went wrong.

    Attributes:
        error: The error.
        n_rows: How many rows it was raised for; 1 if it is this row's own.
        misfit: Whether the rows could not be put into one batch.
        hint: What about the rows may explain the error; empty if nothing is known.
    """

    error: BaseException
    n_rows: int
    misfit: bool = False
    hint: str = ""

    @property
    def of_the_program(self) -> bool:
        """Whether no row is to blame: the function or the configuration is wrong."""
        return isinstance(self.error, (OutputShapeError, ConfigurationError))


@final
class Runner:
    """Collate, run, split; isolate bad rows, back off when memory runs out.

    One thread at a time. Holds on to no result and, unless it groups, to one row: the example.

    Args:
        fn: The user's function.
        owner: The public call, for error messages.
        name: The name events carry.
        limit: Name and value of the owner's largest batch.
        buckets: Batch sizes to pad to.
        pad: What `collate` takes.
        collate: The user's own function from rows to a batch.
        device: Where to run.
        isolate: Whether to find bad rows by running parts of a failed batch again.
        group: Whether rows that do not fit together are run in groups that do. Otherwise they must fit the majority of
            the first batch, and fail if they do not.
        widths: Lengths that padded leaves are filled up to, sorted; empty for the longest row's.
        modes: How torch runs the function.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        owner: str,
        name: str | None,
        limit: tuple[str, int],
        buckets: Iterable[int] | None,
        pad: Pad,
        collate: Callable[[list[Any]], Any] | None,
        device: object,
        isolate: bool,
        group: bool,
        widths: tuple[int, ...] = (),
        modes: Modes = PLAIN,
    ) -> None:
        self._model = Model(fn, device, owner=owner, modes=modes)
        self._modes = modes
        if name is not None and (not isinstance(name, str) or not name):
            raise ConfigurationError(f"{owner}(name=...)", name, "a text that is not empty")
        self.name = name or self._model.name
        self._limit = whole(f"{owner}({limit[0]}=...)", limit[1], low=1)
        self._buckets = bucket_sizes(
            f"{owner}(buckets=...)", buckets, largest=self._limit, limit=limit[0]
        )
        check_pad(f"{owner}(pad=...)", pad)
        if collate is not None and not callable(collate):
            raise ConfigurationError(
                f"{owner}(collate=...)", collate, "a callable of a list of rows"
            )
        if collate is not None and pad is not None:
            raise ConfigurationError(
                f"{owner}(pad=...)",
                pad,
                "None together with collate=",
                hint="let collate do the padding",
            )
        if not isinstance(isolate, bool):
            raise ConfigurationError(f"{owner}(isolate=...)", isolate, "True or False")
        self._pad = pad
        self._collate = collate
        self._isolate = isolate
        self._group = group
        self._widths = widths
        self._example: list[Any] = []  # empty, or the row that all others must fit
        self._asked = self._limit
        self._streak, self._patience, self._probing = 0, _PATIENCE, False
        self.worked = False  # some rows have had results
        self.failed = False  # some rows of the last run may have failed
        self.calls = 0

    @property
    def limit(self) -> int:
        """The most rows in one call of the function: what was asked for, or what memory turned out to allow."""
        return self._limit

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that are kept to, ascending, or none."""
        return self._buckets

    def filled(self, n_rows: int) -> int:
        """Return how many rows a call for *n_rows* has."""
        return self._buckets[bisect_left(self._buckets, n_rows)] if self._buckets else n_rows

    @property
    def runs_behind(self) -> bool:
        """Whether a call may return before the device has done its work."""
        return self._model.runs_behind

    @property
    def example(self) -> list[Any]:
        """Empty, or the row that all others must fit."""
        return self._example

    @property
    def learned(self) -> list[Any] | None:
        """What memory allowed so far, to be given to `resume`; None if nothing has been learned."""
        if self._limit == self._asked and self._patience == _PATIENCE:
            return None
        return [self._limit, self._streak, self._patience, self._probing]

    def resume(self, example: list[Any], learned: list[Any] | None, *, worked: bool) -> None:
        """Continue as one that has run rows before."""
        self._example = example
        self.worked = worked
        self._limit, self._streak = self._asked, 0
        self._patience, self._probing = _PATIENCE, False
        if learned is not None:
            limit, self._streak, self._patience, self._probing = learned
            self._limit = min(limit, self._asked)

    @property
    def settings(self) -> dict[str, Any]:
        """What the results depend on besides the rows, as JSON data."""
        from mlkit.inference._batch.weights import weights_digest

        device = self._model.device
        pad = self._pad
        return {
            "function": self.name,
            "weights": weights_digest(self._model.module),
            "device": None if device is None else device.type,
            "buckets": list(self._buckets) or None,
            "pad": {**pad} if isinstance(pad, Mapping) else pad,
            "widths": list(self._widths) or None,
            "collate": None if self._collate is None else name_of(self._collate),
            **self._modes.settings,
        }

    @property
    def identity(self) -> tuple[object, tuple[str, str]]:
        """What runs, and its name and device."""
        return self._model.identity, (self.name, str(self._model.device))

    def check_device(self) -> None:
        """Refuse a device that this machine has not."""
        self._model.check_device()

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        self._model.wait()

    def leave_thread(self) -> None:
        """Prepare for running the model in another thread."""
        self._model.leave_thread()

    def enter_thread(self) -> None:
        """Prepare the calling thread for running the model."""
        self._model.enter_thread()

    def stage(self, rows: Sequence[Any]) -> Staged | None:
        """Collate *rows* and place their batch ahead of `run`, in any thread; None if `run` shall do it all."""
        if self._collate is not None or not self._example or not 0 < len(rows) <= self._limit:
            return None  # a function of the user's own runs in one thread
        try:
            self._model.enter_thread()
            if self._misfit(self._example[0], rows[0]) is not None:
                return None
            batch = stack(
                self._filled(list(rows)),
                self._pad,
                tensors=self._model.tensors,
                widths=self._widths,
            )
            return self._model.staged(batch)
        except Exception:  # noqa: BLE001 - `run` meets it again, and knows what to do about it
            return None

    def run(self, rows: Sequence[Any], staged: Staged | None = None) -> list[Any]:
        """Return for each row its result or a `Failure`, in order.

        Args:
            rows: The rows.
            staged: What `stage` made of them.
        """
        outcome: list[Any] | Failure = []
        try:
            if len(rows) <= self._limit == self._asked:  # as nearly all batches: whole, and well
                outcome = self.attempt(list(rows), staged)
                staged = None
                if isinstance(outcome, list):
                    self.failed = False
                    return outcome
            return self._piecewise(rows, outcome)
        finally:
            # An error that somebody keeps also keeps this frame; the neighbours' data must not stay with it.
            outcome, staged = [], None
            del rows

    def _piecewise(self, rows: Sequence[Any], outcome: list[Any] | Failure) -> list[Any]:
        """Run *rows* in parts, when they are too many for one or, as *outcome* says, have failed together."""
        results: list[Any] = [None] * len(rows)
        todo = [list(range(len(rows)))]
        failure = outcome if isinstance(outcome, Failure) else None
        self.failed = True
        try:
            while todo:
                part = todo.pop()
                if len(part) > self._limit:
                    todo.append(part[self._limit :])
                    del part[self._limit :]
                outcome = failure or self.attempt([rows[index] for index in part])
                failure = None
                if isinstance(outcome, list):
                    for index, result in zip(part, outcome, strict=True):
                        results[index] = result
                    if self._limit < self._asked:
                        self._grow(len(part))
                    continue
                if is_out_of_memory(outcome.error):
                    release(outcome.error)
                    parts = self._shrink(part)
                elif outcome.misfit and len(part) > 1:
                    parts = self._sort(part, rows, results)
                else:
                    parts = self._halve(part, outcome)
                for index in part if parts is None else ():
                    results[index] = outcome
                todo.extend(reversed(parts or ()))
            return results
        finally:
            outcome, failure = [], None
            del rows, results

    def _halve(self, part: list[int], failure: Failure) -> list[list[int]] | None:
        if len(part) == 1 or failure.of_the_program or not self._isolate:
            return None
        middle = len(part) // 2
        return [part[:middle], part[middle:]]

    def _sort(
        self, part: list[int], rows: Sequence[Any], results: list[Any]
    ) -> list[list[int]] | None:
        """Put rows together that fit together; without grouping, fail those that do not fit the example."""
        groups: list[list[int]] = []
        if not self._example:
            for index in part:
                for group in groups:
                    if self._misfit(rows[group[0]], rows[index]) is None:
                        group.append(index)
                        break
                else:
                    groups.append([index])
            if len(groups) == 1:  # they fit in pairs, yet not all together: find out by halves
                middle = len(part) // 2
                return [part[:middle], part[middle:]]
            if self._group:
                return groups
            self._example = [rows[max(groups, key=len)[0]]]
        fitting = []
        for index in part:
            error = self._misfit(self._example[0], rows[index])
            if error is None:
                fitting.append(index)
            else:
                results[index] = Failure(error, 1)
        # Each fits the example, yet not all together: again by halves.
        if len(fitting) == len(part):
            middle = len(part) // 2
            return [part[:middle], part[middle:]]
        return [fitting] if fitting else []

    def _misfit(self, example: Any, row: Any) -> CollateError | None:
        if alike(example, row, self._pad):
            return None
        try:
            stack([example, row], self._pad, tensors=self._model.tensors)
        except CollateError as error:
            return CollateError(str(error).removeprefix(f"row {error.index}: "))
        except Exception:  # noqa: BLE001 - the row fits but cannot be stacked; its own run will say so
            return None
        return None

    def _shrink(self, part: list[int]) -> list[list[int]] | None:
        """Lower the limit after memory ran out for *part*."""
        smaller = len(part) // 2
        if self._buckets:
            tried = bisect_left(self._buckets, len(part))
            smaller = self._buckets[tried - 1] if tried else 0
        if not smaller:
            if len(part) == 1:  # a row that is too big alone says nothing about the others
                self._limit = self._asked
            return None
        if self._probing:
            self._patience *= 2
        self._limit, self._streak, self._probing = smaller, 0, False
        emit(
            "inference.batch.split",
            self.name,
            reason="out of memory",
            rows=len(part),
            limit=smaller,
        )
        return [part]

    def _grow(self, n_rows: int) -> None:
        """Try the next larger limit once enough full batches went well; memory may have been short only for a while."""
        self._probing = self._probing and n_rows < self._limit
        if n_rows < self._limit:
            return
        self._streak += 1
        if self._streak >= self._patience:
            larger = 2 * self._limit
            if self._buckets:
                larger = self._buckets[bisect_right(self._buckets, self._limit)]
            self._limit, self._streak, self._probing = min(larger, self._asked), 0, True

    def _filled(self, rows: list[Any]) -> list[Any]:
        return rows + rows[-1:] * (self.filled(len(rows)) - len(rows)) if self._buckets else rows

    def attempt(self, rows: list[Any], staged: Staged | None = None) -> list[Any] | Failure:
        """Run *rows* in one call; return their results or what went wrong."""
        n_rows = len(rows)
        rows = self._filled(rows)
        # Now, because the list is the function's, to empty if it likes.
        n_filled, first = len(rows), rows[0]
        batch = output = None
        try:
            if staged is not None:
                batch = self._model.unstaged(staged)
            elif self._collate is not None:
                batch = self._collate(rows)
            else:
                try:
                    batch = self._join(rows)
                except CollateError as error:
                    return Failure(error, n_rows, misfit=True)
            self.calls += 1
            output = self._model(batch, first)
            results = split_output(output, n_filled, self._model.name)[:n_rows]
        except Exception as error:  # noqa: BLE001 - it is given to the row that it belongs to
            return Failure(error, n_rows, hint="" if self.worked else self._hint(error, batch))
        else:
            self.worked = True
            return results
        finally:
            batch = output = staged = first = None
            del rows

    def _hint(self, error: Exception, batch: Any) -> str:
        from mlkit.inference._batch.hints import hint_for

        try:
            return hint_for(error, batch, self._model.module)
        except Exception:  # noqa: BLE001 - whatever the batch is made of, the error itself must come through
            return ""

    def _join(self, rows: list[Any]) -> Any:
        batch = stack(rows, self._pad, tensors=self._model.tensors, widths=self._widths)
        if not self._group:
            if not self._example:
                self._example = [rows[0]]
            elif (error := self._misfit(self._example[0], rows[0])) is not None:
                raise error
        return batch
