"""The operation of torch that gives one row other bits in one batch than in another."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.repro._batches import row_of
from mlkit.repro._trace import tracing, users_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.repro._batches import Placed
    from mlkit.repro._trace import Operation

__all__ = ["breaking_op"]


def breaking_op(fn: Callable[[Any], Any], sample: Any, one: Placed, other: Placed) -> str | None:
    """Return the first operation whose bits of a row differ between two batches, with its module and line.

    None if no operation of torch is seen to differ: *fn* does not use torch, or does not repeat.
    """
    if "torch" not in sys.modules:
        return None
    first = _RowTrace(one, None)
    with tracing(first):
        fn(one.batch.taken(sample))
    second = _RowTrace(other, first.steps)
    with tracing(second):
        fn(other.batch.taken(sample))
    return second.found


class _Seen(NamedTuple):
    """One operation, the module it ran in and the bytes of the row in what it made."""

    op: str
    module: str
    bits: list[bytes | None]


class _RowTrace:
    """Follows one row through the operations of a call; compares with the steps of another call, if given."""

    def __init__(self, placed: Placed, reference: list[_Seen] | None) -> None:
        self.steps: list[_Seen] = []
        self.found: str | None = None
        self._size, self._place = len(placed.batch.rows), placed.place
        self._reference = reference

    def add(self, operation: Operation, module: str, values: list[Any]) -> None:
        """Take note of an operation and of the tensors that it wrote."""
        if self.found is not None:
            return
        seen = _Seen(operation.name, module, [] if operation.views else self._bits(values))
        self.steps.append(seen)
        if self._reference is None:
            return
        call = len(self.steps)
        expected = self._reference[call - 1] if call <= len(self._reference) else None
        if expected is None or expected.op != seen.op:
            instead = f" instead of {expected.op}" if expected else ", which only one batch needs"
            self.found = f"{self._told(seen, call)}{instead}"
        elif expected.bits != seen.bits:
            self.found = self._told(seen, call)

    def finish(self) -> None:
        """Take note that the call is over."""

    def _bits(self, values: list[Any]) -> list[bytes | None]:
        from mlkit.repro._tensors import as_array, is_dense

        torch = sys.modules["torch"]
        dense = [value for value in values if is_dense(torch, value)]
        return [row_of(as_array(torch, value), self._size, self._place) for value in dense]

    def _told(self, seen: _Seen, call: int) -> str:
        inside = f" in {seen.module}" if seen.module else ""
        return f"{seen.op}{inside} (call {call}; {users_line()})"
