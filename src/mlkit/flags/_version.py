"""Semantic versions, as flagd's `sem_ver` compares them: https://semver.org, precedence of section 11."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from mlkit.flags._coerce import text

__all__ = ["OPERATORS", "compare"]

OPERATORS = ("=", "!=", "<", "<=", ">", ">=", "^", "~")
_PATTERN = (
    r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?"
)
_MAX_LENGTH = 256


class _Version(NamedTuple):
    core: tuple[int, int, int]
    release: bool  # a pre-release comes before its release
    pre: tuple[tuple[bool, int, str], ...]  # numbers before words, numbers by value


def compare(left: Any, operator: Any, right: Any) -> bool | None:
    """Return whether `left operator right` holds, None if one is no version or the operator is unknown.

    Args:
        left: A version; `"v1.2"` is read as `"1.2.0"`.
        operator: One of `OPERATORS`; `^` means the same major, `~` the same major and minor version.
        right: A version.
    """
    one, two = _parse(_written(left)), _parse(_written(right))
    if one is None or two is None or type(operator) is not str:
        return None
    if operator == "^":
        return one.core[0] == two.core[0]
    if operator == "~":
        return one.core[:2] == two.core[:2]
    return {
        "=": one == two,
        "!=": one != two,
        "<": one < two,
        "<=": one <= two,
        ">": one > two,
        ">=": one >= two,
    }.get(operator)


def _written(value: Any) -> str:
    return value if type(value) is str else text(value) if type(value) in {int, float} else ""


@lru_cache(maxsize=512)
def _parse(written: str) -> _Version | None:
    import re

    if not 0 < len(written) <= _MAX_LENGTH:
        return None
    version = written[1:] if written[0] in "vV" else written
    numeric = version.partition("-")[0].partition("+")[0]
    version = numeric + ".0" * max(0, 2 - numeric.count(".")) + version[len(numeric) :]
    match = re.fullmatch(_PATTERN, version)
    if match is None:
        return None
    major, minor, patch, pre = match.groups()
    parts = [
        (False, int(part), "") if part.isdigit() else (True, 0, part)
        for part in (pre.split(".") if pre else [])
    ]
    return _Version((int(major), int(minor), int(patch)), not pre, tuple(parts))
