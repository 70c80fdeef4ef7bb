"""Making a handle: the arguments are checked, and the flag too if it is already there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from mlkit.errors import ConfigurationError, FlagTypeError
from mlkit.flags._flag import Flag
from mlkit.flags._kinds import EnumKind

if TYPE_CHECKING:
    from mlkit.flags._definition import Definition
    from mlkit.flags._flag import Kind
    from mlkit.flags._store import Store

__all__ = ["check_bounds", "handle"]

F = TypeVar("F", bound=Flag[Any])


def handle(store: Store, form: type[F], key: str, default: Any, kind: Kind[Any]) -> F:
    """Return a handle of class *form* on flag *key*.

    Raises:
        FlagTypeError: If the flag exists and a variant is not of the kind.
        ConfigurationError: If *key* or *default* is wrong.
    """
    call = f"Flags.{'enum' if isinstance(kind, EnumKind) else kind.name}"
    if not isinstance(key, str) or not key:
        raise ConfigurationError(f"{call}(key)", key, "the key of a flag, a non-empty text")
    try:
        default = kind.accept(default, None, {})
    except (TypeError, ValueError):
        raise ConfigurationError(f"{call}(default=...)", default, kind.wanted) from None
    definition = store.current.definitions.get(key)
    if definition is not None:
        _check_variants(definition, kind)
    return form(store, key, default, kind)


def _check_variants(definition: Definition, kind: Kind[Any]) -> None:
    for name, value in definition.variants.items():
        try:
            kind.accept(value, name, definition.metadata)
        except (TypeError, ValueError) as error:
            got = f"{definition.kind} variants; {name!r}: {error}"
            raise FlagTypeError(definition.key, expected=kind.name, got=got) from None


def check_bounds(name: str, ge: float | None, le: float | None) -> None:
    """Raise `ConfigurationError` unless the bounds of a number are numbers in order."""
    for side, bound in (("ge", ge), ("le", le)):
        number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
        if bound is not None and (not number or math.isnan(bound)):
            raise ConfigurationError(f"Flags.{name}({side}=...)", bound, "a number")
    if ge is not None and le is not None and ge > le:
        raise ConfigurationError(f"Flags.{name}(ge=..., le=...)", (ge, le), "ge <= le")
