"""A checked spec turned into a function that only calls the factories."""

from __future__ import annotations

from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from weakref import ref

from mlkit.registry._build import check, explain, is_a, refuse
from mlkit.registry._catalogue import warn_deprecated
from mlkit.registry._plain import ATOMS, copy_plain, is_plain
from mlkit.registry._planned import Given, Many, Planned
from mlkit.registry._provenance import records, tidy
from mlkit.registry._shape import IT

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.registry._registry import Registry
    from mlkit.registry._spec import Spec
    from mlkit.registry._validate import Validator

__all__ = ["compiled"]


def compiled(registry: Registry[Any], spec: Spec) -> Callable[[], Any]:
    """Return a function that builds *spec*, checked now and not again."""
    planned, deprecated = check(registry, spec)
    for entry, name in deprecated.items():
        warn_deprecated(name, entry, stacklevel=4)
    make, count = _node(planned), registry._builds.add  # noqa: SLF001 - it is a build like any other

    def build() -> Any:
        made = make()
        count()
        tidy()
        return made

    return build


def _node(planned: Planned) -> Callable[[], Any]:
    """Return a function that builds one node and what is inside it."""
    known, kind, order = planned.known, planned.kind, planned.order
    ready, plan, simple = known.ready, known.plan, known.plan.simple
    resolved = planned.resolved()
    fixed, parts = dict(planned.atoms), []
    for name, part in planned.parts.items():
        if _is_constant(part):
            fixed[name] = part
        else:
            parts.append((name, _part(planned, name, part)))
    written: Any = resolved if isinstance(resolved, dict) else planned
    plain = simple and kind is None and order is None

    def leaf() -> Any:
        try:
            made = ready(**fixed)
        except Exception as error:
            explain(error, planned)
            raise
        try:  # `remember`, here without the call, which would cost a fifth of the whole
            records[id(made)] = (ref(made), written)
        except TypeError:
            return made
        return made

    def make() -> Any:
        arguments = fixed.copy()
        for name, part in parts:
            arguments[name] = part()
        if order is not None:
            arguments = {name: arguments[name] for name in order}
        try:
            made = ready(**arguments) if simple else plan.call(ready, arguments)
        except Exception as error:
            explain(error, planned)
            raise
        if kind is not None and not is_a(made, kind):
            refuse(made, planned)
        try:
            records[id(made)] = (ref(made), written)
        except TypeError:
            return made
        return made

    return make if parts or not plain else leaf


def _part(planned: Planned, name: str, part: Any) -> Callable[[], Any]:
    if isinstance(part, Planned | Many | Given):
        return _item(part)
    return _again(planned.known.plan.validator, name, part, planned.written[name])


def _item(part: Any) -> Callable[[], Any]:
    if isinstance(part, Planned):
        return _node(part)
    if isinstance(part, Given):
        return _again(part.validator, IT, part.value, part.form)
    if not isinstance(part, Many):
        return lambda: part
    makers, make, keys = [_item(item) for item in part.items], part.make, part.keys
    if keys is None:
        return lambda: make([item() for item in makers])
    return lambda: dict(zip(keys, [item() for item in makers], strict=True))


def _again(validator: Validator, name: str, value: Any, form: Any) -> Callable[[], Any]:
    """Return a function that makes *value* afresh: what is built may keep and change its arguments."""
    if _is_constant(value):
        return lambda: value
    if is_plain(value):
        return lambda: copy_plain(value)
    return lambda: validator.check({name: copy_plain(form)}).arguments[name]


def _is_constant(value: Any) -> bool:
    """Return whether nobody can change *value*, so that all that is built may share it."""
    if type(value) in ATOMS or isinstance(value, Enum | PurePath | bytes | type):
        return True
    return type(value) in {tuple, frozenset} and all(map(_is_constant, value))
