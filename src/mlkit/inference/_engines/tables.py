"""Tables as rows, and results as further columns of a table: what data frames of engines are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.errors import ConfigurationError, RowError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ERROR", "RESULT", "Added", "added", "rows_of"]

RESULT = "result"
ERROR = "error"


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Return one dict per row; a value is what iterating over its column gives."""
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


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
            column.append(values[name])
    for column in columns.values():  # errors before the first result knew no columns
        column[:0] = [None] * (len(results) - len(column))
    if on_error == "return":
        columns[ERROR] = errors
    return Added(kept, columns)
