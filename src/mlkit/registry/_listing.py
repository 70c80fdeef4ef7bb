"""Which names a listing shows, and in which order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mlkit.errors import ConfigurationError
from mlkit.registry._entry import texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.registry._entry import Entry, Record

__all__ = ["listed", "natural"]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts `net2` before `net10`."""
    return [
        (0, int(part), "") if part.isdecimal() and len(part) < 1000 else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def listed(
    call: str,
    names: Iterable[tuple[str, tuple[Record, ...]]],
    pattern: str | Iterable[str],
    *,
    exclude: str | Iterable[str] = (),
    tag: str | None = None,
    where: Callable[[Entry], bool] | None = None,
    versions: bool = False,
    deprecated: bool = False,
) -> list[str]:
    """Return the names, or the references of the versions, that `Registry.list` is asked for.

    *call* is what the user wrote, for messages: `"models.list"`.
    """
    from fnmatch import fnmatchcase

    wanted = _patterns(f"{call}(pattern)", pattern)
    unwanted = _patterns(f"{call}(exclude=...)", exclude)
    if tag is not None and not isinstance(tag, str):
        raise ConfigurationError(f"{call}(tag=...)", tag, "one tag, as text")
    if where is not None and not callable(where):
        raise ConfigurationError(f"{call}(where=...)", where, "a callable of the entry")
    found = []
    for name, records in names:
        if not any(fnmatchcase(name, one) for one in wanted):
            continue
        if any(fnmatchcase(name, one) for one in unwanted):
            continue
        fitting = [
            record.entry
            for record in records
            if (deprecated or record.entry.deprecated is None)
            and (tag is None or tag in record.entry.tags)
            and (where is None or where(record.entry))
        ]
        found += [entry.ref for entry in fitting] if versions else [name] * bool(fitting)
    return sorted(found, key=natural)


def _patterns(where: str, patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else texts(where, patterns)
