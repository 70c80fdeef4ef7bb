"""From a model to one file of weights and back: safetensors for tensors, bytes as they are, pickle only by decision."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

from mlkit._optional import require
from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, MlkitError, RebuildError, UntrustedFormatError
from mlkit.models._folder import write_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import PurePath

    from mlkit.models._version import Format, Payload

__all__ = ["Stateful", "Trust", "Written", "decode", "write"]

Trust = Literal["pickle"]

# Those that both safetensors and the library can hold; complex128, text, dates and objects are none of them.
_NUMPY_DTYPES = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "complex64",
    ]
)
_TORCH_DTYPES = _NUMPY_DTYPES | frozenset(
    [
        "bfloat16",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    ]
)


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


class Written(NamedTuple):
    """What was written to a temporary file."""

    format: Format
    rebuild: bool
    ties: Mapping[str, str]


def write(model: object, path: str, *, has_spec: bool, trust: Trust | None) -> Written:
    """Write the weights of *model* to *path*, in a safe format where there is one.

    Args:
        model: What the caller passed to `save`.
        path: A file that does not exist.
        has_spec: Whether a spec was given.
        trust: `"pickle"` if pickling what has no safe format was asked for.

    Raises:
        ConfigurationError: If the model cannot be stored as it is.
        UntrustedFormatError: If only pickle could store it.
    """
    if isinstance(model, (bytes, bytearray, memoryview)):
        write_file(path, bytes(model))
        return Written("bytes", rebuild=False, ties={})
    pathlib = sys.modules.get("pathlib")  # whoever has a path has imported it
    if pathlib is not None and isinstance(model, pathlib.PurePath):
        _copy(model, path)
        return Written("bytes", rebuild=False, ties={})
    state: object = model
    if is_object := isinstance(model, Stateful) and not isinstance(model, type):
        _refuse_wrapper(model)
        state = model.state_dict()
    if is_object or isinstance(model, Mapping):
        problem = _problem(state)
        if problem is None:
            if is_object and not has_spec:
                raise ConfigurationError(
                    "save(spec=...)",
                    None,
                    f"the plain data that rebuilds a {type(model).__name__}",
                    hint="or save its state_dict(), which needs none",
                )
            if not is_object and not state:
                raise ConfigurationError("save(model)", state, "a mapping of at least one array")
            kind, ties = _write_tensors(cast("Mapping[str, Any]", state), path)
            return Written(kind, rebuild=is_object, ties=ties)
    else:
        problem = f"a {type(model).__module__}.{type(model).__qualname__}"
        if isinstance(model, str):
            raise ConfigurationError(
                "save(model)", model, "a model", hint="for a file pass pathlib.Path(...)"
            )
    if trust != "pickle":
        raise UntrustedFormatError(
            f"save(model): {problem}",
            "save a mapping of NumPy arrays or tensors, an object with state_dict() and load_state_dict(), bytes or a "
            "Path, or pass trust='pickle' here and at each load",
        )
    write_file(path, _pickled(model))
    return Written("pickle", rebuild=False, ties={})


def decode(
    ref: str,
    data: bytes,
    payload: Payload,
    *,
    spec: dict[str, Any] | None,
    build: Callable[[dict[str, Any]], Any] | None,
) -> Any:
    """Return the model that verified bytes hold.

    Args:
        ref: What to call it in errors.
        data: The content of the weights file, already checked.
        payload: Its description.
        spec: The spec, a copy that *build* may change.
        build: What rebuilds the object from the spec.
    """
    if payload.format == "bytes":
        return data
    if payload.format == "pickle":
        import pickle

        return pickle.loads(data)  # noqa: S301 - the caller said trust="pickle", and the digest was checked
    state = _read_tensors(ref, data, payload)
    if build is None:
        return state
    try:
        rebuilt = build(spec or {})
    except MlkitError as error:  # says what is wrong itself, as a registry does of a spec
        error.add_note(f"while rebuilding {ref} from its spec")
        raise
    except Exception as error:
        raised = clip(f"{type(error).__name__}: {error}", 300)
        raise RebuildError(ref, f"build raised {raised}") from error
    _restore(ref, rebuilt, state)
    return rebuilt


def _restore(ref: str, rebuilt: object, state: dict[str, Any]) -> None:
    """Put the weights into what the spec built, exactly: every name, shape and dtype."""
    if not isinstance(rebuilt, Stateful):
        raise RebuildError(
            ref, f"build returned a {type(rebuilt).__name__}, which has no load_state_dict()"
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
    # Copying converts: bfloat16 weights would silently become the float32 that the spec builds. Setting `data` keeps
    # the parameters that are tied to each other tied, which load_state_dict(assign=True) does not.
    for name, own in own_state.items():
        stored = state.get(name)
        if stored is not None and isinstance(own, torch.Tensor) and own.dtype != stored.dtype:
            own.data = own.data.to(stored.dtype)
    try:
        rebuilt.load_state_dict(state)
    except RuntimeError as error:
        raise RebuildError(ref, str(error)) from error


def _refuse_wrapper(model: object) -> None:
    """Refuse a module that wraps the one to save: its names have a prefix that what a spec builds does not take."""
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
    kind = f"a {type(model).__name__}"
    raise ConfigurationError("save(model)", kind, "a module, not a wrapper of one", hint=hint)


def _pickled(model: object) -> bytes:
    import pickle

    try:
        return pickle.dumps(model, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = clip(f"{type(error).__name__}: {error}", 200)
        raise ConfigurationError(
            "save(model)", model, "what pickle can store", hint=reason
        ) from error


def _problem(state: object) -> str | None:
    """Return why a state is not a mapping of tensors that safetensors can hold, or None if it is."""
    if not isinstance(state, Mapping):
        return f"a state that is a {type(state).__name__}"
    torch, numpy = (
        sys.modules.get("torch"),
        sys.modules.get("numpy"),
    )  # whoever has a tensor imported it
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
                return f"{name!r} is {reason}"
        elif numpy is not None and isinstance(value, numpy.ndarray):
            if isinstance(value, numpy.ma.MaskedArray):
                raise ConfigurationError(
                    f"save(model)[{name!r}]", "a masked array", "an array", hint="fill it first"
                )
            if value.dtype.name not in _NUMPY_DTYPES:
                return f"{name!r} is an array of dtype {value.dtype}"
        else:
            return f"{name!r} is a {type(value).__name__}"
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
    if tensor.layout != torch.strided:
        return f"a tensor of layout {tensor.layout}"
    dtype = str(tensor.dtype).removeprefix("torch.")
    return None if dtype in _TORCH_DTYPES else f"a tensor of dtype {dtype}"


def _write_tensors(state: Mapping[str, Any], path: str) -> tuple[Format, dict[str, str]]:
    # safetensors lets only the owner read a file that it makes; others may, as far as the umask says, as all else.
    write_file(path, b"")
    mode = os.stat(path).st_mode & 0o777  # noqa: PTH116 - a path is text here
    kind, ties = _fill(state, path)
    os.chmod(path, mode)  # noqa: PTH101 - as above
    return kind, ties


def _fill(state: Mapping[str, Any], path: str) -> tuple[Format, dict[str, str]]:
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(value, torch.Tensor) for value in state.values()):
        from safetensors.torch import save_file

        tensors, ties = _separate(state)
        save_file(tensors, path)
        return "torch", ties
    import numpy as np
    from safetensors.numpy import save_file as save_arrays

    # safetensors writes the memory as it lies: other strides or byte orders would come back as other numbers.
    arrays = {
        name: np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
        for name, value in sorted(state.items())
    }
    save_arrays(arrays, path)
    return "numpy", {}


def _separate(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return tensors that share no memory, and which names are one tensor.

    safetensors refuses shared memory. One tensor under two names (tied weights) is stored once; tensors that only
    overlap are stored apart, each with its own values.
    """
    first: dict[tuple[Any, ...], str] = {}
    storages: set[tuple[Any, int]] = set()
    tensors: dict[str, Any] = {}
    ties: dict[str, str] = {}
    for name, value in sorted(state.items()):
        geometry = (
            value.dtype,
            tuple(value.shape),
            value.stride(),
            value.is_conj(),
            value.is_neg(),
        )
        same = (value.device, value.data_ptr(), *geometry)
        if value.numel() and same in first:
            ties[name] = first[same]
            continue
        first[same] = name
        tensor = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        if storage in storages:
            tensor = tensor.clone()
        storages.add(storage)
        tensors[name] = tensor
    return tensors, ties


def _read_tensors(ref: str, data: bytes, payload: Payload) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        if payload.format == "torch":
            require("torch", extra="torch", feature=f"loading {ref}")
            from safetensors.torch import load as load_tensors

            state: dict[str, Any] = load_tensors(data)
        else:
            from safetensors.numpy import load as load_arrays

            state = dict(load_arrays(data))
        for name, kept in payload.ties.items():
            state[name] = state[kept]
    except (SafetensorError, KeyError) as error:
        raise RebuildError(ref, f"its weights are not what its document says: {error}") from error
    return state


def _copy(source: PurePath, path: str) -> None:
    from pathlib import Path
    from shutil import copyfile

    if not Path(source).is_file():
        raise ConfigurationError("save(model)", source, "a path of a file that exists")
    copyfile(source, path)
