"""Rows in one container: a NumPy array, a torch tensor, a list or tuple of rows, a pandas table. Taken, put, repeated."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol, final

from mlkit.resilience._kinds import is_array, is_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Leaf", "is_table", "leaf_of"]


class Leaf(Protocol):
    """What can be done with the rows of one kind of container; nothing given is changed, except by `put`."""

    def take(self, batch: Any, index: Any) -> Any:
        """Return the rows at the integer array *index*, in a container of the same kind."""

    def copied(self, batch: Any) -> Any:
        """Return a copy."""

    def put(self, batch: Any, index: Any, rows: Any) -> Any:
        """Return *batch*, changed in place where that can be, with *rows* at *index*, or raise ValueError.

        Kind, dtype and device of *batch* stay, except that text becomes as wide as it must be.
        """

    def filled(self, value: Any, n: int, like: Any) -> Any:
        """Return *n* rows that all are *value*, in the kind of container of *like*."""

    def joined(self, batches: Sequence[Any]) -> Any:
        """Return the rows of *batches*, which are of this kind, one after the other."""


@final
class _Arrays:
    def take(self, batch: Any, index: Any) -> Any:
        return batch[index]

    def copied(self, batch: Any) -> Any:
        return batch.copy()

    def put(self, batch: Any, index: Any, rows: Any) -> Any:
        import numpy as np

        given = _as_array(rows)
        _fits_shape(batch.shape[1:], given)
        if given.dtype == batch.dtype:
            batch[index] = given
            return batch
        if given.dtype.kind == batch.dtype.kind and given.dtype.kind in "SU":
            batch = batch.astype(np.promote_types(batch.dtype, given.dtype), copy=False)
        fits = np.can_cast(given.dtype, batch.dtype, "same_kind")
        if fits and given.dtype.kind in "iufc":
            with np.errstate(over="ignore"):
                fits = _survived(given, given.astype(batch.dtype), np)
        elif fits and given.dtype.kind in "mM":
            # Of another unit, which may be too coarse or too fine.
            back = given.astype(batch.dtype).astype(given.dtype)
            fits = bool(((back == given) | np.isnat(given)).all())
        if not fits:
            raise ValueError(f"{given.dtype} rows do not fit into {batch.dtype}")
        batch[index] = given
        return batch

    def filled(self, value: Any, n: int, like: Any) -> Any:
        import numpy as np

        one = _as_array(value)
        if one.dtype.kind == like.dtype.kind == "f":
            one = one.astype(like.dtype)
        return np.repeat(one[None], n, axis=0)

    def joined(self, batches: Sequence[Any]) -> Any:
        import numpy as np

        return np.concatenate(batches)


@final
class _Tensors:
    def take(self, batch: Any, index: Any) -> Any:
        import torch

        return batch[torch.as_tensor(index, device=batch.device)]

    def copied(self, batch: Any) -> Any:
        return batch.clone()

    def put(self, batch: Any, index: Any, rows: Any) -> Any:
        import torch

        given = torch.as_tensor(rows)
        _fits_shape(tuple(batch.shape[1:]), given)
        fitted = given.to(batch)
        # Of one dtype nothing can get lost, and a look at the numbers would wait for the device.
        if given.dtype != batch.dtype and not (
            torch.can_cast(given.dtype, batch.dtype)
            and _survived(given.to(batch.device), fitted, torch)
        ):
            raise ValueError(f"{given.dtype} rows do not fit into {batch.dtype}")
        batch[torch.as_tensor(index, device=batch.device)] = fitted
        return batch

    def filled(self, value: Any, n: int, like: Any) -> Any:
        import torch

        try:
            one = torch.as_tensor(value)
        except (TypeError, ValueError):  # text, say: there are no tensors of it
            return SEQUENCES.filled(value, n, [])
        if one.is_floating_point() and like.is_floating_point():
            one = one.to(like)
        return one.to(like.device).expand(n, *one.shape).clone()

    def joined(self, batches: Sequence[Any]) -> Any:
        import torch

        return torch.cat(list(batches))


@final
class _Sequences:
    """Lists, and tuples that hold rows."""

    def take(self, batch: Any, index: Any) -> Any:
        return type(batch)([batch[i] for i in index])

    def copied(self, batch: Any) -> Any:
        return type(batch)(batch)

    def put(self, batch: Any, index: Any, rows: Any) -> Any:
        if is_table(rows) and rows.ndim > 1:
            raise ValueError("the rows of a table do not fit into a list")
        changed = batch if isinstance(batch, list) else list(batch)
        for i, value in zip(index, rows, strict=True):
            changed[i] = value
        return changed if isinstance(batch, list) else type(batch)(changed)

    def filled(self, value: Any, n: int, like: Any) -> Any:
        from mlkit.resilience._rows import copied

        return type(like)([copied(value) for _ in range(n)])

    def joined(self, batches: Sequence[Any]) -> Any:
        return type(batches[0])([row for batch in batches for row in batch])


@final
class _Series:
    def take(self, batch: Any, index: Any) -> Any:
        return batch.iloc[index]

    def copied(self, batch: Any) -> Any:
        return batch.copy()

    def put(self, batch: Any, index: Any, rows: Any) -> Any:
        import numpy as np
        import pandas as pd

        if isinstance(batch.dtype, np.dtype):
            values = ARRAYS.put(batch.to_numpy(copy=True), index, rows)
            return pd.Series(values, index=batch.index, name=batch.name, dtype=batch.dtype)
        given = pd.Series(rows if is_table(rows) else list(rows))
        known = getattr(batch.dtype, "categories", None)
        if known is not None and not (given.isin(known) | given.isna()).all():
            raise ValueError("rows of another category do not fit into a categorical column")
        try:
            fitted = given.astype(batch.dtype)
        except (TypeError, ValueError):
            raise ValueError(f"{given.dtype} rows do not fit into {batch.dtype}") from None
        changed = batch.copy()
        changed.iloc[index] = fitted.array
        return changed

    def filled(self, value: Any, n: int, like: Any) -> Any:
        import pandas as pd

        return pd.Series([value] * n, name=like.name)

    def joined(self, batches: Sequence[Any]) -> Any:
        import pandas as pd

        return pd.concat(list(batches))


@final
class _Frames:
    def take(self, batch: Any, index: Any) -> Any:
        return batch.iloc[index]

    def copied(self, batch: Any) -> Any:
        return batch.copy()

    def put(self, batch: Any, index: Any, rows: Any) -> Any:
        import pandas as pd

        if not isinstance(rows, pd.DataFrame) or list(rows.columns) != list(batch.columns):
            got = list(rows.columns) if isinstance(rows, pd.DataFrame) else type(rows).__name__
            raise ValueError(
                f"{got} does not fit into a table of the columns {list(batch.columns)}"
            )
        columns = [
            SERIES.put(batch.iloc[:, at], index, rows.iloc[:, at])
            for at in range(batch.shape[1])  # by position: names may be there twice
        ]
        changed = pd.concat(columns, axis=1) if columns else batch
        changed.columns = batch.columns
        return changed

    def filled(self, value: Any, n: int, like: Any) -> Any:
        import pandas as pd

        one = value if isinstance(value, dict) else dict.fromkeys(like.columns, value)
        return pd.DataFrame([one] * n, columns=like.columns)

    def joined(self, batches: Sequence[Any]) -> Any:
        import pandas as pd

        return pd.concat(list(batches))


ARRAYS, TENSORS, SEQUENCES, SERIES, FRAMES = (
    _Arrays(),
    _Tensors(),
    _Sequences(),
    _Series(),
    _Frames(),
)


def leaf_of(value: Any) -> Leaf | None:
    """Return how to handle the rows of *value*, or None if it is none of these containers.

    Whether a tuple holds rows or is a structure of columns, `_rows` decides.
    """
    if isinstance(value, list) or type(value) is tuple:
        return SEQUENCES
    if is_array(value):
        return ARRAYS if value.ndim else None
    if is_tensor(value):
        return TENSORS if value.ndim else None
    if is_table(value):
        return FRAMES if value.ndim > 1 else SERIES
    return None


def is_table(value: Any) -> bool:
    """Return whether *value* is a pandas DataFrame or Series."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, (pandas.DataFrame, pandas.Series))


def _as_array(rows: Any) -> Any:
    import numpy as np

    if is_tensor(rows):
        rows = rows.detach().cpu()
        if rows.is_floating_point() and "bfloat" in str(rows.dtype):  # NumPy has none
            rows = rows.float()
        return rows.numpy()
    return np.asarray(rows)


def _survived(given: Any, fitted: Any, library: Any) -> bool:
    """Whether no number became another one for lack of bits: rounded is fine, wrapped round or infinite is not."""
    if "int" in str(fitted.dtype):
        return bool((fitted == given).all())
    return bool((library.isfinite(fitted) | ~library.isfinite(given)).all())


def _fits_shape(wanted: tuple[int, ...], given: Any) -> None:
    if wanted != tuple(given.shape[1:]):
        raise ValueError(
            f"rows of shape {tuple(given.shape[1:])} do not fit among rows of shape {wanted}"
        )
