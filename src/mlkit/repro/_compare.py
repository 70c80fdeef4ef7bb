"""Compare two results bit by bit, and say where they first differ and by how much."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, FingerprintError
from mlkit.repro._tensors import as_array, densely, is_dense, parts_of, shape_of

__all__ = ["Difference", "arrays_differ", "frozen", "results_differ"]


class Difference(NamedTuple):
    """Where two results first differ.

    `element` is the first that differs, `differing` of `total` do, by at most `max_ulps` units in the last
    place (None where that means nothing).
    """

    path: str
    reason: str
    element: tuple[int, ...] | None = None
    differing: int = 0
    total: int = 0
    max_ulps: int | None = None


def results_differ(first: Any, second: Any, path: str = "$") -> Difference | None:
    """Return the first difference of two results, walking mappings, sequences and dataclasses in order."""
    if type(first) is not type(second):
        return Difference(path, f"{type(first).__name__} became {type(second).__name__}")
    if (arrays := _as_arrays(first, second)) is not None:
        return arrays_differ(*arrays, path)
    if isinstance(first, (float, complex)):
        return _floats_differ(first, second, path)
    if (parts := _parts(first, second)) is not None:
        if isinstance(parts, str):
            return Difference(path, parts)
        for step, one, other in parts:
            found = results_differ(one, other, path + step)
            if found is not None:
                return found
        return None
    if first is second or _equal(first, second):
        return None
    return Difference(path, f"{clip(repr(first), 40)} became {clip(repr(second), 40)}")


def _equal(first: Any, second: Any) -> bool:
    """Return what `==` says, or where it gives no answer, whether the fingerprints are equal."""
    try:
        return bool(first == second)
    except Exception:  # noqa: BLE001 - compared element by element, or code of a user
        from mlkit.repro._fingerprint import fingerprint
    try:
        return fingerprint(first) == fingerprint(second)
    except FingerprintError:
        hint = "return its parts: arrays, tensors, numbers"
        raise ConfigurationError(
            "check(fn)", first, "results that can be compared", hint=hint
        ) from None


def arrays_differ(first: Any, second: Any, path: str) -> Difference | None:
    """Return the first difference of two NumPy arrays. NaN equals a NaN of the same bits; 0.0 is not -0.0."""
    import numpy as np

    if first.dtype != second.dtype:
        return Difference(path, f"dtype {first.dtype} became {second.dtype}")
    if first.shape != second.shape:
        return Difference(path, f"shape {first.shape} became {second.shape}")
    if first.dtype.hasobject:
        return results_differ(first.tolist(), second.tolist(), path)
    size = first.dtype.itemsize
    if first.size == 0 or size == 0:
        return None
    rows, others = (
        np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, size)
        for array in (first, second)
    )
    differs = (rows != others).any(axis=1)
    count = int(differs.sum())
    if not count:
        return None
    flat = int(differs.argmax())
    index = tuple(int(number) for number in np.unravel_index(flat, first.shape))
    one, other = first.reshape(-1)[flat], second.reshape(-1)[flat]
    return Difference(path, f"{one} became {other}", index, count, first.size, _ulps(first, second))


def _ulps(first: Any, second: Any) -> int | None:
    """Return the largest distance in units in the last place, None for other than real floats or with NaN."""
    import numpy as np

    dtype = first.dtype
    if dtype.kind != "f" or dtype.itemsize not in {2, 4, 8}:
        return None
    if np.isnan(first).any() or np.isnan(second).any():
        return None
    ordered = []
    for array in (first, second):
        bits = np.ascontiguousarray(array).reshape(-1).view(f"u{dtype.itemsize}").astype(np.uint64)
        top = np.uint64(1 << (8 * dtype.itemsize - 1))
        # Floats in order of value: negative ones count down from the middle, -0.0 and 0.0 are one apart.
        ordered.append(np.where(bits & top, top - np.uint64(1) - (bits ^ top), bits | top))
    return int((np.maximum(*ordered) - np.minimum(*ordered)).max())


def frozen(value: Any) -> Any:
    """Return *value* with arrays and tensors copied, so that later in-place changes do not reach it."""
    import copy
    from collections import OrderedDict

    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in {dict, OrderedDict}:
        return type(value)((key, frozen(item)) for key, item in value.items())
    if type(value) in {list, tuple}:
        return type(value)(frozen(item) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_make"):  # a NamedTuple
        return value._make(frozen(item) for item in value)
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - what cannot be copied is compared as it is
        return value


def _as_arrays(first: Any, second: Any) -> tuple[Any, Any] | None:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(first, (numpy.ndarray, numpy.generic)):
        return numpy.asarray(first), numpy.asarray(second)
    if torch is not None and isinstance(first, torch.Tensor):
        dense = [densely(torch, tensor) for tensor in (first, second)]
        if all(is_dense(torch, tensor) for tensor in dense):
            return as_array(torch, dense[0]), as_array(torch, dense[1])
    return None


def _floats_differ(first: complex, second: complex, path: str) -> Difference | None:
    import numpy as np

    found = arrays_differ(np.asarray(first), np.asarray(second), path)
    return None if found is None else found._replace(element=None, differing=0, total=0)


def _parts(first: Any, second: Any) -> list[tuple[str, Any, Any]] | str | None:
    """Return the parts of two containers with their steps; a text if they do not match; None if they are none."""
    import dataclasses
    from collections.abc import Mapping

    if isinstance(first, Mapping):
        if list(first) != list(second):  # the order counts: parameters are numbered by it
            return f"keys {clip(list(first), 60)} became {clip(list(second), 60)}"
        return [(f"[{key!r}]", first[key], second[key]) for key in first]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return f"length {len(first)} became {len(second)}"
        return [(f"[{index}]", *pair) for index, pair in enumerate(zip(first, second, strict=True))]
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        return [(f".{name}", getattr(first, name), getattr(second, name)) for name in names]
    torch, pandas = sys.modules.get("torch"), sys.modules.get("pandas")
    if torch is not None and isinstance(first, torch.Tensor):  # no dense one
        shapes = [f"{tensor.dtype}{list(shape_of(tensor))}" for tensor in (first, second)]
        if shapes[0] != shapes[1]:
            return " became ".join(shapes).replace("torch.", "")
        return _parts(parts_of(torch, first), parts_of(torch, second))
    return None if pandas is None else _parts_of_table(pandas, first, second)


def _parts_of_table(
    pandas: Any, first: Any, second: Any
) -> list[tuple[str, Any, Any]] | str | None:
    """Do the same for pandas: index and columns, each as values of NumPy."""
    if isinstance(first, pandas.DataFrame):
        if not first.columns.equals(second.columns):
            return (
                f"columns {clip(list(first.columns), 60)} became {clip(list(second.columns), 60)}"
            )
        places = enumerate(first.columns)
        columns = [(f"[{name!r}]", first.iloc[:, at], second.iloc[:, at]) for at, name in places]
        return [(".index", first.index, second.index), *columns]
    if not isinstance(first, (pandas.Series, pandas.Index)):
        return None
    if first.dtype != second.dtype:
        return f"dtype {first.dtype} became {second.dtype}"
    values = [("", first.to_numpy(), second.to_numpy())]
    if isinstance(first, pandas.Series):
        return [(".index", first.index, second.index), *values]
    return values
