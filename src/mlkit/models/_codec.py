"""What turns a model into bytes and back, and which of them a format name may mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

from mlkit.errors import ConfigurationError, UnknownFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BUILT_IN", "Codec", "checked_codecs", "codec_named", "is_format"]

# The formats that every store can read. What the name in a file selects is one of these, or was passed by the caller.
BUILT_IN = ("torch", "numpy", "bytes", "skops", "onnx", "torchscript", "pt2", "pickle")
_MAX_NAME = 40


@runtime_checkable
class Codec(Protocol):
    """One way to store models of some kind: pass yours to `ModelStore(path, codecs=[...])`.

    Laws, which `mlkit.testing.CodecContract` checks:

    1. `handles` looks at a model and changes nothing; it is False, and raises nothing, for what the codec cannot store.
    2. `read` of what `write` wrote returns a model that answers as the one that was written, in another process too.
    3. Equal models give equal bytes, in any process: no addresses, no times, no order of a set.
    4. `write` leaves the model as it was, and `read` returns a new one each time.
    5. `read` of anything else raises an error, and runs nothing that the bytes say. A codec for which this does not hold
       (one that unpickles, for instance) must only be passed to stores whose writers are trusted.

    A store calls them without holding a lock, from any thread.

    Attributes:
        name: The name of the format, stored with each version: lower-case ASCII letters, digits, `-`, `_`, `.`,
            beginning with a letter, at most 40 characters, and none of the formats that mlkit has.
    """

    @property
    def name(self) -> str:
        """The name of the format."""
        ...

    def handles(self, model: object, /) -> bool:
        """Return whether this codec stores *model*."""
        ...

    def write(self, model: Any, file: IO[bytes], /) -> object:
        """Write *model* to *file*, which takes `write` and cannot seek. What is returned is ignored."""
        ...

    def read(self, file: IO[bytes], /) -> Any:
        """Return the model in *file*, a private copy whose bytes were checked, at its beginning; it can seek."""
        ...


def checked_codecs(where: str, codecs: object) -> Mapping[str, Codec]:
    """Return codecs by name, in the order that was given.

    Args:
        where: The argument, for the error.
        codecs: What the caller passed.
    """
    if not isinstance(codecs, Sequence) or isinstance(codecs, (str, bytes)):
        raise ConfigurationError(where, codecs, "a list of codecs")
    named: dict[str, Codec] = {}
    for codec in codecs:
        if isinstance(codec, type) or not isinstance(codec, Codec):
            raise ConfigurationError(
                where, codec, "codecs: objects with name, handles, write and read; see Codec"
            )
        name: object = codec.name
        if not is_format(name) or name in BUILT_IN:
            taken = f"none of {', '.join(BUILT_IN)}"
            raise ConfigurationError(
                f"{where} name", name, f"lower-case letters, digits, '-', '_', '.'; {taken}"
            )
        if named.setdefault(codec.name, codec) is not codec:
            raise ConfigurationError(f"{where} name", name, "a name that no other codec has")
    return named


def codec_named(ref: str, name: str, codecs: Mapping[str, Codec]) -> Codec:
    """Return the codec of the caller with this name.

    Args:
        ref: The version, for the error.
        name: The format it was stored in.
        codecs: Those of the caller.

    Raises:
        UnknownFormatError: If there is none.
    """
    if name not in codecs:
        raise UnknownFormatError(ref, name, [*BUILT_IN, *codecs])
    return codecs[name]


def is_format(name: object) -> bool:
    """Return whether *name* may name a format.

    Args:
        name: What a caller passed or a file says.
    """
    if name in BUILT_IN:  # a history asks once a line
        return True
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        return False
    rest = name.replace("-", "").replace("_", "").replace(".", "")
    return name[0].isalpha() and rest.isascii() and rest.isalnum() and rest.islower()
