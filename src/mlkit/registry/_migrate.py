"""From the arguments of a deprecated version to those of what replaced it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.errors import EntryError

if TYPE_CHECKING:
    from mlkit.registry._entry import Record

__all__ = ["migrated", "named", "wrong"]


def migrated(
    registry: str, record: Record, arguments: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the replacement of a record that has `migrate`, and what becomes of its arguments.

    Raises:
        EntryError: If the function raises, or returns no mapping with names of arguments as keys.
    """
    said = record.said
    if said.migrate is None or said.replacement is None:  # for type checkers: asked by the caller
        return record.entry.ref, arguments
    try:
        made: Any = said.migrate(dict(arguments))
    except Exception as error:
        reason = f"migrating its arguments to {said.replacement!r} failed: {type(error).__name__}: {clip(str(error), 200)}"
        raise wrong(registry, record, reason) from error
    try:
        found = dict(made)
    except (TypeError, ValueError):
        found = {"": None}
    if not all(isinstance(key, str) and key and key != "type" for key in found):
        reason = f"migrate returned {clip(made)}, expected a mapping of arguments for {said.replacement!r}"
        raise wrong(registry, record, reason)
    return said.replacement, found


def named(
    registry: str, record: Record, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return all arguments of a call by name, as `migrate` takes them.

    Raises:
        EntryError: If some were given by position and the old signature does not say what they are called.
    """
    if not args:
        return kwargs
    from inspect import Parameter, signature

    names = []
    if record.factory is not None:
        kinds = {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}
        parameters = signature(record.factory).parameters.values()
        names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    if len(args) > len(names) or kwargs.keys() & set(names[: len(args)]):
        reason = "pass its arguments by name: they are migrated to those of its replacement"
        raise wrong(registry, record, reason)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def wrong(registry: str, record: Record, reason: str) -> EntryError:
    """Return the error of a deprecated entry that cannot become what replaced it."""
    return EntryError(registry, record.entry.ref, target=record.entry.target, reason=reason)
