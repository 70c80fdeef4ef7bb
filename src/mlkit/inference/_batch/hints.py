"""What a function that has never worked was given, when that explains the error it raised. Loaded on that path only."""

from __future__ import annotations

from typing import Any

from mlkit.inference._batch.memory import is_out_of_memory
from mlkit.inference._batch.tree import Columns, field_names, is_array, is_tensor, map_leaves

__all__ = ["hint_for"]

_IN_NUMPY = ("float16", "float32", "float64")


def hint_for(error: BaseException, batch: Any, module: Any) -> str:
    """Return what about *batch* may have made *module* (or a function, if None) raise *error*; empty if nothing."""
    if is_out_of_memory(error):
        return ""
    if isinstance(error, (AttributeError, TypeError)) and _has_columns(batch):
        verb = "are" if isinstance(batch, Columns) else "hold"
        return (
            f"rows {verb} lists, so that the function gets one column per position; "
            f"pass np.array rows to get one array"
        )
    return _other_dtype(batch, module) if module is not None else ""


def _has_columns(batch: Any) -> bool:
    if isinstance(batch, Columns):
        return True
    if isinstance(batch, dict):
        return any(map(_has_columns, batch.values()))
    if isinstance(batch, tuple):
        return any(map(_has_columns, batch))
    return any(_has_columns(getattr(batch, name)) for name in field_names(batch) or ())


def _other_dtype(batch: Any, module: Any) -> str:
    wanted = next(
        (_short(each.dtype) for each in module.parameters() if each.dtype.is_floating_point), None
    )
    found: list[tuple[str, bool]] = []

    def look(leaf: Any) -> None:
        if is_tensor(leaf) and leaf.dtype.is_floating_point:
            found.append((_short(leaf.dtype), True))
        elif is_array(leaf) and leaf.dtype.kind == "f":
            found.append((_short(leaf.dtype), False))

    map_leaves(look, batch)
    for dtype, tensor in found:
        if wanted is None or dtype == wanted:
            continue
        if tensor:
            fix = f"row.to(torch.{wanted})"
        elif wanted in _IN_NUMPY:
            fix = f"row.astype({wanted!r})"
        else:  # numpy has no bfloat16
            fix = f"torch.tensor(row, dtype=torch.{wanted})"
        verb = "are" if is_tensor(batch) or is_array(batch) else "hold"
        return f"rows {verb} {dtype}, the module's parameters {wanted}: pass {fix}"
    return ""


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
