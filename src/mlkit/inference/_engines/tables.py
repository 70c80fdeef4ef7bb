"""Tables as rows, and results as further columns of a table: what data frames of engines are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.errors import ConfigurationError, RowError
from mlkit.inference._batch.tree import is_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ERROR", "RESULT", "Added", "added", "rows_of", "values_of"]

RESULT = "result"
ERROR = "error"


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Return one dict per row; a value is what iterating over its column gives."""
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def values_of(column: Any) -> Sequence[Any]:
    """Return the value of each row of an Arrow array.

    What a value is depends on the column's type and on nothing else: pandas would make floats of all integers if one of
    them is missing, so that rows of one batch no longer fit those of the next, and large ones are others.

    Returns:
        Scalars and arrays of numpy, or what else Arrow makes of a type. What is missing is NaN, NaT or None.
    """
    import pyarrow as pa

    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if listed and column.flatten().null_count:
        return [None if not one.is_valid else _array(one.values) for one in column]
    if not column.null_count or pa.types.is_floating(kind) or pa.types.is_temporal(kind):
        return column.to_pandas().to_numpy()  # type: ignore[no-any-return]
    there = iter(list(column.drop_null().to_pandas().to_numpy()))
    return [next(there) if valid else None for valid in column.is_valid().to_pylist()]


def _array(column: Any) -> Any:
    """Return what `values_of` does as one array."""
    import numpy as np

    values = values_of(column)
    if not isinstance(values, list):
        return values
    array = np.empty(len(values), object)
    array[:] = values
    return array


class Added(NamedTuple):
    """What the results add to the table that their rows came from.

    Attributes:
        kept: The places of the rows that stay; None if all do.
        columns: The new columns, a value for each row that stays.
    """

    kept: list[int] | None
    columns: dict[str, list[Any]]


def added(results: list[Any], on_error: str, names: Sequence[str] = ()) -> Added:
    """Return *results* as columns.

    Args:
        results: For each row its result or its `RowError`. Dicts have a column for each key.
        on_error: `"skip"` for no row in place of an error, `"return"` for a column of their texts.
        names: The columns to make, if that is known; otherwise those of the results.
    """
    kept = None
    errors = [str(one) if isinstance(one, RowError) else None for one in results]
    if on_error == "skip" and any(errors):
        kept = [place for place, error in enumerate(errors) if error is None]
        results = [results[place] for place in kept]
    columns: dict[str, list[Any]] = {name: [] for name in names if name != ERROR}
    for result in results:
        if isinstance(result, RowError):
            values: Mapping[Any, Any] = dict.fromkeys(columns)
        else:
            values = result if isinstance(result, Mapping) else {RESULT: result}
            columns = columns or {name: [] for name in values}
            if values.keys() != columns.keys():
                raise ConfigurationError(
                    "map_batches(fn)", list(values), f"results with the columns {list(columns)}"
                )
        for name, column in columns.items():
            column.append(_plain(values[name]))
    for column in columns.values():  # errors before the first result knew no columns
        column[:0] = [None] * (len(results) - len(column))
    if on_error == "return":
        columns[ERROR] = errors
    return Added(kept, columns)


def _plain(value: Any) -> Any:
    """Return what a table can hold of a result: tables know numpy, and no tensors."""
    if not is_tensor(value):
        return value
    value = value.detach().cpu()
    try:
        return value.numpy()[()]
    except TypeError:  # a dtype that numpy does not have
        return value.float().numpy()[()]
