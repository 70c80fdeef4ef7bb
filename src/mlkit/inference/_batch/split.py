"""A batch, or what a model made of it, back to rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlkit._arguments import whole
from mlkit._suggest import clip
from mlkit.errors import OutputShapeError
from mlkit.inference._batch.tree import (
    Columns,
    Padded,
    field_names,
    is_array,
    is_tensor,
    join_path,
    rebuild,
    with_article,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["split", "split_output"]


def split(batch: Any, n_rows: int) -> list[Any]:
    """Cut a batch, or what a model made of it, into its rows: the inverse of `collate`.

    Arrays and tensors are cut along their first axis, a plain list has one entry per row, a `Padded` gives each row its
    own length back, and dicts, tuples, named tuples and dataclasses are rebuilt for each row.

    Args:
        batch: The batch.
        n_rows: How many rows it must hold, at least 0.

    Returns:
        The rows. Those made of arrays and tensors are views: they keep the batch's memory alive.

    Raises:
        OutputShapeError: If a leaf has another number of rows, or none, or a `Padded` a length that cannot be.
        ConfigurationError: If *n_rows* is no whole number >= 0.

    Examples:
        >>> import numpy as np
        >>> split({"label": ["cat", "dog"], "p": np.array([0.9, 0.6])}, 2)[1]["label"]
        'dog'
    """
    return split_output(batch, whole("split(n_rows)", n_rows), "split(batch)")


def split_output(output: Any, n_rows: int, function: str) -> list[Any]:
    """Cut *output* into *n_rows* rows, or say what *function* returned instead."""
    if output is None:
        raise OutputShapeError(function, expected=n_rows, got="None")
    return _split(output, n_rows, function, "")


def _split(tree: Any, n: int, function: str, path: str) -> list[Any]:
    if is_tensor(tree) or is_array(tree):
        if tree.ndim == 0:
            raise _refused(function, n, f"{with_article(tree)} without a first axis", path)
        if len(tree) != n:
            raise _refused(function, n, len(tree), path)
        return list(tree.unbind(0)) if is_tensor(tree) else list(tree)
    if isinstance(tree, Padded):
        lengths = _split(tree.lengths, n, function, path)
        values = _split(tree.values, n, function, path)
        return [
            value[: _length(length, len(value), (function, n, row, path))]
            for row, (value, length) in enumerate(zip(values, lengths, strict=True))
        ]
    if isinstance(tree, list) and not isinstance(tree, Columns):
        if len(tree) != n:
            raise _refused(function, n, len(tree), path)
        return tree.copy()
    if tree is None:
        return [None] * n
    names: Iterable[object]
    if isinstance(tree, Mapping):
        names, children = tree.keys(), list(tree.values())
    elif isinstance(tree, (tuple, Columns)):
        names = getattr(type(tree), "_fields", None) or [f"[{i}]" for i in range(len(tree))]
        children = list(tree)
    else:
        fields = field_names(tree)
        if fields is None:
            raise _refused(function, n, with_article(tree), path)
        names, children = fields, [getattr(tree, name) for name in fields]
    if not children:
        if not path:  # nothing at all for any row
            kind = "list" if isinstance(tree, Columns) else type(tree).__name__
            raise _refused(function, n, f"an empty {kind}", path)
        return [[] if isinstance(tree, Columns) else rebuild(tree, ()) for _ in range(n)]
    columns = [
        _split(child, n, function, join_path(path, name))
        for name, child in zip(names, children, strict=True)
    ]
    if type(tree) is tuple:
        return list(zip(*columns, strict=True))
    if isinstance(tree, Columns):
        return [list(parts) for parts in zip(*columns, strict=True)]
    return [rebuild(tree, parts) for parts in zip(*columns, strict=True)]


def _length(length: Any, longest: int, where: tuple[str, int, int, str]) -> int:
    """Return *length* as an int; NaN, fractions and what is outside of the row are refused, with the row."""
    try:
        size = int(length)
    except (TypeError, ValueError, OverflowError):  # NaN, infinity, no number
        size = -1
    if size == length and 0 <= size <= longest:
        return size
    function, n, row, path = where
    got = f"a Padded whose length for row {row} of the batch is {clip(length, 40)}, not from 0 to {longest},"
    raise _refused(function, n, got, path)


def _refused(function: str, n: int, got: int | str, path: str) -> OutputShapeError:
    if path and isinstance(got, int):
        got = f"{got} rows"
    return OutputShapeError(function, expected=n, got=f"{got} at {path!r}" if path else got)
