"""Results as bytes and back, without pickle: plain data, arrays and tensors, column by column.

A column is what some rows have at one place. Values alike are stored as one block; others, each as a column of its own.
Reading imports nothing and calls no `__init__`: a named tuple or dataclass comes back only if its class is loaded already.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Any, final

from mlkit._suggest import clip
from mlkit.inference._batch.tree import field_names, is_array, is_model, is_tensor, join_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Payload", "UnloadedError", "UnstorableError", "decode", "encode"]

_ALIGNMENT = 16  # the largest item of any dtype
_MAX_DEPTH = 100
_CONTAINERS = (dict, list, tuple, set, frozenset, str, bytes, int, float, complex)


class UnstorableError(Exception):
    """A value has no stored form; the text says which leaf, and why."""


class UnloadedError(Exception):
    """What was stored is of a class that this program has not loaded, or that has changed."""


@final
class Payload:
    """The blocks of one record, one after the other."""

    __slots__ = ("parts", "size")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.size = 0

    def add(self, block: Any) -> int:
        """Append *block*, a buffer of bytes, and return where it begins."""
        filler = -self.size % _ALIGNMENT
        if filler:
            self.parts.append(bytes(filler))
        start = self.size + filler
        self.parts.append(block)
        self.size = start + memoryview(block).nbytes
        return start


def encode(values: Sequence[Any], payload: Payload, path: str = "", depth: int = 0) -> list[Any]:
    """Return *values* as JSON data whose blocks are in *payload*; at least one value.

    Raises:
        UnstorableError: If one of them has no stored form.
    """
    first = values[0]
    kind = type(first)
    if depth > _MAX_DEPTH:
        raise UnstorableError(f"{_place(path)} is nested deeper than {_MAX_DEPTH} levels")
    if any(type(value) is not kind for value in values):
        return _one_by_one(values, payload, path, depth)
    if is_array(first):
        return _encode_arrays(values, payload, path, depth)
    if is_tensor(first):
        return _encode_tensors(values, payload, path, depth)
    encoder = _PLAIN.get(kind)
    if encoder is not None:
        return encoder(values, payload)
    if kind is dict:
        return _encode_dicts(values, payload, path, depth)
    if kind in (list, tuple):
        if any(len(value) != len(first) for value in values):
            return _one_by_one(values, payload, path, depth)
        columns = [
            encode(column, payload, f"{path}[{place}]", depth + 1)
            for place, column in enumerate(zip(*values, strict=True))
        ]
        return [kind.__name__, columns]
    return _encode_records(values, payload, path, depth)


def _one_by_one(values: Sequence[Any], payload: Payload, path: str, depth: int) -> list[Any]:
    return ["rows", [encode([value], payload, path, depth) for value in values]]


def _encode_ints(values: Sequence[Any], _: Payload) -> list[Any]:
    # Python refuses to write numbers of more than 4,300 digits in decimal.
    small = all(-(2**63) <= value < 2**63 for value in values)
    return ["plain", list(values)] if small else ["hex", [hex(value) for value in values]]


def _encode_bytes(values: Sequence[Any], payload: Payload) -> list[Any]:
    return ["bytes", list(map(len, values)), payload.add(b"".join(values))]


def _encode_complex(values: Sequence[Any], payload: Payload) -> list[Any]:
    parts = array("d", [part for value in values for part in (value.real, value.imag)])
    return ["complex", payload.add(parts)]


_PLAIN: dict[type, Callable[[Sequence[Any], Payload], list[Any]]] = {
    type(None): lambda _values, _payload: ["none"],
    bool: lambda values, _: ["plain", list(values)],
    str: lambda values, _: ["plain", list(values)],
    int: _encode_ints,
    float: lambda values, payload: ["float", payload.add(array("d", values))],
    complex: _encode_complex,
    bytes: _encode_bytes,
}


def _encode_arrays(values: Sequence[Any], payload: Payload, path: str, depth: int) -> list[Any]:
    import numpy as np

    first = values[0]
    scalar = isinstance(first, np.generic)
    if not scalar and type(first) is not np.ndarray:
        raise _refused(path, first)
    if first.dtype.kind in "OV":
        raise UnstorableError(f"{_place(path)} is an array of dtype {first.dtype}")
    if any(value.dtype != first.dtype or value.shape != first.shape for value in values):
        return _one_by_one(values, payload, path, depth)
    block = np.empty((len(values), *first.shape), first.dtype)  # np.stack changes the byte order
    for place, value in enumerate(values):
        block[place] = value
    start = payload.add(block.reshape(-1).view(np.uint8) if block.nbytes else b"")
    return ["scalar" if scalar else "array", first.dtype.str, list(first.shape), start]


def _encode_tensors(values: Sequence[Any], payload: Payload, path: str, depth: int) -> list[Any]:
    import torch

    first = values[0]
    if type(first) is not torch.Tensor or first.layout != torch.strided or first.is_quantized:
        raise _refused(path, first)
    alike = (first.dtype, first.shape, first.device)
    if any((value.dtype, value.shape, value.device) != alike for value in values):
        return _one_by_one(values, payload, path, depth)
    block = torch.stack([value.detach() for value in values]).cpu().resolve_conj().resolve_neg()
    flat = block.contiguous().reshape(-1)
    start = payload.add(flat.view(torch.uint8).numpy() if len(flat) else b"")
    dtype = str(first.dtype).removeprefix("torch.")
    return ["tensor", dtype, list(first.shape), str(first.device), start]


def _encode_dicts(values: Sequence[Any], payload: Payload, path: str, depth: int) -> list[Any]:
    first = values[0]
    keys = [(type(key), key) for key in first]  # True and 1.0 are equal to 1
    if any([(type(key), key) for key in value] != keys for value in values):
        return _one_by_one(values, payload, path, depth)
    if not keys:
        return ["dict", None, []]
    stored = encode(list(first), payload, f"{path} (a key)", depth + 1)
    columns = [
        encode([value[key] for value in values], payload, join_path(path, clip(key, 40)), depth + 1)
        for key in first
    ]
    return ["dict", stored, columns]


def _encode_records(values: Sequence[Any], payload: Payload, path: str, depth: int) -> list[Any]:
    """Store named tuples and dataclasses by the name of their class."""
    first = values[0]
    kind = type(first)
    names = getattr(kind, "_fields", None) if isinstance(first, tuple) else None
    if names is None and (_is_both(kind) or not isinstance(first, _CONTAINERS)):
        names = field_names(first)
    if names is None or (_is_both(kind) and any(value.keys() - {*names} for value in values)):
        raise _refused(path, first)
    if is_model(first):
        # What a model is beside its fields: which were set, and what is not of its class.
        if any(value.model_extra or value.__pydantic_private__ for value in values):
            raise UnstorableError(
                f"{_place(path)} is a {kind.__qualname__} with extra or private attributes"
            )
        if any(value.model_fields_set != first.model_fields_set for value in values):
            return _one_by_one(values, payload, path, depth)
    if _loaded(kind.__module__, kind.__qualname__) is not kind:
        raise UnstorableError(
            f"{_place(path)} is a {kind.__qualname__}, which is not found by that name in module {kind.__module__}"
        )
    columns = [
        encode(
            [getattr(value, name) for value in values], payload, join_path(path, name), depth + 1
        )
        for name in names
    ]
    stored = ["record", kind.__module__, kind.__qualname__, list(names), columns]
    return [*stored, sorted(first.model_fields_set)] if is_model(first) else stored


def decode(stored: Any, n: int, payload: bytearray) -> list[Any]:
    """Return the *n* values that `encode` stored. Arrays and tensors are views into *payload*.

    Raises:
        UnloadedError: If the class of a record is not loaded, or has other fields.
        Exception: Of several kinds, if *stored* was not made by `encode`.
    """
    kind, *rest = stored
    return _DECODERS[kind](n, payload, *rest)


def _decode_record(n: int, payload: bytearray, *rest: Any) -> list[Any]:
    module, name, fields, stored, *given = rest
    kind = _loaded(module, name)
    columns = [decode(column, n, payload) for column in stored]
    if isinstance(kind, type) and issubclass(kind, tuple):
        if list(getattr(kind, "_fields", ())) == fields:
            return [tuple.__new__(kind, [column[i] for column in columns]) for i in range(n)]
    elif isinstance(kind, type) and "__dataclass_fields__" in vars(kind):
        empty = dict.__new__ if _is_both(kind) else object.__new__
        values: list[Any] = [empty(kind) for _ in range(n)]
        if list(field_names(values[0]) or ()) == fields:
            for field, column in zip(fields, columns, strict=True):
                for value, part in zip(values, column, strict=True):
                    object.__setattr__(value, field, part)
                    if _is_both(kind) and part is not None:
                        value[field] = part
            return values
    elif given and list(getattr(kind, "model_fields", ())) == fields:
        return [
            _model(kind, dict(zip(fields, parts, strict=True)), given[0])
            for parts in zip(*columns, strict=True)
        ]
    raise UnloadedError(
        f"holds a {name} of module {module} with the fields {clip(fields, 100)}; import that class before you resume"
    )


def _model(kind: type, values: dict[str, Any], given: list[str]) -> Any:
    """Return an instance of a pydantic model as it was, without validating it again."""
    model: Any = object.__new__(kind)
    own = {"__dict__": values, "__pydantic_fields_set__": set(given)}
    for name in ("__pydantic_extra__", "__pydantic_private__"):
        own[name] = None  # type: ignore[assignment]
    if kind.model_config.get("extra") == "allow":  # type: ignore[attr-defined]
        own["__pydantic_extra__"] = {}
    for name, value in own.items():
        object.__setattr__(model, name, value)
    return model


def _decode_tensor(n: int, payload: bytearray, *rest: Any) -> list[Any]:
    import torch

    dtype, shape, device, start = rest
    kind = getattr(torch, dtype)
    count = n
    for size in shape:
        count *= size
    if count:
        block = torch.frombuffer(payload, dtype=kind, count=count, offset=start)
    else:
        block = torch.empty(0, dtype=kind)
    return list(block.reshape(n, *shape).to(device).unbind(0))


def _decode_array(
    n: int, payload: bytearray, dtype: str, shape: list[int], start: int
) -> list[Any]:
    import numpy as np

    if np.dtype(dtype).hasobject:  # its bytes would be taken for addresses
        raise ValueError(f"dtype {dtype}")
    if 0 in shape or np.dtype(dtype).itemsize == 0:
        return list(np.zeros((n, *shape), dtype))
    return list(np.ndarray((n, *shape), dtype, payload, start))


def _decode_arrays(
    n: int, payload: bytearray, dtype: str, shape: list[int], start: int
) -> list[Any]:
    if shape:
        return _decode_array(n, payload, dtype, shape, start)
    # Iterating would turn arrays without axes into scalars.
    block = _decode_array(n, payload, dtype, [1], start)
    return [one[0, ...] for one in block]


def _doubles(n: int, payload: bytearray, start: int) -> array[float]:
    block = array("d")
    block.frombytes(memoryview(payload)[start : start + 8 * n])
    return block


def _decode_complex(n: int, payload: bytearray, start: int) -> list[Any]:
    parts = iter(_doubles(2 * n, payload, start))
    return [complex(real, imaginary) for real, imaginary in zip(parts, parts, strict=True)]


def _decode_bytes(_: int, payload: bytearray, lengths: list[int], start: int) -> list[Any]:
    values = []
    for length in lengths:
        values.append(bytes(payload[start : start + length]))
        start += length
    return values


def _decode_dict(n: int, payload: bytearray, keys: Any, stored: list[Any]) -> list[Any]:
    if keys is None:
        return [{} for _ in range(n)]
    names = decode(keys, len(stored), payload)
    columns = [decode(column, n, payload) for column in stored]
    return [dict(zip(names, parts, strict=True)) for parts in zip(*columns, strict=True)]


def _decode_sequence(kind: type, n: int, payload: bytearray, stored: list[Any]) -> list[Any]:
    if not stored:
        return [kind() for _ in range(n)]
    columns = [decode(column, n, payload) for column in stored]
    return [kind(parts) for parts in zip(*columns, strict=True)]


_DECODERS: dict[str, Callable[..., list[Any]]] = {
    "none": lambda n, _: [None] * n,
    "plain": lambda _n, _payload, values: values,
    "hex": lambda _n, _payload, values: [int(value, 16) for value in values],
    "float": lambda n, payload, start: list(_doubles(n, payload, start)),
    "complex": _decode_complex,
    "bytes": _decode_bytes,
    "array": _decode_arrays,
    "scalar": _decode_array,
    "tensor": _decode_tensor,
    "dict": _decode_dict,
    "list": lambda n, payload, stored: _decode_sequence(list, n, payload, stored),
    "tuple": lambda n, payload, stored: _decode_sequence(tuple, n, payload, stored),
    "record": _decode_record,
    "rows": lambda _n, payload, stored: [decode(one, 1, payload)[0] for one in stored],
}


def _is_both(kind: type) -> bool:
    """Return whether it is a dataclass and a dict of its fields that are not None, as `transformers.ModelOutput`."""
    return issubclass(kind, dict) and "__dataclass_fields__" in vars(kind)


def _loaded(module: str, name: str) -> Any:
    """Return the class *name* of *module* if it is loaded already; importing it would run code that a file chose."""
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return found


def _refused(path: str, value: object) -> UnstorableError:
    kind = type(value)
    return UnstorableError(f"{_place(path)} is a {kind.__module__}.{kind.__qualname__}")


def _place(path: str) -> str:
    return f"leaf {clip(path, 100)!r}" if path else "it"
