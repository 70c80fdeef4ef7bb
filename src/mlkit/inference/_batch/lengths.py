"""How long a row is: what a batch of it and others costs, and how wide its padded leaves become."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mlkit._arguments import whole
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError
from mlkit.inference._batch.tree import field_names, is_array, is_tensor, join_path, with_article

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.inference._batch.collate import Pad

__all__ = [
    "check_widths",
    "longest_leaf",
    "padded_lengths",
    "structure",
    "whole_length",
    "width_for",
]

_NUMBERS = (bool, int, float, complex)


def padded_lengths(row: Any, pad: Pad) -> tuple[int, ...]:
    """Return the lengths of the leaves of *row* that *pad* fills up, in the order of the leaves."""
    if isinstance(pad, Mapping):
        if type(row) is dict and len(pad) == 1:  # as most rows are
            leaf: Any = row.get(next(iter(pad)))
            if hasattr(leaf, "ndim") and leaf.ndim:
                return (leaf.shape[0],)
    elif (is_array(row) or is_tensor(row)) and row.ndim:
        return (len(row),)
    found: list[int] = []
    _walk(row, "", pad, found)
    return tuple(found)


def longest_leaf(pad: Pad) -> Callable[[Any], int]:
    """Return the function from a row to the length of the longest leaf that *pad* fills up; 0 if it has none."""
    named = isinstance(pad, Mapping)
    name = next(iter(pad)) if isinstance(pad, Mapping) and len(pad) == 1 else None

    def longest(row: Any) -> int:
        # The row itself is the leaf, or has it by its name, as nearly always.
        leaf = row
        if named:
            leaf = row.get(name) if type(row) is dict else None
        if hasattr(leaf, "ndim"):
            return leaf.shape[0] if leaf.ndim else 0
        return max(padded_lengths(row, pad), default=0)

    return longest


def _walk(row: Any, path: str, pad: Pad, found: list[int]) -> None:
    filled = path in pad if isinstance(pad, Mapping) else pad is not None
    if is_array(row) or is_tensor(row):
        if filled and row.ndim:
            found.append(len(row))
    elif filled and type(row) is list and all(isinstance(one, _NUMBERS) for one in row):
        found.append(len(row))
    elif isinstance(row, Mapping):
        for key, child in row.items():
            _walk(child, join_path(path, key), pad, found)
    elif isinstance(row, (tuple, list)):
        names = getattr(type(row), "_fields", None)
        for place, child in enumerate(row):
            _walk(child, join_path(path, names[place]) if names else f"{path}[{place}]", pad, found)
    else:
        for name in field_names(row) or ():
            _walk(getattr(row, name), join_path(path, name), pad, found)


def whole_length(length: Any) -> int:
    """Return what was measured as the length of a row, or raise a `ValueError` that says what is wrong with it."""
    try:
        exact = int(length)
    except (TypeError, ValueError, OverflowError):  # NaN and infinity too
        raise ValueError(_wrong(length)) from None
    if exact != length or exact < 0:
        raise ValueError(_wrong(length))
    return exact


def _wrong(length: object) -> str:
    shown = clip(length, 60) if isinstance(length, (int, float)) else with_article(length)
    return f"its length is {shown}; length(row) must be a whole number >= 0"


def structure(row: Any) -> Any:
    """Return what rows of one structure have in common, to be compared."""
    if is_array(row) or is_tensor(row):
        return str(row.dtype), row.ndim, tuple(row.shape[1:])
    if isinstance(row, Mapping):
        return type(row), *((str(key), structure(child)) for key, child in row.items())
    if type(row) is list and all(isinstance(one, _NUMBERS) for one in row):
        return list, *{type(one) for one in row}
    if isinstance(row, (tuple, list)):
        return type(row), *map(structure, row)
    names = field_names(row)
    if names is not None:
        return type(row), *(structure(getattr(row, name)) for name in names)
    return type(row)


def check_widths(argument: str, widths: Iterable[int] | None) -> tuple[int, ...]:
    """Return *widths* sorted and without repeats."""
    if widths is None:
        return ()
    expected = "a list of lengths, each a whole number >= 1"
    if isinstance(widths, (str, bytes)) or not isinstance(widths, Iterable):
        raise ConfigurationError(argument, widths, expected)
    chosen = tuple(sorted({whole(argument, width, low=1) for width in widths}))
    if not chosen:
        raise ConfigurationError(argument, widths, expected, hint="or None for any")
    return chosen


def width_for(length: int, widths: Sequence[int]) -> int:
    """Return the least of *widths*, sorted upwards, that holds *length*; beyond the last, doubles and one and a halves."""
    place = bisect_left(widths, length)
    if place < len(widths):
        return widths[place]
    step = 1 << max(length - 1, 0).bit_length()  # the power of two from there on
    return step * 3 // 4 if step >= 4 and length <= step * 3 // 4 else step
