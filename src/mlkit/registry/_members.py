"""What a value is meant as where a spec may stand: a spec, a live object, or plain data."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.registry._shape import IT, Choose, Fixed, Items, Node, Plain, Shape, Values
from mlkit.registry._spec import Spec
from mlkit.registry._target import base_name, qualified

if TYPE_CHECKING:
    from mlkit.registry._origin import Origins
    from mlkit.registry._planned import Known

__all__ = ["Verdict", "choose", "is_for", "is_live", "may_make", "wanted"]

_PLAIN_KINDS = (type(None), bool, int, float, str, list, dict)


class Verdict(Enum):
    """What a member of a union a value is."""

    MEMBER = 1
    LIVE = 2
    REST = 3
    PROBLEM = 4
    AMBIGUOUS = 5


def is_for(shape: Shape, value: Any) -> bool:
    """Return whether *value* is meant as a spec, or as a container of specs, for *shape*."""
    if isinstance(shape, Node):
        if isinstance(value, Spec):
            return True
        if isinstance(value, str):
            base = shape.registry.base
            return base is object or not isinstance(value, base)
        return _has_type(value)
    if isinstance(shape, Items):
        return isinstance(value, list | tuple) or (
            isinstance(value, set | frozenset) and shape.make in {set, frozenset}
        )
    if isinstance(shape, Fixed):
        return isinstance(value, list | tuple)
    return isinstance(shape, Values) and type(value) is dict


def is_live(shape: Shape, value: Any) -> bool:
    """Return whether *value* is an object that may stand in place of the spec of one."""
    if not isinstance(shape, Node):
        return False
    kind: Any = shape.kind or shape.registry.base
    if kind is object:
        return type(value) not in _PLAIN_KINDS
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be checked at run time
        return isinstance(value, shape.registry.base)


def choose(shape: Choose, value: Any, origins: Origins | None) -> tuple[Verdict, Any]:
    """Decide which member of a union *value* is meant as.

    A name that a registry has, or a mapping with a `type`, is a spec; of two registries, of the one that has the name.

    Returns:
        The verdict, and the member, or what to say.
    """
    members = [member for member in shape.members if is_for(member, value)]
    specs = [member for member in members if isinstance(member, Node)]
    if members and not specs:
        return Verdict.MEMBER, members[0]
    if specs:
        name = value.type if isinstance(value, Spec) else value
        name = name if isinstance(name, str) else name["type"]
        having = [node for node in specs if _has(node, name, origins)]
        if len(having) == 1:
            return Verdict.MEMBER, having[0]
        if having:
            which = " and ".join(repr(node.registry.name) for node in having)
            return Verdict.AMBIGUOUS, f"{clip(name, 60)!r} is in registries {which}; rename one"
        rest = shape.rest if isinstance(value, str) else None
        if rest is not None and not rest.validator.check({IT: value}).mismatches:
            return Verdict.REST, rest
        if len(specs) == 1 or not isinstance(name, str):
            return Verdict.MEMBER, specs[0]
        return _in_none(specs, name)
    if any(is_live(member, value) for member in shape.members):
        return Verdict.LIVE, value
    if shape.rest is not None:
        return Verdict.REST, shape.rest
    if len(shape.members) == 1:
        return Verdict.MEMBER, shape.members[0]  # which says what is wrong
    return Verdict.PROBLEM, " or ".join(map(wanted, shape.members))


def _in_none(specs: list[Node], name: str) -> tuple[Verdict, Any]:
    """Let the registry with the nearest name say that it does not have *name*."""
    from mlkit._suggest import closest

    known = {node_name: node for node in reversed(specs) for node_name in node.registry}
    near = closest(name.partition("@")[0], list(known))
    return Verdict.MEMBER, known[near[0]] if near else specs[0]


def _has(node: Node, name: Any, origins: Origins | None) -> bool:
    if not isinstance(name, str):
        return False
    if origins is not None:
        origins.fetch(node.registry.name, name)
    return name in node.registry


def wanted(shape: Shape) -> str:
    """Say what *shape* takes."""
    if isinstance(shape, Node):
        kind = qualified(shape.kind) if shape.kind else base_name(shape.registry.base)
        live = "a live object" if kind == "object" else f"a {kind}"
        return f"a mapping with a 'type' from registry {shape.registry.name!r}, or {live}"
    if isinstance(shape, Values):
        return "a mapping of specs"
    return "plain data" if isinstance(shape, Plain | Choose) else "a list of specs"


def may_make(known: Known, kind: type) -> bool:
    """Return whether what *known* makes can be a *kind*; of a function that does not say, it is not known."""
    ready = known.ready
    returns = known.plan.returns
    try:
        if isinstance(ready, type):
            return issubclass(ready, kind)
        return returns is None or issubclass(returns, kind) or issubclass(kind, returns)
    except TypeError:  # a protocol that cannot be checked at run time
        return True


def _has_type(value: Any) -> bool:
    if type(value) is dict:
        return "type" in value
    from collections.abc import Mapping

    return isinstance(value, Mapping) and "type" in value
