"""A row's bits without regard to its company: batches of one shape, or no batches where that is not enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from mlkit.errors import ConfigurationError, DegradedWarning
from mlkit.inference._batch.lengths import padded_lengths, width_for
from mlkit.inference._batch.runner import Failure, Runner
from mlkit.inference._batch.tree import Padded, field_names, is_array, is_tensor
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.inference._batch.collate import Pad

__all__ = ["Exact", "same_bits"]


@final
class Exact:
    """Runs rows so that a row's result is the same bits in any company, in any place, in a batch of any rows or alone.

    Every call has the same number of rows; where rows are padded, those of one width, which is a step of a fixed ladder,
    run together. That this is enough is tried out for each width on the first rows that have it. Where it is not, each
    row runs in a call of its own.

    One thread at a time. Holds on to no row or result but the runners' example.

    Args:
        fixed: Runs batches of one number of rows.
        alone: Runs one row at a time.
        pad: What is filled up.
        widths: The ladder's first steps.

    Attributes:
        failed: Whether some rows of the last run may have failed.
    """

    def __init__(self, fixed: Runner, alone: Runner, pad: Pad, widths: Sequence[int]) -> None:
        self._fixed, self._alone = fixed, alone
        self._pad, self._widths = pad, widths
        self._runners: dict[tuple[int, ...], Runner] = {}  # which one is right for these widths
        self.failed = False

    def run(
        self,
        rows: Sequence[Any],
        *,
        hasty: bool,
        ahead: bool,  # noqa: ARG002 - a batch that is not run first would not have been tried
        done: Callable[[int], object],
    ) -> list[Any]:
        """Return for each row its result or a `Failure`, in order; None after a failure if *hasty*."""
        results: list[Any] = [None] * len(rows)
        try:
            self.failed = False
            end = len(rows)
            for key, places in self._groups(rows).items():
                for start in range(0, len(places), self._fixed.limit):
                    part = places[start : start + self._fixed.limit]
                    some = [place for place in part if place < end]
                    outcome = self._batch(key, [rows[place] for place in some])
                    for place, result in zip(some, outcome, strict=True):
                        results[place] = result
                        if self.failed and hasty and isinstance(result, Failure):
                            end = min(end, place)
                    done(len(some))
            return results
        finally:
            del rows, results  # an error that somebody keeps also keeps this frame

    def _groups(self, rows: Sequence[Any]) -> dict[tuple[int, ...], list[int]]:
        """Return the places of rows by the widths of their leaves."""
        if self._pad is None:
            return {(): list(range(len(rows)))}
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            try:
                lengths = padded_lengths(row, self._pad)
            except Exception:  # noqa: BLE001 - what is wrong with it, running it will say
                lengths = ()
            key = tuple(width_for(length, self._widths) for length in lengths)
            groups.setdefault(key, []).append(place)
        return groups

    def _batch(self, key: tuple[int, ...], rows: list[Any]) -> list[Any]:
        if not rows:
            return []
        runner = self._runners.get(key)
        if runner is None:
            return self._first(key, rows)
        return self._run(runner, rows)

    def _run(self, runner: Runner, rows: list[Any]) -> list[Any]:
        if runner is self._alone:
            if not runner.example:
                runner.resume(self._fixed.example, None, worked=self._fixed.worked)
            results = [runner.run([row])[0] for row in rows]
            failed = any(isinstance(one, Failure) for one in results)
        else:
            results = runner.run(rows)
            failed = runner.failed
        self.failed = self.failed or failed
        return results

    def _first(self, key: tuple[int, ...], rows: list[Any]) -> list[Any]:
        """Run the first rows of these widths, and find out what is right for them."""
        results = self._run(self._fixed, rows)
        if any(isinstance(one, Failure) for one in results):
            return results  # nothing is known yet
        if self._holds(rows, results):
            self._runners[key] = self._fixed
            return results
        first = self._run(self._alone, rows[:1])
        again = self._run(self._alone, rows[:1])
        if not isinstance(first[0], Failure) and not same_bits(first[0], again[0]):
            self.failed = True
            return [Failure(self._unsteady(), len(rows))] * len(rows)
        self._runners[key] = self._alone
        emit(
            "inference.exact.alone",
            self._fixed.name,
            rows=self._fixed.limit,
            widths=" ".join(map(str, key)),
        )
        import warnings

        shape = f" of width {', '.join(map(str, key))}" if key else ""
        warnings.warn(
            f"{self._fixed.name}: a row's bits depend on its company even among batches of {self._fixed.limit} rows"
            f"{shape}; exact=True runs such rows one at a time, which takes longer",
            DegradedWarning,
            stacklevel=3,
        )
        return self._run(self._alone, rows)

    def _holds(self, rows: list[Any], results: list[Any]) -> bool:
        """Return whether the bits stay when every row has another place, and when one is in every place."""
        step = max(len(rows) // 2, 1)
        for turn in {step, 1}:
            moved = self._fixed.run(rows[turn:] + rows[:turn])
            if not all(map(same_bits, moved, results[turn:] + results[:turn])):
                return False
        everywhere = self._fixed.run(rows[:1] * self._fixed.limit)
        return all(same_bits(one, results[0]) for one in everywhere)

    def _unsteady(self) -> ConfigurationError:
        return ConfigurationError(
            "map_batches(exact=...)",
            True,  # noqa: FBT003 - the value that was passed
            f"a function that gives one row the same bits each time, which {self._fixed.name} does not",
            hint="it draws random numbers, keeps state, or runs nondeterministic operations",
        )


def same_bits(one: Any, other: Any) -> bool:
    """Return whether two results are the same to the last bit: NaN equals NaN, and 0.0 differs from -0.0."""
    if type(one) is not type(other):
        return False
    if is_array(one):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if one.dtype.hasobject:
            return bool((one == other).all())
        return bool(one.tobytes() == other.tobytes())
    if is_tensor(one):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        import torch

        first, second = (each.detach().cpu().contiguous().reshape(-1) for each in (one, other))
        return bool(torch.equal(first.view(torch.uint8), second.view(torch.uint8)))
    if isinstance(one, float):
        return bool(one.hex() == other.hex())
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list, Padded)):
        return len(one) == len(other) and all(map(same_bits, one, other))
    names = field_names(one)
    if names is not None:
        return all(same_bits(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)
