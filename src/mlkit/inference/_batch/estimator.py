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

_METHODS = ("predict", "transform", "score_samples")  # an estimator has at least one, beside `fit`
# Of several targets these return a list with a matrix for each.
_PROBABILITIES = ("predict_proba", "predict_log_proba")


def as_function(fn: Any) -> Any:
    """Return *fn*, or what to call if it is an estimator or a method of one."""
    if not callable(fn):
        predict = getattr(fn, "predict", None)
        return OnTables(fn, predict) if callable(predict) and not isinstance(fn, type) else fn
    owner = getattr(fn, "__self__", None)
    learns = callable(getattr(owner, "fit", None))
    if learns and any(callable(getattr(owner, name, None)) for name in _METHODS):
        return fn if hasattr(owner, "forward") else OnTables(owner, fn)
    return fn


@final
class OnTables:
    """A method of an estimator as a function of a batch. Pickles if the estimator does.

    Rows that are lists or tuples of numbers become the rows of one array; those that hold anything else stay a list of
    rows. Rows with names become a table with the columns that the estimator was fitted on or, if it knows no names, stay a
    list of rows, as a `DictVectorizer` takes it.

    Args:
        estimator: The estimator.
        method: The method of it.
    """

    def __init__(self, estimator: Any, method: Callable[[Any], Any]) -> None:
        self.__self__, self._method = estimator, method
        self._name = getattr(method, "__name__", "predict")
        self.__qualname__ = f"{type(estimator).__qualname__}.{self._name}"

    def __call__(self, batch: Any) -> Any:
        """Return what the method makes of *batch*; of several targets, the probabilities of each as a column."""
        output = self._method(self._table(batch))
        per_target = type(output) is list and self._name in _PROBABILITIES
        return tuple(output) if per_target and all(map(_is_matrix, output)) else output

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
        if not isinstance(batch, (Columns, tuple)) or isinstance(batch, Padded):
            return batch
        n_axes = {getattr(column, "ndim", 0) for column in batch}
        if n_axes == {1}:
            return np.column_stack(list(batch))
        if max(n_axes, default=0) > 1:
            return batch
        # Text, lists, missing values: as columns they would be taken for rows.
        return split_output(batch, _n_rows(batch), self.__qualname__)


def _named(batch: Any) -> Mapping[str, Any] | None:
    """Return the columns of *batch* by name, None if they have none."""
    if isinstance(batch, Padded):
        return None
    if isinstance(batch, Mapping):
        return batch
    names = getattr(type(batch), "_fields", None) if isinstance(batch, tuple) else None
    names = names or field_names(batch)
    return None if names is None else {name: getattr(batch, name) for name in names}


def _is_matrix(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 2


def _n_rows(batch: Any) -> int:
    if isinstance(batch, Padded):
        return len(batch.lengths)
    columns = _named(batch)
    parts = batch if columns is None else columns.values()
    if columns is None and not isinstance(batch, (Columns, tuple)):
        return 0 if batch is None else len(batch)
    return max(map(_n_rows, parts), default=0)
