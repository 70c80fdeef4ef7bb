"""Flags that have had their day: the file, its metadata and the code that asks, put together."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._clock import current
from mlkit._suggest import clip, did_you_mean
from mlkit.errors import ConfigurationError
from mlkit.flags._locate import MAX_SCANNED, scan
from mlkit.flags._references import References
from mlkit.flags._text import outcomes_of, variant_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from mlkit.flags._definition import Definition
    from mlkit.flags._flags import Flags

__all__ = ["StaleFlag", "find_stale"]


class StaleFlag(NamedTuple):
    """One reason to look at a flag.

    Attributes:
        key: The flag.
        kind: `"expired"` (the day of its metadata `expires` is over), `"constant"` (every unit gets the same variant),
            `"disabled"`, `"unreferenced"` (no code names it), `"missing"` (code asks for it and it is not in the file), or
            `"invalid"` (its `expires` is no date, or code could not be read; then the key is empty).
        message: What is there.
        owner: Whom to ask, the `owner` of the flag's metadata; empty if it has none.
        place: The pointer in the file; for `"missing"`, and for code that could not be read, the path of the code.
        line: The line there, from 1; 0 where there is none.
    """

    key: str
    kind: str
    message: str
    owner: str
    place: str
    line: int = 0


def find_stale(
    flags: Flags,
    *,
    code: Iterable[str | os.PathLike[str]] = (),
    today: date | None = None,
) -> tuple[StaleFlag, ...]:
    """Return the flags that may be taken out of the file or the code, sorted by key.

    A flag with the metadata `permanent: true` is meant to stay: that it is constant or disabled is not told.

    Args:
        flags: The flags.
        code: Python files and folders that ask for them. Without any, nothing is said of references. A flag counts as
            referenced if its key is a text there, or may be one that an f-string gives for a handle's key. Missing is what
            `flags.bool("key", default=...)` and its like, or OpenFeature's `get_boolean_value("key", ...)`, asks for.
        today: The day to count from; by default the clock's, in UTC.

    Raises:
        ConfigurationError: If an argument is wrong.

    Examples:
        >>> from mlkit.flags import Flags
        >>> flags = Flags.from_dict({"flags": {"old-ranker": {
        ...     "state": "ENABLED", "variants": {"on": True, "off": False}, "defaultVariant": "off",
        ...     "targeting": {"if": [{"==": [{"var": "plan"}, "pro"]}, "on"]},
        ...     "metadata": {"owner": "ann", "expires": "2026-03-01"}}}})
        >>> from datetime import date
        >>> [(found.key, found.kind, found.owner) for found in find_stale(flags, today=date(2026, 3, 2))]
        [('old-ranker', 'expired', 'ann')]
    """
    from mlkit.flags._flags import Flags

    if not isinstance(flags, Flags):
        raise ConfigurationError("find_stale(flags)", flags, "flags")
    if today is not None and not isinstance(today, date):
        raise ConfigurationError("find_stale(today=...)", today, "a date or None")
    if today is None:
        today = datetime.fromtimestamp(current().time(), UTC).date()
    day = date(today.year, today.month, today.day)  # a `datetime` is a `date`, too
    store = flags._store  # noqa: SLF001 - of this block
    definitions = store.current.definitions
    made: list[StaleFlag] = []
    for key in sorted(definitions):
        definition = definitions[key]
        owner = _owner(definition.metadata)
        for kind, message, below in _of_file(definition, day):
            made.append(StaleFlag(key, kind, message, owner, f"/flags/{_step(key)}{below}"))
    places = list(code)
    if places:
        made += _of_code(References(places), definitions, store.current.broken)
    if len(store.data) <= MAX_SCANNED:
        rows = scan(store.data, {one.place for one in made if one.key and not one.line}).places
        made = [one._replace(line=rows[one.place][0]) if one.place in rows else one for one in made]
    return tuple(sorted(made, key=lambda one: (one.key, one.kind, one.place, one.line)))


def _of_file(definition: Definition, today: date) -> Iterator[tuple[str, str, str]]:
    metadata = definition.metadata
    given = metadata.get("expires")
    if given is not None:
        last = _day(given)
        if last is None:
            message = f"`expires` is no ISO date such as 2026-03-01, but {clip(repr(given), 40)}"
            yield "invalid", message, "/metadata/expires"
        elif last < today:
            days = (today - last).days
            yield (
                "expired",
                f"expired {last}, {days} day{'s' * (days != 1)} ago",
                "/metadata/expires",
            )
    if metadata.get("permanent") is True:
        return
    if not definition.enabled:
        yield "disabled", "callers get the default in their code", "/state"
        return
    only = _only(definition, datetime(today.year, today.month, today.day, tzinfo=UTC))
    if only is not None:
        below = "/defaultVariant" if definition.rule is None else "/targeting"
        yield "constant", f"every unit has {only}", below


def _only(definition: Definition, day: datetime) -> str | None:
    """Return the variant that every unit has, in words; None if there may be several."""
    outcomes: frozenset[Any] | None = frozenset({None})
    if definition.rule is not None:
        outcomes = outcomes_of(definition.rule, definition.shared.evaluators, day.timestamp())
    if outcomes is None:
        return None
    names = {variant_of(definition, outcome) for outcome in outcomes}
    if len(names) != 1:
        return None
    (name,) = names
    return "the default in its code" if name is None else f"variant {clip(repr(name), 60)}"


def _of_code(
    references: References, definitions: Mapping[str, Definition], broken: Mapping[str, str]
) -> Iterator[StaleFlag]:
    for key in definitions:
        if not references.mention(key):
            owner = _owner(definitions[key].metadata)
            message = "no code that was looked at names it"
            yield StaleFlag(key, "unreferenced", message, owner, f"/flags/{_step(key)}")
    for call in references.calls:
        if call.key not in definitions and call.key not in broken:
            near = did_you_mean(call.key, definitions)
            message = f"code asks for it, and it is not in the file{near}"
            yield StaleFlag(call.key, "missing", message, "", call.path, call.line)
    for path in references.unread:
        yield StaleFlag("", "invalid", "cannot be read as Python", "", path)


def _day(given: object) -> date | None:
    if not isinstance(given, str):
        return None
    for read in (date.fromisoformat, _day_of_moment):
        try:
            return read(given)
        except ValueError:
            continue
    return None


def _day_of_moment(given: str) -> date:
    moment = datetime.fromisoformat(given)
    return (moment if moment.tzinfo is None else moment.astimezone(UTC)).date()


def _owner(metadata: Mapping[str, Any]) -> str:
    owner = metadata.get("owner", "")
    return owner if isinstance(owner, str) else str(owner)


def _step(key: str) -> str:
    return clip(key, 60).replace("~", "~0").replace("/", "~1")
