"""What holds ids and attributes, whichever library it is of: lists, NumPy, pandas, Arrow, and what speaks Arrow's interface.

Nothing is imported for it: what a caller hands over has been imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Arrow", "Coded", "Numbers", "Sequence", "Table", "opened", "opened_table"]

_SIZES = frozenset({1, 2, 4, 8})


class Sequence(NamedTuple):
    """Python values; where *nulls* holds, there is none."""

    values: list[Any]
    nulls: NDArray[np.bool_] | None = None


class Numbers(NamedTuple):
    """A NumPy array of booleans, integers, floats or texts; where *nulls* holds, there is none."""

    values: NDArray[Any]
    nulls: NDArray[np.bool_] | None = None


class Coded(NamedTuple):
    """Values by their index; -1 is none."""

    codes: NDArray[np.intp]
    values: list[Any]


class Arrow(NamedTuple):
    """A `pyarrow.Array` of texts, or of what Arrow can make a dictionary of."""

    values: Any


class Table(NamedTuple):
    """Columns by name, opened when they are asked for.

    Attributes:
        names: The names.
        n: How many rows, None if there is no column.
        column: Returns a column.
    """

    names: frozenset[str]
    n: int | None
    column: Callable[[str], Any]


Opened = Sequence | Numbers | Coded | Arrow


def opened(argument: str, values: Any) -> Opened:
    """Return a column of whatever library.

    Raises:
        ConfigurationError: If it is not a collection of one dimension.
    """
    if type(values) is list:
        return Sequence(values)
    library = type(values).__module__.partition(".")[0]
    try:
        if library == "numpy" and hasattr(values, "dtype"):
            return _of_numpy(argument, values)
        if library == "pandas" and hasattr(values, "dtype"):
            return _of_pandas(values)
        if library == "pyarrow" or hasattr(values, "__arrow_c_stream__"):
            made = _of_arrow(values)
            if made is not None:
                return made
    except ConfigurationError:
        raise
    except Exception as error:
        hint = f"it cannot be read: {type(error).__name__}: {error}"
        raise ConfigurationError(
            argument, type(values).__name__, "a one-dimensional column", hint=hint
        ) from error
    return _of_python(argument, values)


def _of_python(argument: str, values: Any) -> Sequence:
    expected = "a list or a one-dimensional array"
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ConfigurationError(argument, values, expected)
    for name in ("to_list", "tolist"):
        call = getattr(values, name, None)
        if callable(call):
            if getattr(values, "ndim", 1) != 1:
                raise ConfigurationError(argument, values, "a one-dimensional array")
            made = call()
            return Sequence(made if type(made) is list else list(made))
    return Sequence(list(values))


def _of_numpy(argument: str, values: Any) -> Opened:
    import numpy as np

    if values.ndim != 1:
        raise ConfigurationError(argument, values, "a one-dimensional array")
    nulls = None
    if isinstance(values, np.ma.MaskedArray):
        nulls, values = np.ma.getmaskarray(values), values.data
    if values.dtype.kind in "biufU" and (
        values.dtype.kind == "U" or values.dtype.itemsize in _SIZES
    ):
        return Numbers(values, nulls)
    return Sequence(values.tolist(), nulls)


def _of_pandas(values: Any) -> Opened:
    import numpy as np

    dtype = values.dtype
    array = getattr(values, "array", values)
    if hasattr(array, "categories"):
        return Coded(np.asarray(array.codes, dtype=np.intp), array.categories.tolist())
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf":
        plain = np.asarray(values)
        return Numbers(plain, np.isnan(plain) if dtype.kind == "f" else None)
    nulls = np.asarray(array.isna(), dtype=bool)
    kept = getattr(dtype, "numpy_dtype", None)
    if isinstance(kept, np.dtype) and kept.kind in "biuf" and hasattr(array, "_mask"):  # "Int64"
        return Numbers(array.to_numpy(dtype=kept, na_value=0), nulls)
    if getattr(dtype, "storage", "") == "pyarrow":  # texts
        made = _of_arrow(sys.modules["pyarrow"].array(array, from_pandas=True))
        if made is not None:
            return made
    return Sequence(array.tolist(), nulls)


def _of_arrow(values: Any) -> Opened | None:
    """Return an Arrow column; None if it is another library's and pyarrow is not there to read it."""
    import numpy as np

    pa: Any = sys.modules.get("pyarrow")
    if pa is None:
        try:
            import pyarrow as pa  # type: ignore[no-redef]
        except ImportError:
            return None
    if not isinstance(values, (pa.Array, pa.ChunkedArray)):
        values = pa.chunked_array(values)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # more than fits into one array
        return Sequence(values.to_pylist())
    kind, types = values.type, pa.types
    nulls = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        filled = values.fill_null(False if types.is_boolean(kind) else 0)
        return Numbers(np.asarray(filled.to_numpy(zero_copy_only=False)), nulls)
    if types.is_string_view(kind):
        values = values.cast(pa.large_string())
    if types.is_dictionary(kind):
        codes = values.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.intp)
        return _without_nulls(codes, values.dictionary.to_pylist())
    if _has_dictionaries(values, pa):
        return Arrow(values)
    return Sequence(values.to_pylist(), nulls)


def _without_nulls(codes: NDArray[np.intp], values: list[Any]) -> Coded:
    for index, value in enumerate(values):
        if value is None:  # a dictionary may hold a null, too
            codes[codes == index] = -1
    return Coded(codes, values)


def _has_dictionaries(values: Any, pa: Any) -> bool:
    kind = values.type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_temporal(kind)
        or pa.types.is_decimal(kind)
    )


def opened_table(argument: str, table: Any) -> Table:
    """Return a data frame, an Arrow table or a mapping of columns.

    Raises:
        ConfigurationError: If it is none.
    """
    from collections.abc import Mapping

    get: Callable[[str], Any] = lambda name: table[name]  # noqa: E731
    if isinstance(table, Mapping):
        names: Iterable[Any] = table
    elif hasattr(table, "column_names") and hasattr(table, "column"):  # pyarrow
        names, get = table.column_names, table.column
    elif hasattr(table, "columns") and hasattr(table, "__getitem__"):  # pandas, polars
        names = table.columns
    else:
        raise ConfigurationError(
            argument, type(table).__name__, "a data frame, an Arrow table or a mapping of columns"
        )
    known = list(names)
    if len(set(known)) != len(known) or not all(isinstance(name, str) for name in known):
        wrong = [name for name in known if not isinstance(name, str) or known.count(name) > 1]
        raise ConfigurationError(argument, wrong[0], "columns with texts for names, each once")
    n = getattr(table, "num_rows", None)
    if n is None and not isinstance(table, Mapping):
        n = len(table)
    return Table(frozenset(known), n, get)
