"""Which way `map_batches` runs rows: batch by batch as they come, planned in windows, or exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit._arguments import whole
from mlkit.errors import ConfigurationError
from mlkit.inference._batch.check import plain_callable
from mlkit.inference._batch.lengths import check_widths, longest_leaf, width_for
from mlkit.inference._batch.model import name_of
from mlkit.inference._offline.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.inference._batch.collate import Pad
    from mlkit.inference._batch.runner import Runner
    from mlkit.inference._offline.lanes import Lane
    from mlkit.inference._offline.steps import Way

__all__ = ["Ways"]

_WINDOW = 4096
_SHARE = 8  # batches per device that are read at a time: the devices wait for each other at the end of it
# Of exact batches; then 12, 16, 24, 32, 48, ...: a quarter of the entries is filling at worst.
_WIDTHS = (8,)


@final
class Ways:
    """The arguments that decide it, checked.

    Attributes:
        length: How long a row is; None for its longest padded leaf.
        window: How many rows are read at a time; None for as many as the way needs.
        widths: Lengths that padded leaves are filled up to; empty for the longest row's.
        exact: Whether bits may not depend on company.
        planned: Whether rows are put together by what they cost.
    """

    __slots__ = ("exact", "length", "planned", "widths", "window")

    def __init__(
        self,
        length: Callable[[Any], Any] | None,
        window: int | None,
        widths: tuple[int, ...],
        *,
        exact: bool,
        planned: bool,
    ) -> None:
        self.length, self.window, self.widths = length, window, widths
        self.exact, self.planned = exact, planned

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
            plain_callable("map_batches(length=...)", length, of="a row")
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

    def rows_at_once(self, batch_size: int, pad: Pad, n_devices: int) -> int:
        """Return how many rows are read at a time."""
        if self.window is not None:
            return self.window
        if self.planned or (self.exact and pad is not None):
            return _WINDOW * n_devices
        return batch_size if n_devices == 1 else batch_size * _SHARE * n_devices

    def way(self, fixed: Runner, alone: Runner | None, pad: Pad) -> Way | None:
        """Return how one device is given its rows; None for batch after batch."""
        if alone is not None:
            from mlkit.inference._offline.exact import Exact

            return Exact(fixed, alone, pad, self.widths)
        if self.planned:
            from mlkit.inference._offline.window import Planner

            return Planner(fixed, self._measure(pad))
        return None

    def steps(self, lanes: list[Lane], pad: Pad) -> Runner | Steps:
        """Return what runs rows on these devices, in this way."""
        first = lanes[0]
        description: dict[str, Any] = {}
        if self.exact:  # the window and the number of devices do not change a bit
            description["exact"] = True
        elif self.planned:
            description["window"] = self.rows_at_once(first.runner.limit, pad, len(lanes))
        if self.length is not None:
            description["length"] = name_of(self.length)
        if len(lanes) > 1:
            from mlkit.inference._offline.lanes import Lanes

            others = [lane.runner for lane in lanes[1:]]
            return Steps(first.runner, Lanes(lanes), description, others)
        return first.runner if first.way is None else Steps(first.runner, first.way, description)

    def _measure(self, pad: Pad) -> Callable[[Any], Any]:
        longest = longest_leaf(pad) if self.length is None else self.length
        widths = self.widths
        if not widths or self.length is not None:
            return longest
        return lambda row: width_for(longest(row), widths)


def _refuse(name: str, value: object, expected: str, hint: str) -> None:
    raise ConfigurationError(f"map_batches({name}=...)", value, expected, hint=hint)
