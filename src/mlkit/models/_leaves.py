"""The arrays in a value, by their places: what a signature is inferred from and an input is checked by."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlkit._suggest import article
from mlkit.errors import ConfigurationError

__all__ = ["Leaf", "leaves_of", "widens"]

_MAX_DEPTH = 16
_OBJECTS = {
    "str": "string",
    "bytes": "bytes",
    "datetime": "datetime",
    "Timestamp": "datetime",
    "timedelta": "timedelta",
    "Timedelta": "timedelta",
}
_KINDS = {"M": "datetime", "m": "timedelta", "U": "string", "T": "string", "S": "bytes"}
_EXPECTED = (
    "arrays, tensors, tables, numbers, text, or lists, mappings, tuples and dataclasses of them"
)


class Leaf(NamedTuple):
    """One array.

    Attributes:
        dtype: Its dtype, in the words of a signature.
        shape: Its sizes.
        source: `"torch"`, `"array"` or `"plain"` (numbers and text without a dtype of their own).
    """

    dtype: str
    shape: tuple[int, ...]
    source: str


def leaves_of(where: str, value: object) -> dict[str, Leaf]:
    """Return the arrays of a value by their places.

    Args:
        where: What to call it in errors.
        value: The value.

    Raises:
        ConfigurationError: If something in it has no dtype.
    """
    leaves: dict[str, Leaf] = {}
    _add(leaves, where, "", value, 0)
    return leaves


def widens(leaf: Leaf, dtype: str) -> bool:
    """Return whether an array can become one of *dtype* without loss.

    Args:
        leaf: The array.
        dtype: Of a signature.
    """
    if leaf.dtype == dtype or (leaf.source == "plain" and 0 in leaf.shape):
        return True
    if leaf.source == "torch":
        return False
    import numpy as np

    try:
        own, wanted = np.dtype(leaf.dtype), np.dtype(dtype)
    except TypeError:  # text, times, and what only torch has
        return False
    if wanted.kind not in "biufc" or own.kind not in "biufc":
        return False
    if leaf.source == "plain":  # 1 is as good as 1.0, and neither has a width
        return "biufc".index(own.kind) <= "biufc".index(wanted.kind) and own.kind != "b"
    return np.can_cast(own, wanted, "safe")


def _add(leaves: dict[str, Leaf], where: str, place: str, value: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ConfigurationError(_at(where, place), "...", f"at most {_MAX_DEPTH} levels")
    inner = _parts(place, value)
    if inner is None:
        leaves[place] = _leaf(where, place, value)
        return
    for name, item in inner:
        if name in leaves:
            raise ConfigurationError(_at(where, name), "two of them", "names that differ")
        _add(leaves, where, name, item, depth + 1)


def _parts(place: str, value: Any) -> list[tuple[str, Any]] | None:
    """Return what a container holds, with the place of each; None if it is an array itself."""
    if _is_table(value):
        columns = enumerate(value.columns)  # by number: two may have one name
        return [(_inner(place, str(name)), value.iloc[:, index]) for index, name in columns]
    if isinstance(value, Mapping):
        return [(_inner(place, str(name)), item) for name, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [
            (_inner(place, name), item) for name, item in zip(value._fields, value, strict=True)
        ]
    if isinstance(value, tuple):
        return [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        names = dict.fromkeys(name for row in value for name in row)
        return [(_inner(place, str(name)), [row.get(name) for row in value]) for name in names]
    if hasattr(type(value), "__dataclass_fields__"):
        names = type(value).__dataclass_fields__
        return [(_inner(place, name), getattr(value, name)) for name in names]
    return None


def _leaf(where: str, place: str, value: Any) -> Leaf:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return Leaf(str(value.dtype).removeprefix("torch."), tuple(value.shape), "torch")
    if isinstance(value, list) and any(map(_is_array, value)):
        return _stacked(where, place, value)
    import numpy as np

    if not _is_array(value) and not isinstance(
        value, (bool, int, float, complex, str, bytes, Sequence)
    ):
        raise ConfigurationError(_at(where, place), _a(value), _EXPECTED)
    # A column of a table: its own dtype may be one that only pandas has.
    if hasattr(value, "to_numpy"):
        return Leaf(_column_dtype(where, place, value), tuple(value.shape), "array")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigurationError(
            _at(where, place), _a(value), "rows of one length", hint=str(error)
        ) from None
    source = "array" if hasattr(value, "dtype") else "plain"
    if source == "plain" and array.dtype.kind in "US":  # NumPy makes text of numbers among text
        return Leaf(_dtype(where, place, np.asarray(value, dtype=object)), array.shape, source)
    return Leaf(_dtype(where, place, array), array.shape, source)


def _stacked(where: str, place: str, rows: list[Any]) -> Leaf:
    """Return what rows make together; a tuple is the way to say that they are different things."""
    leaves = {_leaf(where, f"{place}[{index}]", row) for index, row in enumerate(rows)}
    if len(leaves) > 1:
        kinds = sorted(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)[:4]
        raise ConfigurationError(
            _at(where, place), kinds, "rows of one dtype and shape, or a tuple of different things"
        )
    (leaf,) = leaves
    return leaf._replace(shape=(len(rows), *leaf.shape))


def _column_dtype(where: str, place: str, column: Any) -> str:
    import numpy as np

    name = str(column.dtype)
    if name == "category":
        return _column_dtype(where, place, column.cat.categories)
    if not isinstance(column.dtype, np.dtype):
        name = name.partition("[")[0].lower()  # Int64, string[python], boolean, datetime64[ns, UTC]
        return {"boolean": "bool", "str": "string", "datetime64": "datetime"}.get(name, name)
    return _dtype(where, place, column.to_numpy())


def _dtype(where: str, place: str, array: Any) -> str:
    if array.dtype.kind in _KINDS:
        return _KINDS[array.dtype.kind]
    if array.dtype.kind in "biufc":
        return str(array.dtype.name)
    if array.dtype.kind != "O":  # records, of several dtypes
        raise ConfigurationError(_at(where, place), f"an array of dtype {array.dtype}", _EXPECTED)
    values = [item for item in array.ravel().tolist() if not _is_missing(item)]
    types = sorted({type(item).__name__ for item in values})
    if len(types) != 1 or types == ["object"]:
        kinds = f"objects of the types {types[:5]}" if types else "nothing but missing values"
        raise ConfigurationError(_at(where, place), kinds, _EXPECTED)
    import numpy as np

    if types[0] in _OBJECTS:
        return _OBJECTS[types[0]]
    try:
        present = np.asarray(values)
    except ValueError:  # lists of several lengths, as the cells of a column
        present = array
    if present.dtype.kind == "O":
        raise ConfigurationError(_at(where, place), f"objects of the type {types[0]}", _EXPECTED)
    return _dtype(where, place, present)


def _is_missing(item: Any) -> bool:
    return (
        item is None
        or (isinstance(item, float) and item != item)  # noqa: PLR0124 - NaN
        or type(item).__name__ in {"NAType", "NaTType"}
    )


def _is_table(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "iloc")


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _inner(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _a(value: object) -> str:
    return article(type(value).__name__)  # never what is in it: it may be a person's


def _at(where: str, place: str) -> str:
    return f"{where} at {place!r}" if place else where
