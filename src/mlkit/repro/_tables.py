"""What counts of a table: its columns in order, their names, types and values; how they lie in memory does not."""

from __future__ import annotations

import sys
from typing import Any

from mlkit._optional import require
from mlkit.errors import FingerprintError

__all__ = ["of_arrow", "of_pandas"]


def of_pandas(value: Any, path: str) -> tuple[str, Any] | None:
    """Return the kind of a pandas object and what counts of it, or None if *value* is none.

    Args:
        value: Anything.
        path: Where it is, for errors.

    Raises:
        FingerprintError: If a column is of a type without a faithful content hash.
    """
    pandas = sys.modules.get("pandas")  # whoever holds one has imported it
    if pandas is None:
        return None
    if value is pandas.NA or value is pandas.NaT:
        return "missing", repr(value)
    if isinstance(value, pandas.DataFrame):
        labels = _index(pandas, value.columns, f"{path}.columns")
        columns = [
            _column(pandas, value.iloc[:, place].array, f"{path}[{label!r}]")
            for place, label in enumerate(value.columns)
        ]
        return "frame", [_index(pandas, value.index, f"{path}.index"), labels, columns]
    if isinstance(value, pandas.Series):
        index = _index(pandas, value.index, f"{path}.index")
        return "series", [index, value.name, _column(pandas, value.array, path)]
    if isinstance(value, pandas.Index):
        return "index", _index(pandas, value, path)
    if isinstance(value, pandas.api.extensions.ExtensionArray):
        return "column", _column(pandas, value, path)
    return None


def _index(pandas: Any, index: Any, path: str) -> list[Any]:
    if isinstance(index, pandas.MultiIndex):
        levels = range(index.nlevels)
        return [
            _index(pandas, index.get_level_values(level), f"{path}.levels[{level}]")
            for level in levels
        ]
    return [index.name, _column(pandas, index.array, path)]


def _column(pandas: Any, array: Any, path: str) -> list[Any]:
    """Return type and values of a column, as plain data and NumPy arrays."""
    import numpy as np

    dtype = array.dtype
    if isinstance(dtype, pandas.StringDtype):
        missing = np.asarray(array.isna())
        texts = ["" if gone else text for text, gone in zip(array, missing, strict=True)]
        lengths = np.array([len(text) for text in texts], dtype="<i8")
        held = "".join(texts).encode("utf-8", "surrogatepass")
        return [dtype.name, missing, lengths, np.frombuffer(held, dtype="u1")]
    if isinstance(array, pandas.arrays.NumpyExtensionArray):
        values = array.to_numpy()
        return [str(values.dtype), values.tolist() if values.dtype == object else values]
    dtype = array.dtype
    if isinstance(dtype, pandas.ArrowDtype):
        pa = require("pyarrow", extra="arrow", feature="the fingerprint of Arrow data")
        return [str(dtype), *_arrow_column(pa, array.__arrow_array__())]
    if isinstance(dtype, pandas.CategoricalDtype):
        categories = _column(pandas, dtype.categories.array, f"{path}.categories")
        return ["category", dtype.ordered, categories, np.asarray(array.codes, dtype="<i8")]
    if isinstance(dtype, (pandas.DatetimeTZDtype, pandas.PeriodDtype)):
        return [str(dtype), array.asi8]
    if isinstance(dtype, pandas.IntervalDtype):
        ends = [_column(pandas, end.array, path) for end in (array.left, array.right)]
        return ["interval", dtype.closed, *ends]
    if isinstance(dtype, pandas.SparseDtype):
        raise FingerprintError(path, "it is a sparse column; pass frame.sparse.to_dense()")
    if isinstance(dtype, np.dtype):  # dates without a time zone, and durations
        return [str(dtype), array.to_numpy()]
    if hasattr(dtype, "numpy_dtype"):  # Int64, Float32, boolean: a mask beside the values
        missing = np.asarray(array.isna())
        zero = np.zeros((), dtype=dtype.numpy_dtype).item()
        return [str(dtype), missing, array.to_numpy(dtype=dtype.numpy_dtype, na_value=zero)]
    raise FingerprintError(path, f"it is a column of type {dtype}; convert it to a type of pandas")


def of_arrow(value: Any, path: str) -> tuple[str, Any] | None:
    """Return the kind of an Arrow array, column or table and what counts of it, or None if *value* is none.

    Anything that exports Arrow data (`__arrow_c_stream__`), such as a polars frame, is taken as Arrow's table.

    Args:
        value: Anything.
        path: Where it is, for errors.

    Raises:
        FingerprintError: If it is a stream that can be read once only, holds objects of Python, or a type that Arrow
            cannot read.
    """
    if not (hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__")):
        return None
    pa = require("pyarrow", extra="arrow", feature="the fingerprint of Arrow data")
    if isinstance(value, pa.RecordBatchReader):
        raise FingerprintError(
            path, "it is a stream, which can be read once only; pass reader.read_all()"
        )
    _refuse_objects(value, path)
    try:
        return _of_arrow(pa, value)
    # Of a type that it lacks (128 bits of polars), or that it cannot convert.
    except pa.lib.ArrowException as error:
        raise FingerprintError(path, f"Arrow cannot read it ({error})") from error


def _of_arrow(pa: Any, value: Any) -> tuple[str, Any]:
    if not hasattr(value, "columns"):  # one column
        column = value if isinstance(value, pa.Array) else pa.chunked_array(value)
        return "arrow column", _arrow_column(pa, column)
    table = value if isinstance(value, pa.Table) else pa.table(value)
    columns = [
        [field.name, field.nullable, _arrow_column(pa, column)]
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    return "arrow table", [table.num_rows, columns]


def _refuse_objects(value: Any, path: str) -> None:
    """Raise for a column of Python objects, of which polars exports the addresses."""
    polars = sys.modules.get("polars")
    if polars is None or not isinstance(value, (polars.DataFrame, polars.Series)):
        return
    columns = [value] if isinstance(value, polars.Series) else value.get_columns()
    for column in columns:
        if column.dtype == polars.Object:
            reason = f"its column {column.name!r} holds objects of Python; convert it to a type of polars"
            raise FingerprintError(path, reason)


def _arrow_column(pa: Any, column: Any) -> list[Any]:
    """Return type and values of a column; how it is cut into chunks does not count."""
    if isinstance(column, pa.ChunkedArray):
        # Arrow trips over some empty ones.
        chunks = [chunk for chunk in column.chunks if len(chunk)]
        column = pa.concat_arrays(chunks) if chunks else pa.nulls(0, column.type)
    return [_arrow_type(pa, column.type), *_arrow_values(pa, column)]


def _arrow_type(pa: Any, kind: Any) -> Any:
    """Return what a type says of its values, whatever the width of its offsets."""
    kinds = pa.types
    if kinds.is_struct(kind):
        return ["struct", [[one.name, one.nullable, _arrow_type(pa, one.type)] for one in kind]]
    if kinds.is_list(kind) or kinds.is_large_list(kind):
        return ["list", _arrow_type(pa, kind.value_type)]
    if kinds.is_fixed_size_list(kind):
        return ["list", kind.list_size, _arrow_type(pa, kind.value_type)]
    if kinds.is_dictionary(kind):
        return ["dictionary", kind.ordered, _arrow_type(pa, kind.value_type)]
    if kind in _texts(pa):
        return "string"
    return "binary" if kind in _binaries(pa) else str(kind)


def _arrow_values(pa: Any, array: Any) -> list[Any]:
    """Return what an array says, whatever lies in memory beside it or under its nulls."""
    kinds, kind = pa.types, array.type
    if kinds.is_dictionary(kind):  # two dictionaries can say the same
        words = array.dictionary
        # polars has these, and Arrow cannot take from them.
        if words.type in {pa.string_view(), pa.binary_view()}:
            words = words.cast(pa.large_binary())
        decoded = pa.DictionaryArray.from_arrays(array.indices, words).dictionary_decode()
        return _arrow_values(pa, decoded)
    if isinstance(kind, pa.BaseExtensionType):
        return [kind.extension_name, *_arrow_values(pa, array.storage)]
    missing = array.is_null().to_numpy(zero_copy_only=False)
    if kinds.is_struct(kind):
        return [missing, [_arrow_values(pa, field) for field in array.flatten()]]
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return [missing, lengths.astype("<i8"), *_arrow_values(pa, array.flatten())]
    if kind in _texts(pa) | _binaries(pa):
        return [missing, *_arrow_spans(array.cast(pa.large_binary()).fill_null(b""))]
    if kinds.is_temporal(kind) and not kinds.is_interval(kind):
        array = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
        kind = array.type
    if kinds.is_integer(kind) or kinds.is_floating(kind):
        return [missing, array.fill_null(0).to_numpy(zero_copy_only=False)]
    if kinds.is_boolean(kind):
        return [missing, array.fill_null(False).to_numpy(zero_copy_only=False)]  # noqa: FBT003
    return [array.to_pylist()]


def _texts(pa: Any) -> set[Any]:
    return {pa.string(), pa.large_string(), pa.string_view()}


def _binaries(pa: Any) -> set[Any]:
    return {pa.binary(), pa.large_binary(), pa.binary_view()}


def _arrow_spans(array: Any) -> list[Any]:
    """Return the lengths and the bytes of an array of `large_binary` without nulls."""
    import numpy as np

    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, dtype="<i8")[array.offset : array.offset + len(array) + 1]
    held = np.frombuffer(data, dtype="u1") if data is not None and data.size else np.zeros(0, "u1")
    return [np.diff(bounds), held[bounds[0] : bounds[-1]] if bounds.size else held[:0]]
