"""What the text of a rule tells without any data: the attributes that it reads, and all that it can give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.flags._bucket import parse_split
from mlkit.flags._coerce import text, truthy
from mlkit.flags._rule import arguments, literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlkit.flags._definition import Definition

__all__ = ["attributes_of", "outcomes_of", "variant_of"]

_ITERATORS = frozenset({"map", "filter", "all", "some", "none", "reduce"})
_INJECTED = frozenset({"targetingKey", "$flagd"})


def attributes_of(rule: Any, evaluators: Mapping[str, Any]) -> frozenset[str] | None:
    """Return the names of the attributes that a checked rule may read; None if it may read any.

    Args:
        rule: The rule.
        evaluators: Shared rules by name.
    """
    found: set[str] = set()
    for path in _paths(rule, evaluators):
        if path is None:
            return None
        found.add(path.partition(".")[0])
    return frozenset(found - _INJECTED)


def _paths(node: Any, evaluators: Mapping[str, Any]) -> Iterator[str | None]:
    """Yield what a rule reads, None for what its text does not tell."""
    if type(node) is list:
        for item in node:
            yield from _paths(item, evaluators)
        return
    if type(node) is not dict or not node:
        return
    name, given = arguments(node)
    if name == "$ref":
        yield from _paths(evaluators[given[0]], evaluators)
        return
    read: Any = ()
    if name == "var":
        read = given[:1] or [None]
    elif name == "missing":
        read = given[0] if given and type(given[0]) is list else given
    elif name == "missing_some":
        read = given[1] if len(given) > 1 and type(given[1]) is list else [None]
    for path in read:
        yield str(path) if type(path) in {str, int} and path != "" else None
    # Inside an iterator `var` is of the element; what it iterates over is of the context.
    yield from _paths(given[:1] + given[2:] if name in _ITERATORS else given, evaluators)


def outcomes_of(rule: Any, evaluators: Mapping[str, Any], now: float) -> frozenset[Any] | None:
    """Return all that a checked rule can give from *now* on, or more; None if its text does not tell.

    Args:
        rule: The rule.
        evaluators: Shared rules by name.
        now: Unix time in seconds.
    """
    found = _outcomes(rule, evaluators, now)
    return None if found is None else frozenset(found)


def _outcomes(node: Any, evaluators: Mapping[str, Any], now: float) -> set[Any] | None:
    if type(node) in {str, bool} or node is None:
        return {node}
    if type(node) is not dict or not node:
        return None
    name, given = arguments(node)
    if name == "$ref":
        return _outcomes(evaluators[given[0]], evaluators, now)
    if name in {"if", "?:"}:
        return _joined(_branches(given), evaluators, now)
    if name == "or":
        return _joined(given, evaluators, now)
    if name == "fractional":
        return _of_split(given)
    if name == "rollout":
        return _of_rollout(given, evaluators, now)
    return None


def _joined(nodes: list[Any], evaluators: Mapping[str, Any], now: float) -> set[Any] | None:
    made: set[Any] = set()
    for node in nodes:
        found = _outcomes(node, evaluators, now)
        if found is None:
            return None
        made |= found
    return made


def _branches(given: list[Any]) -> list[Any]:
    """Return what an `if` may come to; a condition that is written out decides."""
    made = []
    for place in range(0, len(given) - 1, 2):
        condition = given[place]
        if not literal(condition):
            made.append(given[place + 1])
        elif truthy(condition):
            return [*made, given[place + 1]]
    return [*made, given[-1] if len(given) % 2 else None]


def _of_split(given: list[Any]) -> set[Any] | None:
    pairs = given if given and type(given[0]) is list else given[1:]
    if not all(map(literal, pairs)):
        return None
    split = parse_split(pairs)
    if split is None:
        return {None}
    made: set[Any] = set()
    begin = 0
    for edge, outcome in zip(split.edges, split.outcomes, strict=True):
        if type(outcome) in {list, dict}:
            return None
        if edge > begin:
            made.add(outcome)
        begin = edge
    # Who cannot be hashed, for want of a unit, gets nothing; everybody else one of these.
    return made


def _of_rollout(given: list[Any], evaluators: Mapping[str, Any], now: float) -> set[Any] | None:
    keyed = bool(given) and type(given[0]) not in {int, float}
    rest = given[1:] if keyed else given
    if not 3 <= len(rest) <= 4 or type(rest[1]) not in {int, float}:
        return None
    before = [rest[2] if len(rest) == 4 else None]
    return _joined([rest[-1], *(before if now < rest[1] else [])], evaluators, now)


def variant_of(definition: Definition, outcome: Any) -> str | None:
    """Return the variant that a rule means, None for a failure; as `Bound.resolve` does."""
    if outcome is None:
        return definition.default_variant
    if type(outcome) in {list, dict}:
        return None
    name = outcome if type(outcome) is str else text(outcome)
    return name if name in definition.variants else None
