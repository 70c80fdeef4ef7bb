"""What a user may log: checked where it is passed, put into the form that the journal keeps."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mlkit.errors import ConfigurationError, ParamConflictError

__all__ = [
    "artifact_name",
    "as_microseconds",
    "as_step",
    "as_tags",
    "check_key",
    "flat_params",
    "numbers_of",
    "same",
    "table_of_points",
]

_MAX_KEY = 1000
_MAX_INT_BITS = 4096  # Python refuses to print integers much beyond this
_PLAIN = (str, int, float, bool, type(None))


def check_key(where: str, key: object) -> str:
    """Return *key* if it is a name: text of 1 to 1000 characters."""
    if not isinstance(key, str) or not 1 <= len(key) <= _MAX_KEY:
        raise ConfigurationError(where, key, f"a name of 1 to {_MAX_KEY} characters")
    return key


def as_step(where: str, step: object) -> int:
    """Return *step* as an integer of 64 bits; a NumPy integer is one, a bool is not."""
    from operator import index

    try:
        number = index(step)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(step, bool) or not -(2**63) <= number < 2**63:
        raise ConfigurationError(where, step, "an integer from -2**63 to 2**63 - 1")
    return number


def numbers_of(where: str, metrics: object) -> tuple[tuple[str, ...], list[float]]:
    """Return the names of *metrics* and their numbers.

    Raises:
        ConfigurationError: If it is no mapping, or empty, or a name or a number is none.
    """
    if not isinstance(metrics, Mapping) or not metrics:
        raise ConfigurationError(
            f"{where}(metrics)", metrics, "a non-empty mapping of names to numbers"
        )
    keys = tuple(check_key(f"{where}(metrics)", key) for key in metrics)
    return keys, [_float(f"{where}({{{key!r}: ...}})", value) for key, value in metrics.items()]


def table_of_points(
    where: str, metrics: object, steps: object
) -> tuple[tuple[str, ...], list[tuple[int, tuple[float, ...]]]]:
    """Return the names of *metrics*, and for each step its values.

    Raises:
        ConfigurationError: If they are no columns of one length, a value is no number, or a step no
            integer.
    """
    if not isinstance(metrics, Mapping) or not metrics:
        raise ConfigurationError(
            f"{where}(metrics)", metrics, "a non-empty mapping of names to arrays of numbers"
        )
    keys = tuple(check_key(f"{where}(metrics)", key) for key in metrics)
    all_steps = [as_step(f"{where}(steps)", one) for one in _items(f"{where}(steps)", steps)]
    columns = []
    for key, values in metrics.items():
        place = f"{where}({{{key!r}: ...}})"
        column = [_float(place, value) for value in _items(place, values)]
        if len(column) != len(all_steps):
            raise ConfigurationError(
                place, f"{len(column)} values", f"one for each of the {len(all_steps)} steps"
            )
        columns.append(column)
    return keys, list(zip(all_steps, zip(*columns, strict=True), strict=True))


def as_microseconds(where: str, times: object, rows: int) -> list[int]:
    """Return *times*, in seconds, as whole microseconds.

    Raises:
        ConfigurationError: If they are not *rows* numbers that a journal can keep.
    """
    stamps = []
    for value in _items(where, times):
        seconds = _float(where, value)
        if not abs(seconds) < 9e12:
            raise ConfigurationError(where, value, "Unix time in seconds")
        stamps.append(round(seconds * 1e6))
    if len(stamps) != rows:
        raise ConfigurationError(where, f"{len(stamps)} times", f"one for each of the {rows} steps")
    return stamps


def _items(where: str, values: Any) -> list[Any]:
    held = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(held, (str, bytes, Mapping)) or not hasattr(held, "__iter__"):
        raise ConfigurationError(where, values, "a list or an array of one dimension")
    return list(held)


def _float(where: str, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError("text is no number")
        return float(value)
    except Exception as error:
        raise ConfigurationError(where, value, "one number") from error


def flat_params(where: str, params: object) -> dict[str, Any]:
    """Return nested *params* as one level of dotted keys, their values as what JSON reads back.

    Raises:
        ConfigurationError: If a key is no text, or a value has no text of its own.
        ParamConflictError: If two of them meet under one dotted key with different values.
    """
    if not isinstance(params, Mapping):
        raise ConfigurationError(where, params, "a mapping of names to values")
    flat: dict[str, Any] = {}
    _flatten(where, "", params, flat, 0)
    return flat


def _flatten(
    where: str, prefix: str, params: Mapping[Any, Any], flat: dict[str, Any], depth: int
) -> None:
    if depth > 50:
        raise ConfigurationError(where, prefix, "nesting of at most 50 levels")
    for key, value in params.items():
        path = f"{prefix}.{check_key(where, key)}" if prefix else check_key(where, key)
        if isinstance(value, Mapping) and value:
            _flatten(where, path, value, flat, depth + 1)
            continue
        plain = _plain(f"{where[:-1]}[{path!r}])", value, 0)
        if path in flat and not same(flat[path], plain):
            raise ParamConflictError(path, flat[path], plain)
        flat[check_key(where, path)] = plain


def same(one: object, other: object) -> bool:
    """Return whether two values of params are one: 1 is neither 1.0 nor True, and NaN is NaN."""
    import json

    return json.dumps(one) == json.dumps(other)


def _plain(where: str, value: Any, depth: int) -> Any:
    """Return *value* as JSON can keep it: plain data as it is, the rest by its own text."""
    if type(value) in _PLAIN:
        return _printable(where, value)
    if depth > 50:
        raise ConfigurationError(where, value, "nesting of at most 50 levels")
    if _is_numpy(value, "generic"):
        return _plain(where, value.item(), depth + 1)
    if _is_numpy(value, "ndarray"):
        raise ConfigurationError(where, value, "a value; log an array as an artifact")
    if isinstance(value, (set, frozenset)):  # its own order differs from run to run
        return sorted((_plain(where, item, depth + 1) for item in value), key=repr)
    if isinstance(value, (list, tuple)):
        return [_plain(where, item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return {
            check_key(where, key): _plain(where, item, depth + 1) for key, item in value.items()
        }
    return _own_text(where, value)


def _printable(where: str, value: Any) -> Any:
    """Return *value*, which is no integer that has no text."""
    if isinstance(value, int) and value.bit_length() > _MAX_INT_BITS:
        raise ConfigurationError(
            where,
            f"{value.bit_length()} bits",
            f"an integer of at most {_MAX_INT_BITS} bits",
            hint="log its hex()",
        )
    return value


def _own_text(where: str, value: object) -> str:
    expected = "plain data, or an object with a text of its own"
    try:
        text = str(value)
    except Exception as error:
        raise ConfigurationError(where, value, expected) from error
    if " at 0x" in text:
        raise ConfigurationError(
            where, value, expected, hint="an address is another one in every run; log a name"
        )
    return text


def _is_numpy(value: object, kind: str) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy, kind))


def as_tags(where: str, tags: object) -> dict[str, str]:
    """Return *tags* with their values as text; a value may be text, a number or a bool."""
    if not isinstance(tags, Mapping):
        raise ConfigurationError(where, tags, "a mapping of names to text")
    checked = {}
    for key, value in tags.items():
        number = value.item() if _is_numpy(value, "generic") else value
        if not isinstance(number, (str, int, float)):
            raise ConfigurationError(f"{where[:-1]}[{key!r}])", value, "text, a number or a bool")
        if isinstance(key, str) and key.startswith("mlkit."):
            raise ConfigurationError(where, key, "a name that does not begin with 'mlkit.'")
        checked[check_key(where, key)] = str(_printable(f"{where[:-1]}[{key!r}])", number))
    return checked


def artifact_name(where: str, name: object) -> str:
    """Return *name* if it is a relative path with `/` that stays where it is put."""
    good = isinstance(name, str) and 1 <= len(name) <= _MAX_KEY
    if good and isinstance(name, str):
        parts = name.split("/")
        good = not any(part in {"", ".", ".."} for part in parts) and not set(name) & {"\\", "\0"}
        try:
            name.encode()
        except UnicodeEncodeError:
            good = False
    if not good:
        raise ConfigurationError(where, name, "a relative path like 'plots/loss.png'")
    return str(name)
