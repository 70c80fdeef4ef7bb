"""Estimators in the style of scikit-learn: objects with `predict`, which take a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from mlkit._optional import installed
from mlkit.inference._batch.split import split_output
from mlkit.inference._batch.tree import Columns, Padded, field_names

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["as_function"]


def as_function(fn: Any) -> Any:
    """Return *fn*, or what to call if it is an estimator or a method of one."""
    if not callable(fn):
        predict = getattr(fn, "predict", None)
        return OnTables(fn, predict) if callable(predict) and not isinstance(fn, type) else fn
    owner = getattr(fn, "__self__", None)
    if callable(getattr(owner, "fit", None)) and callable(getattr(owner, "predict", None)):
        return fn if hasattr(owner, "forward") else OnTables(owner, fn)
    return fn


@final
class OnTables:
    """A method of an estimator as a function of a batch. Pickles if the estimator does.

    Rows that are lists or tuples of numbers become the rows of one array. Rows with names become a table with the columns
    that the estimator was fitted on or, if it knows no names, stay a list of rows, as a `DictVectorizer` takes it.

    Args:
        estimator: The estimator.
        method: The method of it.
    """

    def __init__(self, estimator: Any, method: Callable[[Any], Any]) -> None:
        self.__self__, self._method = estimator, method
        name = getattr(method, "__name__", "predict")
        self.__qualname__ = f"{type(estimator).__qualname__}.{name}"

    def __call__(self, batch: Any) -> Any:
        """Return what the method makes of *batch*."""
        return self._method(self._table(batch))

    def _table(self, batch: Any) -> Any:
        import numpy as np

        columns = _named(batch)
        if columns is not None:
            names = getattr(self.__self__, "feature_names_in_", None)
            if names is None:
                return split_output(batch, _n_rows(batch), self.__qualname__)
            chosen = {name: columns[name] for name in map(str, names)}
            if installed("pandas"):
                import pandas as pd  # type: ignore[import-untyped, unused-ignore]

                return pd.DataFrame(chosen)
            return np.column_stack(list(chosen.values()))
        if isinstance(batch, (Columns, tuple)) and all(
            getattr(column, "ndim", None) == 1 for column in batch
        ):
            return np.column_stack(list(batch))
        return batch


def _named(batch: Any) -> Mapping[str, Any] | None:
    """Return the columns of *batch* by name, None if they have none."""
    if isinstance(batch, Padded):
        return None
    if isinstance(batch, Mapping):
        return batch
    names = getattr(type(batch), "_fields", None) if isinstance(batch, tuple) else None
    names = names or field_names(batch)
    return None if names is None else {name: getattr(batch, name) for name in names}


def _n_rows(batch: Any) -> int:
    while (columns := _named(batch)) is not None:
        batch = next(iter(columns.values()))
    return len(batch)
