"""Where two runs first differ, as a sentence."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Divergence"]


class Divergence(NamedTuple):
    """Where two runs first differ.

    Attributes:
        run: Which run differed from the first, counted from 1.
        setting: What was different about that run, `"2 threads instead of 1"`; empty if nothing was.
        op: The torch operation, `"aten::index_put_"`; empty if the results differ without one.
        module: The module it ran in, `"Net.pool"`; empty outside of a module's forward.
        call: The number of the operation in the run, from 0; None without one.
        line: The user's line it came from, `"train.py:88"`; empty if unknown.
        path: Where in the result, `"$['loss']"`, or which output of the operation.
        reason: What differs: a value, a dtype, a shape, a length, an operation.
        element: The index of the first element that differs.
        differing: How many elements differ.
        total: How many there are.
        max_ulps: The largest distance in units in the last place, for floating-point values.
    """

    run: int
    setting: str
    op: str
    module: str
    call: int | None
    line: str
    path: str
    reason: str
    element: tuple[int, ...] | None
    differing: int
    total: int
    max_ulps: int | None

    def __str__(self) -> str:
        place = f"{self.op} in {self.module}" if self.module else self.op
        place = f"{place} (call {self.call})" if self.op else f"the result at {self.path}"
        text = f"{place}: {self.reason}"
        if self.differing:
            text += f"; {self.differing} of {self.total} elements differ"
        if self.element:
            text += f", the first at {list(self.element)}"
        if self.max_ulps is not None:
            text += f", by at most {self.max_ulps} ulp"
        if self.line:
            text += f"; {self.line}"
        return f"{text}; with {self.setting}" if self.setting else text
