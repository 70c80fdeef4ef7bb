"""Plain data: what JSON and YAML can both say. A spec is made of nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.errors import SpecProblem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ATOMS",
    "Found",
    "NotPlainError",
    "Path",
    "as_plain",
    "copy_plain",
    "dotted",
    "is_plain",
    "normal",
    "problem",
    "shown",
    "steps",
    "take",
]

Path = tuple[str | int, ...]
Found = tuple[Path, SpecProblem]

MAX_DEPTH = 100
MAX_VALUES = 100_000
ATOMS: frozenset[type] = frozenset({str, int, float, bool, type(None)})
_MAX_INT_BITS = 4096  # beyond about 14,000 bits Python refuses to write a number in decimal


class NotPlainError(ValueError):
    """A value has no plain form."""


def dotted(path: Path) -> str:
    """Return *path* as people write it: `"stem.layers[2].width"`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{clip(step, 60)}" if text else clip(step, 60)
    return text


def steps(text: str) -> Path:
    """Return the path that `dotted` writes as *text*; empty if it writes none so."""
    import re

    found: list[str | int] = []
    end = 0
    for step in re.finditer(r"(?:^|\.)([^.\[\]]+)|\[([0-9]{1,6})\]", text):
        if step.start() != end or text[:1] == ".":
            return ()
        found.append(step[1] if step[1] is not None else int(step[2]))
        end = step.end()
    return tuple(found) if found and end == len(text) and isinstance(found[0], str) else ()


def shown(value: object) -> str:
    """Return *value* as it is written in Python, shortened."""
    return clip(repr(value) if isinstance(value, str) else value)


def is_plain(value: object) -> bool:
    """Return whether *value* is plain data of exactly the built-in types, not too deep."""
    return _is_plain(value, MAX_DEPTH)


def _is_plain(value: object, depth: int) -> bool:
    kind = type(value)
    if kind in ATOMS:
        return True
    if depth == 0:
        return False
    if kind is list:
        return all(_is_plain(item, depth - 1) for item in value)  # type: ignore[attr-defined]
    if kind is dict:
        return all(
            type(key) is str and _is_plain(item, depth - 1)
            for key, item in value.items()  # type: ignore[attr-defined]
        )
    return False


def copy_plain(value: Any) -> Any:
    """Return a deep copy of plain data; tuples become lists, and a mapping a dict."""
    kind = type(value)
    if kind is dict:
        return {key: copy_plain(item) for key, item in value.items()}
    if kind is list:
        return [copy_plain(item) for item in value]
    return value


def as_plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return the plain form of *value*, fresh: a tuple as a list, a path as text, an enum member as its value.

    Raises:
        NotPlainError: If it has none.
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if depth == 0:
        raise NotPlainError(f"nested deeper than {MAX_DEPTH} levels")
    if kind is list or kind is tuple:
        return [as_plain(item, depth - 1) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: as_plain(item, depth - 1) for key, item in value.items()}
    return _rare(value, depth)


def normal(value: Any, made: Any) -> Any:
    """Return *value* with its integers as floats where validation made floats of them, so that one build has one spec."""
    kind = type(value)
    if kind is int:
        return made if type(made) is float else value
    if kind is list or kind is tuple:
        if type(made) in {list, tuple} and len(made) == len(value):
            return [normal(*pair) for pair in zip(value, made, strict=True)]
    elif kind is dict and type(made) is dict:
        return {key: normal(item, made.get(key)) for key, item in value.items()}
    return value


def _rare(value: Any, depth: int) -> Any:
    import sys
    from enum import Enum

    if isinstance(value, Enum):
        return as_plain(value.value, depth - 1)
    pathlib = sys.modules.get("pathlib")  # whoever holds a path has imported it
    if pathlib is not None and isinstance(value, pathlib.PurePath):
        return str(value)
    kind = type(value)
    raise NotPlainError(f"a {kind.__module__}.{kind.__qualname__} is not plain data")


def problem(
    path: Path, kind: str, message: str, suggestions: Sequence[str] = ()
) -> tuple[Path, SpecProblem]:
    """Return a problem together with the path from which its place in a file is found."""
    return path, SpecProblem(dotted(path), kind, message, suggestions=suggestions)


def take(data: Mapping[Any, Any]) -> tuple[dict[str, Any], list[Found]]:
    """Return a private copy of *data* and everything in it that is not plain."""
    problems: list[Found] = []
    budget = [MAX_VALUES]
    copy = _take(data, (), problems, budget)
    if budget[0] < 0:
        problems = [problem((), "value", f"expected a spec of at most {MAX_VALUES:,} values")]
    return (copy if isinstance(copy, dict) else {}), problems


def _take(value: Any, path: Path, problems: list[Found], budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        return None
    kind = type(value)
    if kind in ATOMS:
        if kind is int and value.bit_length() > _MAX_INT_BITS:
            problems.append(
                problem(path, "value", f"expected an integer of at most {_MAX_INT_BITS} bits")
            )
        return value
    if len(path) >= MAX_DEPTH:
        problems.append(problem(path, "value", f"expected at most {MAX_DEPTH} levels of nesting"))
        return None
    if kind is list or kind is tuple:
        return [_take(item, (*path, index), problems, budget) for index, item in enumerate(value)]
    inner = getattr(value, "_plain_data", None)  # a Spec inside a Spec
    if kind is not dict and isinstance(inner, dict):
        return _take(inner, path, problems, budget)
    if kind is dict or _is_mapping(value):
        copy = {}
        for key, item in value.items():
            if type(key) is not str:
                message = f"expected text as a key, got {shown(key)}; JSON has no other keys"
                problems.append(problem(path, "value", message))
                continue
            copy[key] = _take(item, (*path, key), problems, budget)
        return copy
    message = f"expected plain data, got {shown(value)}; pass live objects to build() in a mapping"
    problems.append(problem(path, "value", message))
    return None


def _is_mapping(value: object) -> bool:
    from collections.abc import Mapping

    return isinstance(value, Mapping)
