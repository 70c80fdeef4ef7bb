"""A checked spec: what to call with which arguments, and how that is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.registry._built import written_of
from mlkit.registry._plain import NotPlainError, as_plain, normal
from mlkit.registry._plan import ABSENT, Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.registry._entry import Entry
    from mlkit.registry._plain import Path

__all__ = ["Many", "Planned", "write"]

_ATOMS = frozenset({type(None), bool, int, float, str})


class Planned:
    """One checked node: what to call with which arguments.

    Attributes:
        written: The resolved data of the node, or why it cannot be written as data.
    """

    __slots__ = ("arguments", "entry", "nested", "path", "plan", "ready", "registry", "written")

    def __init__(
        self, registry: str, entry: Entry, ready: Callable[..., Any], plan: Plan, path: Path
    ) -> None:
        self.registry, self.entry, self.path = registry, entry, path
        self.ready, self.plan = ready, plan
        self.arguments: dict[str, Any] = {}
        self.nested: list[str] = []
        self.written: dict[str, Any] | str = ""


class Many:
    """A container of nested specs and live objects."""

    __slots__ = ("items", "make")

    def __init__(self, make: Callable[[Any], Any], items: list[Any]) -> None:
        self.make, self.items = make, items


def write(planned: Planned, data: dict[str, Any], made: dict[str, Any]) -> dict[str, Any] | str:
    """Return the resolved data of a node, or why it has none."""
    written: dict[str, Any] = {"type": planned.entry.ref}
    for name, parameter in planned.plan.parameters.items():
        if name not in data:
            default = parameter.written
            if default is not ABSENT:
                written[name] = default if type(default) in _ATOMS else as_plain(default)
            continue
        value = data[name]
        try:
            if name not in made:
                written[name] = _write_value(planned.arguments[name])
            elif type(value) in _ATOMS and type(value) is not int:
                written[name] = value
            else:
                written[name] = as_plain(normal(value, made[name]))
        except NotPlainError as error:
            return f"its argument {name!r} was passed alive: {error}"
    if planned.plan.open:
        for name, value in data.items():
            if name != "type":
                try:
                    written[name] = as_plain(value)
                except NotPlainError as error:
                    return f"its argument {name!r} was passed alive: {error}"
    return written


def _write_value(value: Any) -> Any:
    if isinstance(value, Planned):
        if isinstance(value.written, str):
            raise NotPlainError(value.written)
        return value.written
    if isinstance(value, Many):
        items = [_write_value(item) for item in value.items]
        made = value.make(items)
        return made if isinstance(made, dict) else items
    if type(value) in _ATOMS:
        return value
    known = written_of(value)  # a live object that was itself built from a spec
    if isinstance(known, dict):
        return known
    if isinstance(value, list | tuple):
        return [_write_value(item) for item in value]
    if type(value) is dict:
        return {key: _write_value(item) for key, item in value.items()}
    return as_plain(value)
