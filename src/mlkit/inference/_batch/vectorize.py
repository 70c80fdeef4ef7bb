"""A function of one row as a function of a batch: by `torch.func.vmap` where that is right, else row by row."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, final

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError
from mlkit.inference._batch.check import plain_callable
from mlkit.inference._batch.collate import has_leaf
from mlkit.inference._batch.memory import is_out_of_memory
from mlkit.inference._batch.model import name_of
from mlkit.inference._batch.split import split_output
from mlkit.inference._batch.tree import Columns, Padded, field_names, is_tensor, map_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Vectorized", "vectorize"]

_Result = TypeVar("_Result")

_N_SAMPLES = 4  # rows that both ways are compared on
# How far they may be apart, relative and absolute; other dtypes must agree exactly.
_TOLERANCE = {"float64": 1e-8, "complex128": 1e-8, "float32": 1e-4, "complex64": 1e-4}
_COARSE = 2e-2  # half precision


def vectorize(fn: Callable[[Any], _Result]) -> Vectorized[_Result]:
    """Lift a function of one row to a function of a batch, for `map_batches` and `Batcher`.

    A batch of tensors is given to `torch.func.vmap(fn)`, which runs each operation once for all rows, if the first batch
    shows that this is right: up to four of its rows are run alone too, and must agree in structure, dtype, shape and,
    within rounding, values. If not, and for anything but tensors, *fn* is called once per row. `how` says which, `why`
    the reason.

    Args:
        fn: Takes one row and returns its result. A torch module must be in evaluation mode. It runs once more for the
            rows of the comparison, so it should have no side effects.

    Returns:
        A callable that takes a batch as `mlkit.inference.collate` makes it.

    Raises:
        ConfigurationError: If *fn* is no plain callable.

    Examples:
        >>> import torch
        >>> from mlkit.inference import map_batches
        >>> area = vectorize(lambda row: {"area": row["w"] * row["h"]})
        >>> rows = [{"w": torch.tensor(2.0), "h": torch.tensor(i)} for i in (1.0, 2.0)]
        >>> [float(result["area"]) for result in map_batches(area, rows)]
        [2.0, 4.0]
        >>> area.how
        'vmap'
        >>> sign = vectorize(lambda row: "plus" if row > 0 else "minus")
        >>> list(map_batches(sign, [torch.tensor(1.0), torch.tensor(-1.0)]))
        ['plus', 'minus']
        >>> sign.how
        'loop'

    Note:
        `torch.func.vmap` refuses branches on values, `.item()`, and random numbers; those functions loop.
    """
    plain_callable("vectorize(fn)", fn)
    if isinstance(fn, Vectorized):
        raise ConfigurationError(
            "vectorize(fn)", fn, "a function of one row", hint="it is vectorized already"
        )
    return Vectorized(fn)


@final
class Vectorized(Generic[_Result]):
    """What `vectorize` makes.

    Threads may share it; each may decide for itself if their first batches come at once, with the same outcome for the
    same rows. A pickled copy decides anew if the original had not decided.

    Attributes:
        how: `"vmap"` or `"loop"`; None before the first batch.
        why: The reason, for people; empty before the first batch.
    """

    how: Literal["vmap", "loop"] | None
    why: str

    def __init__(self, fn: Callable[[Any], _Result]) -> None:
        self.__wrapped__ = fn
        self.__qualname__ = name_of(fn)
        self.how, self.why = None, ""

    def __call__(self, batch: Any) -> Any:
        """Return one result per row of *batch*."""
        if self.how == "loop":
            return self._loop(batch)
        if self.how is None:
            return self._decide(batch)
        if _obstacle(batch):
            return self._loop(batch)
        try:
            return self._mapped(batch)
        except Exception as error:
            # What memory did is not for a loop to hide; another error is shown as the row alone gives it.
            if is_out_of_memory(error):
                raise
        return self._loop(batch)

    def __repr__(self) -> str:
        return f"<vectorize({self.__qualname__}): {self.how or 'not decided'}>"

    def _mapped(self, batch: Any) -> Any:
        from torch.func import vmap

        return vmap(self.__wrapped__)(batch)

    def _loop(self, batch: Any) -> list[_Result]:
        fn = self.__wrapped__
        return [fn(row) for row in _rows(batch)]

    def _decide(self, batch: Any) -> Any:
        obstacle = _obstacle(batch)
        if obstacle:
            results: Any = self._loop(batch)
            self.how, self.why = "loop", obstacle
            return results
        rows = _rows(batch)
        # If these fail, there is nothing to compare with, and the next batch decides. On copies, since a function may
        # write over its row, which would then be another one the second time.
        alone = [self.__wrapped__(map_leaves(_copied, row)) for row in rows[:_N_SAMPLES]]
        try:
            results = self._mapped(map_leaves(_copied, batch))
            difference = _difference(split_output(results, len(rows), self.__qualname__), alone)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            difference = f"torch.func.vmap cannot run it: {clip(str(error), 200)}"
        if difference:
            results = alone + [self.__wrapped__(row) for row in rows[_N_SAMPLES:]]
            self.how, self.why = "loop", difference
        else:
            self.how = "vmap"
            self.why = f"torch.func.vmap agrees with {len(alone)} rows that ran alone"
        return results


def _copied(tensor: Any) -> Any:
    return tensor.clone()


def _rows(batch: Any) -> list[Any]:
    first = batch
    while not (is_tensor(first) or hasattr(first, "ndim") or type(first) is list):
        if isinstance(first, Padded):
            first = first.lengths
        elif isinstance(first, dict):
            first = next(iter(first.values()))
        elif isinstance(first, (tuple, Columns)):
            first = first[0]
        else:
            first = getattr(first, (field_names(first) or ("",))[0])
    return split_output(batch, len(first), "vectorize")


def _obstacle(batch: Any) -> str:
    """Return why `vmap` is nothing for *batch*; empty if it may be."""
    if "torch" not in sys.modules or not has_leaf(batch, is_tensor):
        return "the rows hold no tensors, which torch.func.vmap takes"
    kinds: set[str] = set()
    map_leaves(lambda leaf: kinds.add("" if is_tensor(leaf) else type(leaf).__name__), batch)
    kinds.discard("")
    if kinds:
        return f"the rows hold other leaves than tensors ({', '.join(sorted(kinds))})"
    if _has(batch, lambda node: isinstance(node, Padded)):
        return "the rows are padded, and each has its own length"
    if _has(batch, lambda node: isinstance(node, Columns) or field_names(node) is not None):
        return "the rows are lists or dataclasses, which torch.func.vmap does not take apart"
    return ""


def _has(tree: Any, test: Callable[[Any], bool]) -> bool:
    if test(tree):
        return True
    if isinstance(tree, dict):
        return any(_has(child, test) for child in tree.values())
    return isinstance(tree, (tuple, list)) and any(_has(child, test) for child in tree)


def _difference(mapped: list[Any], alone: list[Any]) -> str:
    for row, (together, single) in enumerate(zip(mapped, alone, strict=False)):
        found = _compare(together, single)
        if found:
            return f"torch.func.vmap gives row {row} another {found} than running it alone"
    return ""


def _compare(together: Any, single: Any) -> str:
    """Return in what two results differ; empty if they agree."""
    import torch

    if type(together) is not type(single):
        return "type"
    if isinstance(together, dict):
        if list(together) != list(single):
            return "set of keys"
        pairs = [(together[key], single[key]) for key in together]
    elif isinstance(together, (tuple, list)):
        if len(together) != len(single):
            return "length"
        pairs = list(zip(together, single, strict=True))
    elif is_tensor(together):
        if together.dtype != single.dtype:
            return "dtype"
        if together.shape != single.shape:
            return "shape"
        inexact = together.is_floating_point() or together.is_complex()
        dtype = str(together.dtype).removeprefix("torch.")
        off = _TOLERANCE.get(dtype, _COARSE) if inexact else 0.0
        close = torch.allclose(together, single, rtol=off, atol=off, equal_nan=inexact)
        return "" if close else "value"
    else:
        return "" if together == single else "value"
    return next(filter(None, (_compare(one, other) for one, other in pairs)), "")
