"""Which way `map_batches` runs rows: batch by batch as they come, planned in windows, or exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import whole
from mlkit.errors import ConfigurationError
from mlkit.inference._check import plain_callable
from mlkit.inference._lengths import check_widths, longest_leaf, width_for
from mlkit.inference._model import name_of
from mlkit.inference._steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.inference._collate import Pad
    from mlkit.inference._runner import Runner

__all__ = ["Ways"]

_WINDOW = 4096
_WIDTHS = (
    8,
)  # of exact batches; then 12, 16, 24, 32, 48, ...: a quarter of the entries is filling at worst


class Ways(NamedTuple):
    """The arguments that decide it, checked.

    Attributes:
        length: How long a row is; None for its longest padded leaf.
        window: How many rows are read at a time; None for as many as the way needs.
        widths: Lengths that padded leaves are filled up to; empty for the longest row's.
        exact: Whether bits may not depend on company.
        planned: Whether rows are put together by what they cost.
    """

    length: Callable[[Any], Any] | None
    window: int | None
    widths: tuple[int, ...]
    exact: bool
    planned: bool

    @classmethod
    def chosen(
        cls,
        *,
        batch_size: object,
        buckets: object,
        pad: Pad,
        collate: object,
        length: Callable[[Any], Any] | None,
        window: int | None,
        widths: Iterable[int] | None,
        exact: bool,
    ) -> Ways:
        """Return what the arguments of `map_batches` come to, or refuse what cannot be together."""
        if length is not None:
            plain_callable("map_batches(length=...)", length)
        if window is not None:
            window = whole("map_batches(window=...)", window, low=1, also="None or ")
        ladder = check_widths("map_batches(widths=...)", widths)
        if ladder and pad is None:
            _refuse("widths", list(ladder), "None without pad=", "give pad= to fill up rows")
        if not isinstance(exact, bool):
            raise ConfigurationError("map_batches(exact=...)", exact, "True or False")
        auto = isinstance(batch_size, str)
        if exact:
            if auto:
                _refuse("batch_size", batch_size, "a number with exact=True", "pass 32, say")
            for name, value in (("buckets", buckets), ("collate", collate), ("length", length)):
                if value is not None:
                    hint = f"every call has batch_size={batch_size} rows then"
                    _refuse(name, value, "None with exact=True", hint)
            ladder = (ladder or _WIDTHS) if pad is not None else ()
            return cls(None, window, ladder, exact=True, planned=False)
        if window is not None and length is None and pad is None:
            hint = "rows of one length need no window"
            _refuse("window", window, "None without pad= or length=", hint)
        planned = window is not None or length is not None or (auto and pad is not None)
        return cls(length, window, ladder, exact=False, planned=planned)

    def rows_at_once(self, batch_size: int, pad: Pad) -> int:
        """Return how many rows are read at a time."""
        if self.exact and pad is None:
            return self.window or batch_size
        return self.window or _WINDOW

    def plan(self, runner: Runner, pad: Pad) -> Steps:
        """Return what runs windows of rows, planned by their cost."""
        from mlkit.inference._window import Planner

        window = self.rows_at_once(1, pad)
        description: dict[str, Any] = {"window": window}
        if self.length is not None:
            description["length"] = name_of(self.length)
        return Steps(runner, Planner(runner, self._measure(pad)), description)

    def _measure(self, pad: Pad) -> Callable[[Any], Any]:
        longest = longest_leaf(pad) if self.length is None else self.length
        widths = self.widths
        if not widths or self.length is not None:
            return longest
        return lambda row: width_for(longest(row), widths)

    def exactly(self, fixed: Runner, alone: Runner, pad: Pad) -> Steps:
        """Return what runs rows so that bits do not depend on company."""
        from mlkit.inference._exact import Exact

        # Not the window: it does not change a bit.
        return Steps(fixed, Exact(fixed, alone, pad, self.widths), {"exact": True})


def _refuse(name: str, value: object, expected: str, hint: str) -> None:
    raise ConfigurationError(f"map_batches({name}=...)", value, expected, hint=hint)
