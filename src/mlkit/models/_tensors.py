"""Tensors and arrays by name, in safetensors: no code in the file, none run on the way in or out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from math import prod
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from mlkit._optional import require
from mlkit._suggest import article
from mlkit.errors import ConfigurationError, RebuildError
from mlkit.models._payload import in_memory

if TYPE_CHECKING:
    from mlkit.models._version import Payload

__all__ = ["Stateful", "problem_of", "read_tensors", "refuse_wrapper", "restore", "write_tensors"]

# What the file calls those that both the file and the library can hold; complex128, text, dates and objects are none.
_NUMPY_DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
_TORCH_DTYPES = _NUMPY_DTYPES | {
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}


@runtime_checkable
class Stateful(Protocol):
    """An object whose weights are a mapping: every torch module, and anything else with these two methods.

    Laws: after `b.load_state_dict(a.state_dict())`, for `a` and `b` built from equal specs, `b` answers as `a` does.
    The values are all NumPy arrays or all torch tensors.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """Return the weights by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> object:
        """Take weights as `state_dict` returned them; raise if names or shapes differ."""
        ...


def restore(ref: str, rebuilt: object, state: dict[str, Any]) -> None:
    """Put the weights into what the spec built, exactly: every name, shape and dtype.

    Args:
        ref: The version, for errors.
        rebuilt: What *build* returned.
        state: The weights by name.
    """
    if not isinstance(rebuilt, Stateful):
        raise RebuildError(
            ref, f"build returned {article(type(rebuilt).__name__)}, which has no load_state_dict()"
        )
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(rebuilt, torch.nn.Module):
        rebuilt.load_state_dict(state)
        return
    own_state = rebuilt.state_dict(keep_vars=True)
    # Loading into one of these changes nothing, and torch only warns.
    if any(
        isinstance(own, torch.Tensor) and own.device.type == "meta" for own in own_state.values()
    ):
        raise RebuildError(
            ref, "build returned a module on the meta device, which holds no weights"
        )
    own_state = {name: own for name, own in own_state.items() if isinstance(own, torch.Tensor)}
    try:
        # Copying converts: bfloat16 weights would silently become the float32 that the spec builds. Setting `data`
        # keeps the parameters that are tied to each other tied, which load_state_dict(assign=True) does not.
        for name, own in own_state.items():
            stored = state.get(name)
            if stored is not None and own.dtype != stored.dtype:
                own.data = own.data.to(stored.dtype)
        rebuilt.load_state_dict(state)
    except RuntimeError as error:
        raise RebuildError(ref, str(error)) from error
    for name, first in _ties(own_state).items():
        if _differ(state.get(name), state.get(first)):
            raise RebuildError(
                ref,
                f"{first!r} and {name!r} are one tensor in what build returned, and have different values in what was saved",
            )


def _differ(one: Any, other: Any) -> bool:
    """Return whether two stored tensors of one shape have other bytes."""
    if one is None or other is None or one is other:
        return False
    return bool((_torch_bytes(one) != _torch_bytes(other)).any())


def refuse_wrapper(model: object) -> None:
    """Refuse a module that wraps the one to save: its names have a prefix that what a spec builds does not take.

    Args:
        model: What the caller passed to `save`.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        return
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    if isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
        hint = "save net._orig_mod, the module that was compiled"
    elif isinstance(model, parallel):
        hint = "save net.module, the module that was made parallel"
    else:
        return
    kind = article(type(model).__name__)
    raise ConfigurationError("save(model)", kind, "a module, not a wrapper of one", hint=hint)


def problem_of(state: object) -> str | None:
    """Return why a state is not a mapping of tensors that safetensors can hold, or None if it is.

    Args:
        state: What the caller passed to `save`, or its `state_dict`.
    """
    if not isinstance(state, Mapping):
        return f"a state that is {article(type(state).__name__)}"
    # Whoever has a tensor imported it.
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    n_tensors = 0
    for name, value in state.items():
        if not isinstance(name, str) or not name or name == "__metadata__":
            raise ConfigurationError(
                "save(model)", name, "names of weights that are non-empty text"
            )
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise ConfigurationError(
                "save(model)", name, "names of weights in valid Unicode"
            ) from None
        if torch is not None and isinstance(value, torch.Tensor):
            n_tensors += 1
            if (reason := _tensor_problem(torch, value)) is not None:
                return f"{name!r}, {reason},"
        elif numpy is not None and isinstance(value, numpy.ndarray):
            if isinstance(value, numpy.ma.MaskedArray):
                raise ConfigurationError(
                    f"save(model)[{name!r}]", "a masked array", "an array", hint="fill it first"
                )
            if value.dtype.name not in _NUMPY_DTYPES:
                return f"{name!r}, an array of dtype {value.dtype},"
        else:
            return f"{name!r}, of type {type(value).__name__},"
    if 0 < n_tensors < len(state):
        return "a mixture of NumPy arrays and torch tensors"
    return None


def _tensor_problem(torch: Any, tensor: Any) -> str | None:
    lazy = getattr(torch.nn.parameter, "UninitializedTensorMixin", ())
    if isinstance(tensor, lazy) or tensor.device.type == "meta":
        raise ConfigurationError(
            "save(model)",
            "a tensor without data",
            "a model whose weights exist",
            hint="run it once, or move it off the meta device",
        )
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a tensor of layout {tensor.layout}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return None if dtype in _TORCH_DTYPES else f"a tensor of dtype {dtype}"


def write_tensors(
    state: Mapping[str, Any], file: IO[bytes]
) -> tuple[Literal["torch", "numpy"], dict[str, str]]:
    """Write a state that has no problem, and return whose it is and which names are one tensor.

    One tensor at a time is made contiguous and brought from its device; nothing else is copied.

    Args:
        state: The tensors or arrays by name.
        file: Where to.

    Note:
        The layout is that of https://github.com/huggingface/safetensors#format: the length of the header in 8 bytes,
        the header as JSON padded to a multiple of 8, the bytes. The widest items come first, so that all are aligned;
        among them the order is that of the names, so that equal states make equal files whatever the library.
    """
    import json

    torch = sys.modules.get("torch")
    is_torch = torch is not None and any(isinstance(v, torch.Tensor) for v in state.values())
    ties = _ties(state) if is_torch else {}
    facts = _torch_facts if is_torch else _numpy_facts
    header: dict[str, Any] = {}
    end = 0
    stored = {name: facts(state[name]) for name in state if name not in ties}
    for name in sorted(stored, key=lambda name: (-stored[name][1], name)):
        dtype, width, shape = stored[name]
        begin, end = end, end + width * prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    file.write(len(content).to_bytes(8, "little") + content)
    for name in header:
        file.write(_torch_bytes(state[name]) if is_torch else _numpy_bytes(state[name]))
    return ("torch" if is_torch else "numpy"), ties


def read_tensors(ref: str, file: IO[bytes], payload: Payload) -> dict[str, Any]:
    """Return the tensors or arrays of a file that was checked; they are the caller's own.

    Args:
        ref: The version, for errors.
        file: Our private copy, which tensors of torch keep and use as their memory.
        payload: What the document says of it.
    """
    from safetensors import SafetensorError

    path = in_memory(file)
    try:
        state: dict[str, Any]
        if payload.format == "torch":
            require("torch", extra="torch", feature=f"loading {ref}")
            from safetensors.torch import load_file

            state = _from_buffer(file.read()) if path is None else load_file(path)
        else:
            from safetensors.numpy import load as load_arrays
            from safetensors.numpy import load_file as load_array_file

            state = dict(load_arrays(file.read()) if path is None else load_array_file(path))
        _check_header(file)
        for name, kept in payload.ties.items():
            state[name] = state[kept]
    except (SafetensorError, KeyError, _HeaderError) as error:
        raise RebuildError(ref, f"its weights are not what its document says: {error}") from error
    return state


def _from_buffer(content: bytes) -> dict[str, Any]:
    """Return the tensors in *content*; safetensors' own `load` knows fewer dtypes than its `load_file`."""
    import torch
    from safetensors import deserialize

    read: Any = deserialize  # it has no types
    dtypes = {stored: getattr(torch, name, None) for name, stored in _TORCH_DTYPES.items()}
    state = {}
    for name, facts in read(content):
        dtype, shape = dtypes[facts["dtype"]], facts["shape"]
        if len(facts["data"]):
            state[name] = torch.frombuffer(facts["data"], dtype=dtype).reshape(shape)
        else:
            state[name] = torch.empty(shape, dtype=dtype)
    return state


class _HeaderError(Exception):
    """A header that the format forbids, though its library reads it."""


def _check_header(file: IO[bytes]) -> None:
    """Refuse a header that two readers may read as two models; the library has found it good otherwise.

    Raises:
        _HeaderError: If it does not begin with a brace, or an object has a key twice.
    """
    import json

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            raise _HeaderError("a name is there twice in its header")
        return made

    file.seek(0)
    header = file.read(int.from_bytes(file.read(8), "little"))
    if header[:1] != b"{":
        raise _HeaderError("its header does not begin with a brace")
    json.loads(header, object_pairs_hook=once)


def _ties(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that are another name's tensor: stored once, and one tensor again when loaded."""
    first: dict[tuple[Any, ...], str] = {}
    ties: dict[str, str] = {}
    for name, value in sorted(state.items()):
        same = (
            value.device,
            value.data_ptr(),
            value.dtype,
            tuple(value.shape),
            value.stride(),
            value.is_conj(),
            value.is_neg(),
        )
        if value.numel() and first.setdefault(same, name) != name:
            ties[name] = first[same]
    return ties


def _torch_facts(tensor: Any) -> tuple[str, int, list[int]]:
    dtype = _TORCH_DTYPES[str(tensor.dtype).removeprefix("torch.")]
    return dtype, tensor.element_size(), list(tensor.shape)


def _numpy_facts(array: Any) -> tuple[str, int, list[int]]:
    return _NUMPY_DTYPES[array.dtype.name], array.dtype.itemsize, list(array.shape)


def _torch_bytes(tensor: Any) -> Any:
    import torch

    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # Not reshape: one element is contiguous whatever its stride, which a view as bytes then refuses.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()


def _numpy_bytes(array: Any) -> Any:
    import numpy as np

    # The memory is written as it lies: other strides or byte orders would come back as other numbers.
    plain = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return plain.reshape(-1).view(np.uint8)
