"""Rows that agree in every attribute a rule reads, found without asking the rule."""

from __future__ import annotations

from operator import countOf
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mlkit.flags._containers import Arrow, Coded, Numbers, Sequence

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mlkit.flags._containers import Opened

__all__ = ["Column", "column_of", "groups"]

_ABSENT: Final = object()
_EXACT = frozenset({str, int, bool, type(None)})
_SPAN = 2**16


class Column(NamedTuple):
    """An attribute of each row.

    Attributes:
        codes: The index of each row's value, None if all have the first.
        values: The values; each is there once, or else rows that agree are told apart for nothing.
    """

    codes: NDArray[np.intp] | None
    values: list[Any]


def column_of(given: Opened) -> Column:
    """Return a column by its distinct values: of different types, or `0.0` and `-0.0`, they are different."""
    if isinstance(given, Sequence):
        made = _of_list(given.values)
        return made if given.nulls is None else _without(made, given.nulls, len(given.values))
    if isinstance(given, Numbers):
        made = _of_array(given.values)
        return made if given.nulls is None else _without(made, given.nulls, len(given.values))
    if isinstance(given, Arrow):
        coded = given.values.dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        given = Coded(codes, coded.dictionary.to_pylist())
    return _of_codes(given)


def _of_codes(given: Coded) -> Column:
    import numpy as np

    # -1, for none, then is the index of the last.
    codes = given.codes.astype(np.intp, copy=False)
    values = [*given.values, _ABSENT]
    if len(codes) and (codes == codes[0]).all():
        return Column(None, [values[int(codes[0])]])
    return Column(np.where(codes < 0, len(values) - 1, codes), values)


def _without(column: Column, nulls: NDArray[np.bool_], n: int) -> Column:
    """Return a column with no value where *nulls* holds."""
    import numpy as np

    if not nulls.any():
        return column
    codes = np.zeros(n, dtype=np.intp) if column.codes is None else column.codes
    return Column(np.where(nulls, len(column.values), codes), [*column.values, _ABSENT])


def _of_list(values: list[Any]) -> Column:
    import numpy as np

    try:
        kind = type(values[0])
        exact = kind in _EXACT and countOf(map(type, values), kind) == len(values)
        if exact and values.count(values[0]) == len(values):
            return Column(None, values[:1])
        keys = values if exact else list(map(_key, values))
        distinct = dict.fromkeys(keys)
        index = dict(zip(distinct, range(len(distinct)), strict=True))
        codes = np.fromiter(map(index.__getitem__, keys), dtype=np.intp, count=len(keys))
    except Exception:  # noqa: BLE001 - a list in a column, or an object whose `==` raises: each row for itself
        return Column(np.arange(len(values)), values)
    if keys is values:
        return Column(codes, list(distinct))
    first = np.zeros(len(distinct), dtype=np.intp)
    first[codes[::-1]] = np.arange(len(values) - 1, -1, -1)
    return Column(codes, [values[place] for place in first.tolist()])


def _key(value: Any) -> Any:
    """Return what tells values apart where Python has `1 == 1.0 == True` and `0.0 == -0.0`."""
    return type(value), value, str(value) if type(value) is float else ""


def _of_array(values: NDArray[Any]) -> Column:
    import numpy as np

    kind = values.dtype.kind
    if kind == "U":
        return _of_list(values.tolist())
    # Floats by their bits: zeros of two signs are two values, and NaN is one.
    told = values if kind in "biu" else values.view(f"u{values.dtype.itemsize}")
    if not len(told) or (told == told[0]).all():
        return Column(None, values[:1].tolist())
    if kind == "b":
        return Column(values.astype(np.intp), [False, True])
    if kind in "iu":
        least, most = int(values.min()), int(values.max())
        if most - least < _SPAN:
            codes = (
                values.astype(np.int64) - least
                if kind == "i"
                else values - values.dtype.type(least)
            )
            return Column(codes.astype(np.intp), list(range(least, most + 1)))
    _, first, codes = np.unique(told, return_index=True, return_inverse=True)
    return Column(codes, values[first].tolist())


def groups(
    table: Mapping[str, Column], n: int
) -> Iterator[tuple[NDArray[np.intp] | None, dict[str, Any]]]:
    """Yield the rows that agree in every column, None for all, with their attributes."""
    import numpy as np

    varying = [(codes, len(values)) for codes, values in table.values() if codes is not None]
    if not varying:
        yield None, _attributes(table, 0)
        return
    codes, n_codes = np.zeros(n, dtype=np.intp), 1
    for more, n_values in varying:
        if n_codes * n_values > max(_SPAN, n):  # as few as there are: no overflow
            codes = np.unique(codes, return_inverse=True)[1]
            n_codes = int(codes.max()) + 1
        codes = codes * n_values + more
        n_codes *= n_values
    if n_codes > max(_SPAN, n):
        codes = np.unique(codes, return_inverse=True)[1]
        n_codes = int(codes.max()) + 1
    # Sixteen bits are sorted by their digits, many times as fast as by comparing.
    order = np.argsort(codes.astype(np.uint16) if n_codes <= _SPAN else codes, kind="stable")
    sizes = np.bincount(codes, minlength=n_codes)
    begin = 0
    for size in sizes[sizes > 0].tolist():
        places = order[begin : begin + size]
        begin += size
        yield places, _attributes(table, int(places[0]))


def _attributes(table: Mapping[str, Column], place: int) -> dict[str, Any]:
    made = {}
    for name, (codes, values) in table.items():
        value = values[0 if codes is None else codes[place]]
        if value is not _ABSENT:
            made[name] = value
    return made
