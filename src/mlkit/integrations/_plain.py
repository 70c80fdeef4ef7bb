"""What frameworks hand to their loggers, as names and values that a run takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["flat_numbers", "hyperparameters"]

_PLAIN = (str, int, float, bool, type(None))
_MAX_DEPTH = 20
_MAX_NAME = 1000
_MAX_BITS = 4096


def hyperparameters(values: object) -> dict[str, Any]:
    """Return settings as one level of dotted names: of mappings, namespaces, dataclasses and plain objects.

    A function or class is its name, an array its shape; what has no text of its own is the name of its type. Nothing
    raises.
    """
    flat: dict[str, Any] = {}
    _flatten(values, "", flat, 0)
    return flat


def _flatten(value: object, name: str, flat: dict[str, Any], depth: int) -> None:
    inner = _parts(value) if depth < _MAX_DEPTH else None
    if inner is None or (not inner and name):
        flat[(name or "params")[:_MAX_NAME]] = {} if inner == {} else _leaf(value, depth)
        return
    for key, one in inner.items():
        own = _name(key)
        _flatten(one, f"{name}.{own}" if name else own, flat, depth + 1)


def _name(key: object) -> str:
    try:
        return str(key) or "(empty)"
    except Exception:  # noqa: BLE001 - a user's object
        return type(key).__qualname__


def _parts(value: object) -> dict[Any, Any] | None:
    """Return the named parts of *value*, or None if it is one thing."""
    from argparse import Namespace
    from dataclasses import fields, is_dataclass
    from types import SimpleNamespace

    try:
        if isinstance(value, Mapping):
            return _read(value, list(value))
        if isinstance(value, (Namespace, SimpleNamespace)):
            return dict(vars(value))
        if is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in fields(value)}
    except Exception:  # noqa: BLE001 - a user's object
        return None
    return None


def _read(value: Any, keys: Sequence[Any]) -> dict[Any, Any]:
    """Return what *value* has under *keys*; what cannot be read does not take the rest along."""
    found: dict[Any, Any] = {}
    for key in keys:
        try:
            found[key] = value[key]
        except Exception as error:  # noqa: BLE001 - an interpolation that does not resolve, say
            found[key] = _unread(value, key, error)
    return found


def _unread(value: Any, key: Any, error: Exception) -> Any:
    """Return how OmegaConf writes a value that cannot be resolved, or else the name of the error."""
    raw: Callable[..., Any] | None
    raw = getattr(getattr(sys.modules.get("omegaconf"), "OmegaConf", None), "to_container", None)
    try:
        return raw(value, resolve=False)[key] if raw is not None else f"({type(error).__name__})"
    except Exception:  # noqa: BLE001 - it is none of OmegaConf's
        return f"({type(error).__name__})"


def _items(value: Any) -> list[Any] | None:
    """Return what *value* is a list of, or None if it is one thing."""
    try:
        if isinstance(value, (set, frozenset)):
            return list(value)
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, range)):
            return list(_read(value, range(len(value))).values())
    except Exception:  # noqa: BLE001 - a user's object
        return None
    return None


def _leaf(value: Any, depth: int) -> Any:
    if type(value) in _PLAIN:
        return hex(value) if isinstance(value, int) and value.bit_length() > _MAX_BITS else value
    if depth < _MAX_DEPTH and (listed := _items(value)) is not None:
        items = [_leaf(item, depth + 1) for item in listed]
        return sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items
    if depth < _MAX_DEPTH and (inner := _parts(value)) is not None:
        return {_name(key)[:_MAX_NAME]: _leaf(one, depth + 1) for key, one in inner.items()}
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{getattr(value, '__module__', '')}.{value.__qualname__}"
    return _text(value, depth)


def _text(value: Any, depth: int) -> Any:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    try:
        shape = getattr(value, "shape", None)
        if shape is not None and hasattr(value, "dtype"):
            if not tuple(shape) and depth < _MAX_DEPTH:
                return _leaf(value.item(), depth + 1)
            return f"{kind} {tuple(shape)} {value.dtype}"
        text = str(value)
    except Exception:  # noqa: BLE001 - a user's object
        return kind
    return kind if " at 0x" in text else text  # an address is another one in every run


def flat_numbers(
    values: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, float], dict[str, str], dict[str, str]]:
    """Return what of *values*, which may be nested, is a number, what is text, and the types of the rest."""
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    others: dict[str, str] = {}
    todo: list[tuple[str, Any]] = [(prefix + _name(key), values[key]) for key in values]
    while todo:
        key, value = todo.pop(0)
        key = key[:_MAX_NAME]
        if isinstance(value, Mapping):
            todo[:0] = [(f"{key}/{_name(inner)}", one) for inner, one in value.items()]
        elif isinstance(value, str) and not key.startswith("mlkit."):
            texts[key] = value
        elif (number := _number(value)) is not None:
            numbers[key] = number
        else:
            others[key] = type(value).__qualname__
    return numbers, texts, others


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, (bytes, bytearray)) else float(value)
    except Exception:  # noqa: BLE001 - it is none, then
        return None
