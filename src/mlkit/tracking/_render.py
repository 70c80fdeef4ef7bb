"""Figures and tables as the bytes of files, in the form that the name's ending asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlkit.errors import ConfigurationError

__all__ = ["figure_bytes", "table_bytes"]

_TABLE = "a table: a mapping of names to columns, a list of rows, or a data frame"


def figure_bytes(where: str, figure: Any, name: str) -> bytes:
    """Return the bytes of a figure of Matplotlib, Plotly, or an image of Pillow.

    Raises:
        ConfigurationError: If it is none of them, or cannot be written in the form of the name's
            ending.
    """
    from io import BytesIO

    ending = _ending(name)
    buffer = BytesIO()
    try:
        if ending == "html" and hasattr(figure, "to_html"):
            return str(figure.to_html(include_plotlyjs="cdn")).encode()
        if hasattr(figure, "savefig"):
            figure.savefig(buffer, format=ending)
        elif hasattr(figure, "write_image"):
            figure.write_image(buffer, format=ending)
        elif hasattr(figure, "save"):
            figure.save(buffer, format={"jpg": "jpeg"}.get(ending, ending))
        else:
            raise ConfigurationError(
                where, figure, "a figure of Matplotlib or Plotly, or an image of Pillow"
            )
    except (ValueError, KeyError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            where, name, "an ending that the figure's library writes", hint=str(error)
        ) from error
    return buffer.getvalue()


def table_bytes(where: str, table: Any, name: str) -> bytes:
    """Return the bytes of a table as JSON (`{"columns": [...], "data": [[...]]}`), CSV or Parquet.

    Raises:
        ConfigurationError: If it is no table, or the name has another ending.
        MissingDependencyError: If Parquet is asked for and PyArrow is not installed.
    """
    ending = _ending(name)
    if ending == "parquet":
        return _parquet(where, table)
    if ending not in {"json", "csv"}:
        raise ConfigurationError(where, name, "a name that ends with .json, .csv or .parquet")
    columns = _columns(where, table)
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    if ending == "json":
        import json

        content = {
            "columns": list(columns),
            "data": [[_plain(cell) for cell in row] for row in rows],
        }
        return json.dumps(content, default=str, allow_nan=False).encode("ascii")
    import csv
    from io import StringIO

    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(columns), *rows])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _parquet(where: str, table: Any) -> bytes:
    from io import BytesIO

    from mlkit._optional import require

    arrow = require("pyarrow", extra="arrow", feature="Run.log_table")
    parquet = require("pyarrow.parquet", extra="arrow", feature="Run.log_table")
    buffer = BytesIO()
    try:
        held = arrow.table(table if _is_frame(table) else _columns(where, table))
        parquet.write_table(held, buffer)
    except (arrow.ArrowException, TypeError) as error:
        raise ConfigurationError(where, table, _TABLE, hint=str(error)) from error
    return buffer.getvalue()


def _is_frame(table: Any) -> bool:
    return hasattr(table, "__arrow_c_stream__") or hasattr(table, "__dataframe__")


def _columns(where: str, table: Any) -> dict[str, list[Any]]:
    """Return the columns of a table by name, all of one length."""
    held = table
    if hasattr(table, "to_pydict"):  # Arrow
        held = table.to_pydict()
    elif hasattr(table, "get_columns"):  # Polars
        held = table.to_dict(as_series=False)
    elif hasattr(table, "to_dict"):  # pandas
        held = table.to_dict(orient="list")
    if isinstance(held, Sequence) and not isinstance(held, (str, bytes)):
        if not all(isinstance(row, Mapping) for row in held):
            raise ConfigurationError(where, table, _TABLE)
        names = dict.fromkeys(name for row in held for name in row)
        held = {name: [row.get(name) for row in held] for name in names}
    if not isinstance(held, Mapping):
        raise ConfigurationError(where, table, _TABLE)
    columns = {str(name): _cells(where, column) for name, column in held.items()}
    if len(columns) != len(held):
        raise ConfigurationError(where, list(held), "columns of different names")
    if len({len(column) for column in columns.values()}) > 1:
        lengths = {name: len(column) for name, column in columns.items()}
        raise ConfigurationError(where, lengths, "columns of one length")
    return columns


def _cells(where: str, column: Any) -> list[Any]:
    column = column.tolist() if hasattr(column, "tolist") else column
    if isinstance(column, (str, bytes, Mapping)) or not hasattr(column, "__iter__"):
        raise ConfigurationError(where, column, _TABLE)
    return list(column)


def _plain(cell: Any) -> Any:
    """Return *cell* as JSON can say it: NaN and infinities are texts, as in `JsonlSink`."""
    from math import isfinite, isnan

    cell = cell.item() if hasattr(cell, "item") and not hasattr(cell, "__len__") else cell
    if isinstance(cell, float) and not isfinite(cell):
        return "NaN" if isnan(cell) else f"{'-' if cell < 0 else ''}Infinity"
    return cell


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""
