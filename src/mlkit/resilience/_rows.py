"""Rows of a batch: taken out and put back in place, in one container or in a structure of several columns.

A structure is a mapping, a dataclass, a named tuple, or a tuple of which some item is a batch; it has as many rows as each
of its columns. A list always holds rows. What has no rows (None, a text, a number) says something about the whole.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from mlkit.errors import ConfigurationError
from mlkit.resilience._kinds import is_array, is_tensor
from mlkit.resilience._leaves import is_table, leaf_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "MisfitError",
    "copied",
    "example",
    "filled",
    "joined",
    "n_rows",
    "one",
    "parts_of",
    "put",
    "rebuilt",
    "take",
]


class MisfitError(ValueError):
    """Rows do not fit among others; *place* is where in the structure: `['probs']`."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(reason)
        self.place = place


def n_rows(where: str, batch: Any) -> int:
    """Return the number of rows of *batch*, or raise `ConfigurationError`."""
    found = list(_columns(batch, ""))
    if not found:
        raise ConfigurationError(
            where,
            type(batch),
            "a NumPy array, torch tensor, list or pandas table, or a dict, tuple or dataclass of them, rows first",
        )
    (first, column), *others = found
    for place, other in others:
        if len(other) != len(column):
            raise ConfigurationError(
                where, f"{len(column)} in {first} and {len(other)} in {place}", "as many rows"
            )
    return len(column)


def take(batch: Any, index: Any) -> Any:
    """Return the rows of *batch* at the integer array *index*, in the same kind of container, as a copy."""
    return _mapped(lambda leaf, column: leaf.take(column, index), batch)


def one(batch: Any, i: int) -> Any:
    """Return row *i* as a user would write `batch[i]`; of a structure, the same structure of such values."""
    return _mapped(lambda _, column: column.iloc[i] if is_table(column) else column[i], batch)


def copied(value: Any) -> Any:
    """Return a copy as deep as arrays, tensors, tables, lists and structures of them go; anything else as it is."""
    parts = parts_of(value, loose=True)
    if parts is not None:
        return rebuilt(value, {key: copied(part) for key, part in parts.items()})
    if is_tensor(value):
        return value.clone()
    leaf = leaf_of(value)
    return value if leaf is None or type(value) is tuple else leaf.copied(value)


def joined(batches: Sequence[Any]) -> Any:
    """Return the rows of *batches*, which are of one kind, one after the other."""
    first = batches[0]
    parts = parts_of(first)
    if parts is not None:
        given = [parts_of(batch) or {} for batch in batches]
        return rebuilt(first, {key: joined([each[key] for each in given]) for key in parts})
    leaf = leaf_of(first)
    return first if leaf is None else leaf.joined(batches)


def put(batch: Any, index: Any, rows: Any, place: str = "") -> Any:
    """Return *batch*, changed in place where that can be, with *rows* at *index*, or raise `MisfitError`."""
    parts, given = parts_of(batch), parts_of(rows)
    if parts is not None and given is not None and type(rows) is type(batch):
        if given.keys() != parts.keys():
            raise MisfitError(place, f"{list(given)} do not fit among {list(parts)}")
        changed = {
            key: put(column, index, given[key], place + _step(batch, key))
            for key, column in parts.items()
        }
        return rebuilt(batch, changed)
    leaf = leaf_of(batch)
    if parts is None and leaf is None and _same(batch, rows):
        return batch
    if parts is not None or given is not None or leaf is None or leaf_of(rows) is None:
        raise MisfitError(place, f"{_kind(rows)} does not fit where {_kind(batch)} is")
    try:
        return leaf.put(batch, index, rows)
    except (TypeError, ValueError) as error:
        raise MisfitError(place, str(error)) from None


def filled(value: Any, n: int, like: Any) -> Any:
    """Return *n* rows that all are *value*, in the kind of container of *like*.

    A structure of values becomes one of columns, unless *like* is a list or a table: then it is a row.
    """
    columns, leaf = parts_of(like), leaf_of(like)
    if columns is None and leaf is None:  # says something about the whole
        return value
    parts = parts_of(value, loose=type(value) is not tuple or columns is not None)
    if columns is None and (parts is None or isinstance(like, (list, tuple)) or is_table(like)):
        return leaf.filled(value, n, like) if leaf is not None else value
    column = like if columns is None else example(like)
    if parts is None:
        return filled(value, n, column)
    filling = columns or {}
    return rebuilt(
        value, {key: filled(part, n, filling.get(key, column)) for key, part in parts.items()}
    )


def columns_of(batch: Any) -> list[Any]:
    """Return all that holds rows in *batch*."""
    return [column for _, column in _columns(batch, "")]


def example(batch: Any) -> Any:
    """Return what a column of answers to *batch* looks like: a tensor, array or list, whichever *batch* has first."""
    columns = columns_of(batch)
    for kind in (is_tensor, is_array):
        for column in columns:
            if kind(column):
                return column
    if is_table(columns[0]):
        import numpy as np

        return np.zeros(0)
    return columns[0]


def parts_of(value: Any, *, loose: bool = False) -> dict[Any, Any] | None:
    """Return the columns of a structure by their keys, or None.

    Args:
        value: Anything.
        loose: Whether every tuple is a structure, even one without a batch in it.
    """
    if isinstance(value, (list, str)) or is_array(value) or is_tensor(value) or is_table(value):
        return None
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return dict(zip(value._fields, value, strict=True))
        if loose or type(value) is not tuple or any(map(_is_batch, value)):
            return dict(enumerate(value))
        return None
    if isinstance(value, MutableMapping):
        return dict(value)
    if isinstance(value, type) or not hasattr(value, "__dataclass_fields__"):
        return None
    from dataclasses import fields

    # What is no argument of the constructor is worked out from what is.
    return {field.name: getattr(value, field.name) for field in fields(value) if field.init}


def rebuilt(like: Any, parts: dict[Any, Any]) -> Any:
    """Return a structure of the type of *like* with these columns."""
    kind = type(like)
    if kind is dict:
        return parts
    if isinstance(like, tuple):
        return like._make(parts.values()) if hasattr(like, "_make") else kind(parts.values())
    if isinstance(like, MutableMapping):
        from copy import copy

        changed = copy(like)
        for key, column in parts.items():
            changed[key] = column
        return changed
    # Made anew and not copied: what a copy has worked out and cached would be that of other rows.
    return kind(**parts)


def _mapped(change: Callable[[Any, Any], Any], batch: Any) -> Any:
    parts = parts_of(batch)
    if parts is not None:
        return rebuilt(batch, {key: _mapped(change, column) for key, column in parts.items()})
    leaf = leaf_of(batch)
    return batch if leaf is None else change(leaf, batch)


def _is_batch(value: Any) -> bool:
    """Whether the tuple that *value* is in is a structure: anything with rows, but a tuple of rows."""
    if type(value) is tuple:
        return any(map(_is_batch, value))
    return next(_columns(value, ""), None) is not None


def _columns(batch: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield what holds rows in *batch*, each with its place."""
    parts = parts_of(batch)
    if parts is not None:
        for key, column in parts.items():
            yield from _columns(column, place + _step(batch, key))
    elif leaf_of(batch) is not None:
        yield place, batch


def _step(batch: Any, key: Any) -> str:
    return f"[{key!r}]" if isinstance(batch, MutableMapping) or isinstance(key, int) else f".{key}"


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - what cannot be compared is not known to be the same
        return False


def _kind(value: Any) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}".replace("a builtins.", "a ")
