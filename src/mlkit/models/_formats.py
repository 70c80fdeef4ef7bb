"""Which format a model is stored in, and how a stored one becomes a model again; what needs a decision is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from mlkit._suggest import article, clip
from mlkit.errors import ConfigurationError, MlkitError, RebuildError, UntrustedFormatError
from mlkit.models._codec import BUILT_IN, Codec, codec_named
from mlkit.models._tensors import (
    Stateful,
    problem_of,
    read_tensors,
    refuse_wrapper,
    restore,
    write_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import PurePath

    from mlkit.models._version import Payload

__all__ = ["Trust", "Written", "check_trust", "decode", "may_load", "write"]

Program: TypeAlias = Literal["pickle", "torchscript", "pt2"]
Trust: TypeAlias = Program | Sequence[str]
# Loading these may run what the file says.
_PROGRAMS: dict[str, str] = {
    "pickle": "would need pickle, which runs whatever code the file holds",
    "torchscript": "is TorchScript, which can read and overwrite files as soon as it is loaded",
    "pt2": "is a torch.export archive, parts of which are unpickled, which runs whatever code they hold",
}
_TENSORS = frozenset({"torch", "numpy"})


class Written(NamedTuple):
    """What was written."""

    format: str
    rebuild: bool
    ties: Mapping[str, str]


def check_trust(where: str, trust: object) -> None:
    """Refuse what is no decision about trust.

    Args:
        where: The argument, for the error.
        trust: What the caller passed.
    """
    if trust is None or (isinstance(trust, str) and trust in _PROGRAMS):
        return
    names = isinstance(trust, Sequence) and not isinstance(trust, (str, bytes))
    if not names or not all(isinstance(name, str) and "." in name for name in trust):  # type: ignore[attr-defined]
        programs = ", ".join(map(repr, _PROGRAMS))
        expected = f"{programs}, a list of names of types such as 'mine.Scaler', or None"
        raise ConfigurationError(where, trust, expected)


def write(
    model: object,
    file: IO[bytes],
    *,
    has_spec: bool,
    trust: Trust | None,
    codecs: Mapping[str, Codec],
) -> Written:
    """Write a model in the first format that fits, in a safe one where there is one.

    Args:
        model: What the caller passed to `save`.
        file: Where to.
        has_spec: Whether a spec was given.
        trust: What the caller decided.
        codecs: Those of the caller; they are asked first.

    Raises:
        ConfigurationError: If the model cannot be stored as it is.
        UntrustedFormatError: If loading it again would need a decision that *trust* does not say.
    """
    for name, codec in codecs.items():
        if codec.handles(model):
            codec.write(model, file)
            return Written(name, rebuild=False, ties={})
    if isinstance(model, (bytes, bytearray, memoryview)):
        file.write(model.tobytes() if isinstance(model, memoryview) else model)
        return Written("bytes", rebuild=False, ties={})
    pathlib = sys.modules.get("pathlib")  # whoever has a path has imported it
    if pathlib is not None and isinstance(model, pathlib.PurePath):
        _copy(model, file)
        return Written("bytes", rebuild=False, ties={})
    if (program := _program_of(model, has_spec=has_spec)) is not None:
        # What is saved without a decision loads without one.
        if trust != program.name:
            kind = f"save(model): {article(type(model).__name__)}"
            raise _untrusted(kind, program.name, "here and at each load")
        program.write(model, file)
        return Written(program.name, rebuild=False, ties={})
    if (written := _write_state(model, file, has_spec=has_spec)) is not None:
        return written
    if (library := _library_of(model, trust)) is not None:
        library.write(model, file)
        return Written(library.name, rebuild=False, ties={})
    return _write_pickle(model, file, trust)


def may_load(ref: str, payload: Payload, trust: Trust | None) -> None:
    """Refuse a format whose loading runs code, unless that was decided.

    Args:
        ref: The version, for errors.
        payload: What its document says of it.
        trust: What the caller decided.
    """
    if payload.format in _PROGRAMS and trust != payload.format:
        raise _untrusted(ref, payload.format, "if you trust whoever can write to this store")


def decode(
    ref: str,
    file: IO[bytes],
    payload: Payload,
    *,
    spec: dict[str, Any] | None,
    build: Callable[[dict[str, Any]], Any] | None,
    trust: Trust | None,
    codecs: Mapping[str, Codec],
) -> Any:
    """Return the model in a file that was checked.

    Args:
        ref: What to call it in errors.
        file: Our private copy of it.
        payload: What its document says of it.
        spec: The spec, a copy that *build* may change.
        build: What rebuilds the object from the spec.
        trust: What the caller decided; `may_load` was asked.
        codecs: Those of the caller.
    """
    if payload.format == "bytes":
        return file.read()
    if payload.format not in _TENSORS:
        codec = _codec_of(ref, payload.format, trust, codecs)
        try:
            return codec.read(file)
        except (MlkitError, MemoryError):
            raise
        except Exception as error:
            if payload.format in codecs or payload.format == "pickle":
                raise  # it is the user's code that failed, or the user's decision
            reason = clip(f"{type(error).__name__}: {error}", 300)
            raise RebuildError(ref, f"it is no {payload.format} model: {reason}") from error
    state = read_tensors(ref, file, payload)
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
    restore(ref, rebuilt, state)
    return rebuilt


def takes_build(payload: Payload) -> bool:
    """Return whether a spec can rebuild what is stored so.

    Args:
        payload: What the document says of it.
    """
    return payload.format in _TENSORS


def _write_state(model: object, file: IO[bytes], *, has_spec: bool) -> Written | None:
    """Write tensors, or an object whose weights are tensors; None if it is neither."""
    if not isinstance(model, Stateful) or isinstance(model, type):
        if not isinstance(model, Mapping) or problem_of(model) is not None:
            return None
        if not model:
            raise ConfigurationError("save(model)", model, "a mapping of at least one array")
        kind, ties = write_tensors(model, file)
        return Written(kind, rebuild=False, ties=ties)
    refuse_wrapper(model)
    state = model.state_dict()
    if problem_of(state) is not None:
        return None
    if not has_spec:
        raise ConfigurationError(
            "save(spec=...)",
            None,
            f"the plain data that rebuilds {article(type(model).__name__)}",
            hint="or save its state_dict(), which needs none",
        )
    kind, ties = write_tensors(state, file)
    return Written(kind, rebuild=True, ties=ties)


def _write_pickle(model: object, file: IO[bytes], trust: Trust | None) -> Written:
    if isinstance(model, str):
        raise ConfigurationError(
            "save(model)", model, "a model", hint="for a file pass pathlib.Path(...)"
        )
    if trust != "pickle":
        state = model
        if isinstance(model, Stateful) and not isinstance(model, type):
            state = model.state_dict()
        is_state = state is not model or isinstance(model, Mapping)
        kind = f"a {type(model).__module__}.{type(model).__qualname__}"
        raise UntrustedFormatError(
            f"save(model): {(problem_of(state) if is_state else None) or kind}",
            "save a mapping of NumPy arrays or tensors, an object with state_dict() and load_state_dict(), bytes or a "
            "Path, pass a codec to the store, or pass trust='pickle' here and at each load",
        )
    codec = _codec_of("save(model)", "pickle", trust, {})
    codec.write(model, file)
    return Written("pickle", rebuild=False, ties={})


def _program_of(model: object, *, has_spec: bool) -> Codec | None:
    """Return the codec of a program of torch; a scripted module with a spec is a module like others."""
    if "torch" not in sys.modules:
        return None
    from mlkit.models._codecs._programs import ExportedCodec, ScriptCodec

    programs: list[Codec] = [ExportedCodec()] if has_spec else [ScriptCodec(), ExportedCodec()]
    return next((codec for codec in programs if codec.handles(model)), None)


def _library_of(model: object, trust: Trust | None) -> Codec | None:
    """Return the codec of a library whose model this is."""
    if "onnx" in sys.modules:
        onnx = _codec_of("save(model)", "onnx", trust, {})
        if onnx.handles(model):
            return onnx
    if "sklearn" in sys.modules and trust != "pickle":
        skops = _codec_of("save(model)", "skops", trust, {})
        if skops.handles(model):
            return skops
    return None


def _codec_of(ref: str, name: str, trust: Trust | None, codecs: Mapping[str, Codec]) -> Codec:
    """Return the codec of a stored format: one of ours, or one that the caller passed; never one that the file names."""
    if name not in BUILT_IN:
        return codec_named(ref, name, codecs)
    if name == "skops":
        from mlkit.models._codecs._sklearn import SklearnCodec

        return SklearnCodec(ref, [] if isinstance(trust, str) or trust is None else trust)
    if name == "onnx":
        from mlkit.models._codecs._onnx import OnnxCodec

        return OnnxCodec()
    if name == "pickle":
        from mlkit.models._codecs._pickle import PickleCodec

        return PickleCodec()
    from mlkit.models._codecs import _programs

    return _programs.ScriptCodec() if name == "torchscript" else _programs.ExportedCodec()


def _untrusted(what: str, name: str, when: str) -> UntrustedFormatError:
    hint = f"pass trust={name!r} {when}, or save it in a safe format"
    return UntrustedFormatError(what, hint, reason=_PROGRAMS[name])


def _copy(source: PurePath, file: IO[bytes]) -> None:
    from pathlib import Path
    from shutil import copyfileobj

    if not Path(source).is_file():
        raise ConfigurationError("save(model)", source, "a path of a file that exists")
    with Path(source).open("rb") as opened:
        copyfileobj(opened, file, 4 << 20)
