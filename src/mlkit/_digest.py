r"""Identity: one canonical encoding and one hash, by which specs, data, runs and versions refer to each other.

`canonical(value)` is ASCII JSON text without spaces, keys sorted as they are encoded. What JSON
cannot say exactly is written as an object with one tagged key:

| value | encoding | decision |
| --- | --- | --- |
| `None`, `True`, `"é"` | `null`, `true`, `"\u00e9"` | no Unicode normalisation: unequal strings differ |
| `7` (`IntEnum`, NumPy integers) | `7`, from 2**63 on `{"!int":"0x..."}` | a bool is never an int |
| `1.5` (NumPy floats) | `{"!float":"0x1.8000000000000p+0"}` | exact; `1.0` is not `1`; `-0.0` is not `0.0`; all NaN are one |
| `1j` | `{"!complex":[re,im]}` | |
| `b"ab"`, `bytearray` | `{"!bytes":"YWI="}` | |
| `[1]`, `(1,)` | `[1]` | one sequence: a value read back from JSON or YAML keeps its digest |
| `{"a": 1}` | `{"a":1}` | |
| mapping with other keys | `{"!map":[[key,value],...]}` | sorted by encoded key; also for keys that begin with `!` |
| `set`, `frozenset` | `{"!set":[...]}` | sorted by encoding |
| `datetime` | `{"!datetime":"2026-01-02T03:04:05+00:00"}` | aware: the instant, in UTC; naive: without an offset |
| `date`, `time`, `timedelta` | `{"!date":...}`, `{"!time":...}`, `{"!timedelta":[d,s,us]}` | nanoseconds of pandas after them, if there are any |
| `Decimal`, `Fraction`, `UUID` | `{"!decimal":"1.5"}`, `{"!fraction":[n,d]}`, `{"!uuid":...}` | `Decimal("1.50")` equals `Decimal("1.5")` |
| pure paths | `{"!path":"a/b"}` | |
| `Enum` | `{"!enum":["Color","RED"]}` | one that is also a str or int is that str or int |
| dataclass instance | `{"!dataclass":["Point",{...}]}` | the class name without its module |
| NumPy array | `{"!array":["<f4",[2,3],"sha256 of the bytes"]}` | little-endian, C order, all NaN one; text arrays element-wise |

Anything else has no digest: `DigestError` says where it is. Integers and floats of NumPy are the
Python number they equal. The encoding is frozen by vectors in the tests; RFC 8785 (JCS) is the
nearest standard, but it has one number type.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.errors import DigestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from os import PathLike

__all__ = [
    "canonical",
    "digest",
    "digest_bytes",
    "digest_file",
    "is_digest",
    "plain_array",
    "short",
]

_PREFIX = "sha256:"
_MAX_DEPTH = 200
_CHUNK = 1 << 20


def digest(value: object) -> str:
    """Return `"sha256:<64 hex digits>"` of the canonical encoding of *value*.

    Args:
        value: Plain data, see the module docstring.

    Raises:
        DigestError: If *value* holds something that has no canonical encoding, holds itself, or is
            nested deeper than 200 levels.
    """
    return digest_bytes(canonical(value))


def canonical(value: object) -> bytes:
    """Return the canonical encoding of *value*: ASCII JSON, one text for equal values.

    Args:
        value: Plain data, see the module docstring.

    Raises:
        DigestError: As for `digest`.
    """
    try:
        return _encode(value, ()).encode("ascii")
    except _NoEncodingError as problem:
        raise DigestError("$" + "".join(reversed(problem.steps)), problem.reason) from None
    except RecursionError:
        raise DigestError("$", "nested too deeply for the stack of this thread") from None


def digest_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return the digest of *data* itself.

    Args:
        data: Any contiguous buffer.
    """
    from hashlib import sha256

    return _PREFIX + sha256(data).hexdigest()


def digest_file(path: str | PathLike[str]) -> str:
    """Return the digest of the bytes of a file, read in constant memory.

    Args:
        path: A readable file.

    Raises:
        OSError: If it cannot be read.
    """
    from hashlib import file_digest
    from pathlib import Path

    with Path(path).open("rb") as file:
        return _PREFIX + file_digest(file, "sha256").hexdigest()


def is_digest(text: str) -> bool:
    """Return whether *text* is written as a whole digest."""
    body = text.removeprefix(_PREFIX)
    if len(body) != 64 or body == text:
        return False
    try:
        return bytes.fromhex(body).hex() == body  # fromhex alone would take spaces and capitals
    except ValueError:
        return False


def short(value: str) -> str:
    """Return the first 12 hex digits of a digest, for people."""
    return value.removeprefix(_PREFIX)[:12]


# An encoder takes the value and the ids of the containers around it, which bound the depth and find
# cycles.
_Parents = tuple[int, ...]


class _NoEncodingError(Exception):
    """A value has no encoding; each container on the way out adds its step to the path."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.steps: list[str] = []


def _encode(value: object, parents: _Parents) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    encoder = _ENCODERS.get(type(value)) or _find_encoder(value)
    if encoder is None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise _NoEncodingError(
            f"{clip(value)} is a {kind}; pass plain data (numbers, text, bytes, lists, mappings, dates, NumPy arrays, "
            f"dataclasses of these)"
        )
    return encoder(value, parents)


def _find_encoder(value: object) -> Callable[[Any, _Parents], str] | None:
    """Return the encoder of *value* when its exact type is not in the table."""
    numpy = sys.modules.get("numpy")  # whoever holds a NumPy value has imported it
    if numpy is not None:
        if isinstance(value, numpy.ndarray):
            return _encode_array
        if isinstance(value, numpy.generic):
            return _encode_numpy_scalar
    import dataclasses
    from collections.abc import Mapping

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_dataclass
    for kind in type(value).__mro__:
        if kind in _ENCODERS:
            return _ENCODERS[kind]
    if isinstance(value, Mapping):
        return _encode_mapping
    return _find_rare_encoder(value)


def _find_rare_encoder(value: object) -> Callable[[Any, _Parents], str] | None:
    """Return the encoder of a type whose module is too costly to import for a table."""
    import datetime as dt
    import enum
    from decimal import Decimal
    from fractions import Fraction
    from pathlib import PurePath
    from uuid import UUID

    rare: list[tuple[type, str, Callable[[Any], object]]] = [
        (dt.datetime, "datetime", _instant),
        (dt.date, "date", lambda date: date.isoformat()),
        (dt.time, "time", lambda time: time.isoformat()),
        (dt.timedelta, "timedelta", _duration),
        (Decimal, "decimal", _decimal),
        (Fraction, "fraction", lambda ratio: [ratio.numerator, ratio.denominator]),
        (UUID, "uuid", str),
        (PurePath, "path", lambda pure: pure.as_posix()),
        (enum.Enum, "enum", lambda member: [type(member).__qualname__, member.name]),
    ]
    for kind, tag, convert in rare:
        if isinstance(value, kind):
            return lambda item, parents, tag=tag, convert=convert: _tagged(
                tag, convert(item), parents
            )  # type: ignore[misc]
    return None


def _tagged(tag: str, content: object, parents: _Parents) -> str:
    return f'{{"!{tag}":{_encode(content, parents)}}}'


def _encode_all(
    items: Iterable[tuple[str, object]], container: object, parents: _Parents
) -> list[str]:
    """Encode the values of a container, each with the step that leads to it."""
    if id(container) in parents:
        raise _NoEncodingError("it holds itself")
    if len(parents) >= _MAX_DEPTH:
        raise _NoEncodingError(f"nested deeper than {_MAX_DEPTH} levels")
    inner = (*parents, id(container))
    encoded = []
    for step, item in items:
        try:
            encoded.append(_encode(item, inner))
        except _NoEncodingError as problem:
            problem.steps.append(step)
            raise
    return encoded


def _encode_str(value: str, _: _Parents) -> str:
    from json.encoder import encode_basestring_ascii

    return encode_basestring_ascii(value)


def _encode_int(value: int, parents: _Parents) -> str:
    # Beyond 64 bits the decimal form is quadratic to make and, from 4,300 digits, refused by
    # Python.
    return int.__repr__(value) if -(2**63) <= value < 2**63 else _tagged("int", hex(value), parents)


def _encode_float(value: float, parents: _Parents) -> str:
    return _tagged("float", float.hex(value) if value == value else "nan", parents)  # noqa: PLR0124 - NaN test


def _encode_complex(value: complex, parents: _Parents) -> str:
    return _tagged("complex", [value.real, value.imag], parents)


def _encode_bytes(value: bytes | bytearray, parents: _Parents) -> str:
    from binascii import b2a_base64

    return _tagged("bytes", b2a_base64(value, newline=False).decode("ascii"), parents)


def _encode_sequence(value: Iterable[object], parents: _Parents) -> str:
    steps = ((f"[{index}]", item) for index, item in enumerate(value))
    return f"[{','.join(_encode_all(steps, value, parents))}]"


def _encode_set(value: Iterable[object], parents: _Parents) -> str:
    items = sorted(_encode_all((("{...}", item) for item in value), value, parents))
    return f'{{"!set":[{",".join(items)}]}}'


def _encode_mapping(value: Mapping[Any, object], parents: _Parents) -> str:
    steps = ((f"[{clip(key, 40)}]", item) for key, item in value.items())
    items = _encode_all(steps, value, parents)
    keys = _encode_all((("key", key) for key in value), value, parents)
    pairs = sorted(zip(keys, items, strict=True))
    if all(isinstance(key, str) and not key.startswith("!") for key in value):
        return f"{{{','.join(f'{key}:{item}' for key, item in pairs)}}}"
    return f'{{"!map":[{",".join(f"[{key},{item}]" for key, item in pairs)}]}}'


def _encode_dataclass(value: object, parents: _Parents) -> str:
    from dataclasses import fields

    names = [field.name for field in fields(value)]  # type: ignore[arg-type]
    if unset := [name for name in names if not hasattr(value, name)]:
        raise _NoEncodingError(f"its field {unset[0]!r} has no value")
    steps = [(name, getattr(value, name)) for name in names]
    values = _encode_all(((f".{name}", item) for name, item in steps), value, parents)
    content = ",".join(
        f"{_encode_str(name, ())}:{item}"
        for (name, _), item in sorted(zip(steps, values, strict=True))
    )
    return f'{{"!dataclass":[{_encode_str(type(value).__qualname__, ())},{{{content}}}]}}'


def _instant(value: Any) -> str:
    from datetime import UTC

    # utcoffset(), not tzinfo: a zone may decline to give an offset, and then the value is naive.
    aware = value.utcoffset() is not None
    return str((value.astimezone(UTC) if aware else value.replace(tzinfo=None, fold=0)).isoformat())


def _duration(value: Any) -> list[int]:
    parts = [value.days, value.seconds, value.microseconds]
    finer = getattr(value, "nanoseconds", 0)  # of pandas
    return [*parts, finer] if finer else parts


def _decimal(value: Any) -> str:
    if not value.is_finite():
        return "nan" if value.is_nan() else str(value)
    sign, digits, exponent = value.as_tuple()
    # Not Decimal.normalize(): it rounds to the precision of the context.
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    if not stripped:
        return "0"
    return f"{'-' if sign else ''}{stripped}e{exponent + len(text) - len(stripped)}"


def _encode_numpy_scalar(value: Any, parents: _Parents) -> str:
    if value.dtype.kind in "biufcSU" and value.dtype.char not in "gG":
        return _encode(value.item(), parents)
    return _encode_array(value, parents)


def _encode_array(value: Any, parents: _Parents) -> str:
    import numpy as np

    array = np.asarray(value)
    if np.ma.isMaskedArray(value):
        raise _NoEncodingError(
            "what a masked array hides is undefined; fill it first: a.filled(value)"
        )
    if array.dtype.kind in "SUT":  # the padded width of text is not part of its value
        content = [array.dtype.kind, list(array.shape), array.ravel().tolist()]
        return _tagged("array", content, parents)
    found = plain_array(array)
    if found is None:
        raise _NoEncodingError(
            f"an array of dtype {array.dtype} has no canonical bytes; convert it to numbers or text"
        )
    dtype, data = found
    return _tagged("array", [dtype, list(array.shape), digest_bytes(data)], parents)


def plain_array(array: Any) -> tuple[str, memoryview] | None:
    """Return the dtype of an array and bytes of its elements that are the same on every machine.

    Little-endian, in C order, all NaN one.

    Args:
        array: A NumPy array.

    Returns:
        Name of the dtype and the bytes, a view of *array* where it lies so in memory; None for a dtype without such.
    """
    import numpy as np

    dtype = array.dtype
    if dtype.kind not in "biufcmM" or dtype.char in "gG":  # long doubles differ between machines
        return None
    row = np.ascontiguousarray(array, dtype=dtype.newbyteorder("<")).reshape(-1)
    if dtype.kind in "fc" and _has_nan(row):
        row = np.where(np.isnan(row), np.asarray(np.nan, dtype=row.dtype), row)
    return row.dtype.str, row.view(np.uint8).data


def _has_nan(row: Any) -> bool:
    import numpy as np

    parts = row.view(row.real.dtype)
    if not parts.size:
        return False
    if parts.itemsize == 2:  # halves are computed with one by one; their bits are not
        return bool((parts.view(np.uint16) & 0x7FFF).max() > 0x7C00)
    return bool(np.isnan(parts.min()))  # a NaN wins; twice as fast as asking each element


_ENCODERS: dict[type, Callable[[Any, _Parents], str]] = {
    str: _encode_str,
    int: _encode_int,
    float: _encode_float,
    complex: _encode_complex,
    bytes: _encode_bytes,
    bytearray: _encode_bytes,
    list: _encode_sequence,
    tuple: _encode_sequence,
    dict: _encode_mapping,
    set: _encode_set,
    frozenset: _encode_set,
}
