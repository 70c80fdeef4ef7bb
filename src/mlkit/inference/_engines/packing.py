"""Many values as few: arrays alike as one array, so that a chunk of rows is pickled as fast as it is copied.

Pickling a thousand small arrays takes a hundred times as long as one large array of the same bytes.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from mlkit.inference._batch.tree import is_tensor

__all__ = ["packed", "unpacked"]

_PLAIN_KINDS = "biufcmM"  # dtypes whose values come back from an array as they went in


class _Stack(NamedTuple):
    """Arrays, scalars or tensors along a new first axis."""

    block: Any


class _Dicts(NamedTuple):
    """Dicts with the same keys, as a column for each key."""

    columns: dict[Any, Any]
    n_rows: int


def packed(values: list[Any]) -> Any:
    """Return something that pickles faster than *values*, from which `unpacked` makes equal ones of the same types."""
    kinds = set(map(type, values))
    if len(values) < 2 or len(kinds) > 1:
        return values
    first, kind = values[0], kinds.pop()
    if kind is dict:
        keys = list(first)
        if keys and all(list(value) == keys for value in values):
            columns = {key: packed([value[key] for value in values]) for key in keys}
            return _Dicts(columns, len(values))
        return values
    numpy = sys.modules.get("numpy")
    if numpy is not None and (kind is numpy.ndarray or issubclass(kind, numpy.generic)):
        return _stacked(values, numpy)
    if is_tensor(first):
        return _stacked_tensors(values)
    return values


def unpacked(content: Any) -> list[Any]:
    """Return the values that `packed` was given. Arrays and tensors are views into one block."""
    if isinstance(content, _Dicts):
        if not content.n_rows:
            return []
        names = list(content.columns)
        columns = [unpacked(column) for column in content.columns.values()]
        return [dict(zip(names, parts, strict=True)) for parts in zip(*columns, strict=True)]
    if isinstance(content, _Stack):
        return list(content.block.unbind(0) if is_tensor(content.block) else content.block)
    return list(content)


def _stacked(values: list[Any], numpy: Any) -> Any:
    dtype, shape = values[0].dtype, values[0].shape
    scalars = isinstance(values[0], numpy.generic)
    if dtype.kind not in _PLAIN_KINDS or not dtype.isnative or not (shape or scalars):
        return values
    if any(value.dtype != dtype or value.shape != shape for value in values):
        return values
    return _Stack(numpy.array(values, dtype) if scalars else numpy.stack(values))


def _stacked_tensors(values: list[Any]) -> Any:
    import torch

    first = values[0]
    if type(first) is not torch.Tensor or first.layout != torch.strided or first.is_quantized:
        return values
    alike = (first.dtype, first.shape, first.device)
    if first.device.type != "cpu" or any(
        value.requires_grad or (value.dtype, value.shape, value.device) != alike for value in values
    ):
        return values
    return _Stack(torch.stack(values))
