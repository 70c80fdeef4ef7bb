"""Plain data: what JSON can say, checked and copied on the way in, so that nothing shared or live is ever stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

from mlkit.errors import ConfigurationError

__all__ = ["check_metrics", "check_tags", "dump", "plain_mapping"]

_MAX_DEPTH = 64
_MAX_INT_BITS = 4096  # Python refuses to print integers much beyond this
_KINDS = "plain data (None, bool, int, float, str, lists, mappings with str keys)"


def plain_mapping(where: str, value: object) -> dict[str, Any] | None:
    """Return a plain copy of a mapping, or None for None.

    Args:
        where: The argument, for the error.
        value: What the caller passed.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        hint = "pass its to_dict()" if callable(getattr(value, "to_dict", None)) else ""
        raise ConfigurationError(where, value, "a mapping of plain data", hint=hint)
    copy: dict[str, Any] = _plain(where, value, "$", 0)
    return copy


def check_metrics(where: str, metrics: object) -> dict[str, float]:
    """Return metrics as floats; a bool is 1 or 0, NaN and infinities are values like others.

    Args:
        where: The argument, for the error.
        metrics: What the caller passed.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise ConfigurationError(where, metrics, "a mapping of names to numbers")
    checked = {}
    for key, value in metrics.items():
        if not isinstance(key, str) or not key:
            raise ConfigurationError(where, key, "metric names that are non-empty text")
        if not isinstance(value, SupportsFloat):
            raise ConfigurationError(f"{where}[{key!r}]", value, "a number")
        try:
            checked[key] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ConfigurationError(f"{where}[{key!r}]", value, "one real number") from None
    return checked


def check_tags(where: str, tags: object) -> dict[str, str]:
    """Return a copy of tags.

    Args:
        where: The argument, for the error.
        tags: What the caller passed.
    """
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise ConfigurationError(where, tags, "a mapping of text to text")
    for key, value in tags.items():
        if not isinstance(key, str) or not key or not isinstance(value, str):
            raise ConfigurationError(where, {key: value}, "non-empty text mapped to text")
    return dict(tags)


def dump(value: object) -> bytes:
    """Return one JSON text for equal plain data: sorted keys, ASCII, no spaces.

    Args:
        value: Plain data.
    """
    import json

    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _plain(where: str, value: object, path: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ConfigurationError(
            where, value, f"data nested at most {_MAX_DEPTH} deep, without cycles"
        )
    if value is None or isinstance(value, bool):
        return value
    # Members of an int or str enumeration become the plain number or text that they are.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if value.bit_length() > _MAX_INT_BITS:
            raise ConfigurationError(f"{where} at {path}", "...", f"at most {_MAX_INT_BITS} bits")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [
            _plain(where, item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)
        ]
    if isinstance(value, Mapping):
        copy = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigurationError(f"{where} at {path}", key, "keys that are text")
            copy[str.__str__(key)] = _plain(where, item, f"{path}.{key}", depth + 1)
        return copy
    raise ConfigurationError(f"{where} at {path}", value, _KINDS)
