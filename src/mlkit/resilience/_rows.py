"""Rows of a batch: taken out, put back in place, in NumPy arrays, torch tensors and lists."""

from __future__ import annotations

from typing import Any

from mlkit.errors import ConfigurationError
from mlkit.resilience._kinds import is_array, is_tensor

__all__ = ["copied", "filled", "n_rows", "put", "row", "stacked", "take"]


def n_rows(where: str, batch: Any) -> int:
    """Return the number of rows of *batch*, or raise."""
    if isinstance(batch, list) or ((is_array(batch) or is_tensor(batch)) and batch.ndim):
        return len(batch)
    raise ConfigurationError(where, type(batch), "a NumPy array, torch tensor or list, rows first")


def take(batch: Any, index: Any) -> Any:
    """Return the rows of *batch* at the integer array *index*, in the same kind of container."""
    if isinstance(batch, list):
        return [batch[i] for i in index]
    if is_tensor(batch):
        import torch

        return batch[torch.as_tensor(index, device=batch.device)]
    return batch[index]


def row(batch: Any, i: int) -> Any:
    """Return a copy of one row, so that it keeps no batch alive."""
    return copied(batch[i])


def copied(value: Any) -> Any:
    """Return a copy of an array, tensor or list; anything else as it is."""
    if is_tensor(value):
        return value.clone()
    if is_array(value) or isinstance(value, list):
        return value.copy()
    return value


def put(batch: Any, index: Any, rows: Any) -> Any:
    """Return *batch*, changed in place where that can be, with *rows* at *index*.

    Kind, dtype and device of *batch* stay, except that text becomes as wide as it must be; what does not fit raises
    ValueError.
    """
    if isinstance(batch, list):
        for i, value in zip(index, rows, strict=True):
            batch[i] = value
        return batch
    if is_tensor(batch):
        import torch

        given = torch.as_tensor(rows)
        _fits(tuple(batch.shape[1:]), tuple(given.shape[1:]))
        fitted = given.to(batch)
        if not torch.can_cast(given.dtype, batch.dtype) or not _survived(
            given.to(batch.device), fitted, torch
        ):
            raise ValueError(f"{given.dtype} rows do not fit into {batch.dtype}")
        batch[torch.as_tensor(index, device=batch.device)] = fitted
        return batch
    import numpy as np

    given = rows.detach().cpu().numpy() if is_tensor(rows) else np.asarray(rows)
    _fits(batch.shape[1:], given.shape[1:])
    if given.dtype.kind == batch.dtype.kind and given.dtype.kind in "SU":
        batch = batch.astype(np.promote_types(batch.dtype, given.dtype), copy=False)
    fits = np.can_cast(given.dtype, batch.dtype, "same_kind")
    if fits and given.dtype.kind in "iufc":
        with np.errstate(over="ignore"):
            fits = _survived(given, given.astype(batch.dtype), np)
    if not fits:
        raise ValueError(f"{given.dtype} rows do not fit into {batch.dtype}")
    batch[index] = given
    return batch


def filled(value: Any, n: int, like: Any) -> Any:
    """Return *n* rows that all are *value*, in the kind of container of *like*."""
    if is_tensor(like):
        import torch

        one = torch.as_tensor(value)
        if one.is_floating_point() and like.is_floating_point():
            one = one.to(like)
        return one.to(like.device).expand(n, *one.shape).clone()
    if is_array(like):
        import numpy as np

        one = np.asarray(value)
        if one.dtype.kind == like.dtype.kind == "f":
            one = one.astype(like.dtype)
        return np.repeat(one[None], n, axis=0)
    return [copied(value) for _ in range(n)]


def stacked(rows: list[Any], like: Any) -> Any:
    """Return *rows* as one batch of the kind of container of *like*."""
    if is_tensor(like):
        import torch

        return torch.stack([torch.as_tensor(one) for one in rows])
    if is_array(like):
        import numpy as np

        return np.stack(rows)
    return rows


def _survived(given: Any, fitted: Any, library: Any) -> bool:
    """Whether no number became another one for lack of bits: rounded is fine, wrapped round or infinite is not."""
    if "int" in str(fitted.dtype):
        return bool((fitted == given).all())
    return bool((library.isfinite(fitted) | ~library.isfinite(given)).all())


def _fits(wanted: tuple[int, ...], given: tuple[int, ...]) -> None:
    if wanted != given:
        raise ValueError(f"rows of shape {given} do not fit among rows of shape {wanted}")
