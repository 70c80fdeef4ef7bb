"""Reading the data of a rule: paths as `var` takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.flags._coerce import PLAIN, plain, text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["absent", "lookup", "walk"]


def lookup(data: Any, path: Any) -> Any:
    if path is None or path == "":
        return plain(data)
    return walk(data, text(path).split("."))


def walk(data: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        data = _step(data, step)
        if data is None:
            return None
    return data


def _step(data: Any, step: str) -> Any:
    if type(data) is dict:
        value = data.get(step)
        return value if type(value) in PLAIN else plain(value)
    if type(data) in {list, str}:
        if step == "length":
            return len(data)
        if step.isascii() and step.isdigit() and (step == "0" or step[0] != "0") and len(step) < 10:
            return data[int(step)] if int(step) < len(data) else None
    return None


def absent(data: Any, keys: list[Any]) -> list[Any]:
    return [key for key in keys if lookup(data, key) in (None, "")]
