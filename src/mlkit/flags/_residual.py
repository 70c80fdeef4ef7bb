"""What is left of a rule when everything but the unit is known: one outcome, or one split of the unit's hash."""

from __future__ import annotations

from typing import Any, NamedTuple

from mlkit.flags._bucket import Split, parse_split, unit_prefix
from mlkit.flags._coerce import truthy
from mlkit.flags._logic import compile_rule
from mlkit.flags._operators import limited
from mlkit.flags._rule import Scope, arguments, literal

__all__ = ["Residual", "residual"]

_UNIT_VAR = ({"var": "targetingKey"}, {"var": ["targetingKey"]})


class Residual(NamedTuple):
    """What is left of a rule when only the unit is unknown: one outcome, or a split of the hashed bytes.

    The bytes are `before + head + inside + unit`; the head holds the length of the text `inside + unit` in v3.
    """

    outcome: Any
    split: Split | None = None
    before: bytes = b""
    inside: bytes = b""
    headed: bool = False


def residual(rule: Any, data: dict[str, Any], scope: Scope) -> Residual | None:
    """Return what is left of *rule* for units that share *data*, None if it takes a run per unit to tell."""
    try:
        left = _residual(rule, data, scope)
    except Exception:  # noqa: BLE001 - the scalar path says what is wrong, row by row
        return None
    if left is not None and any(
        type(item) in {list, dict}
        for item in (left.split.outcomes if left.split else [left.outcome])
    ):
        return None
    return left


def _residual(node: Any, data: dict[str, Any], scope: Scope) -> Residual | None:
    if not _reads_unit(node, scope):
        return Residual(limited(compile_rule(node, scope))(data))
    name, given = arguments(node) if type(node) is dict else ("", [])
    if name == "$ref":
        return _residual(scope.evaluators[given[0]], data, scope)
    if name in {"if", "?:"}:
        for position in range(0, len(given) - 1, 2):
            if given[position] in _UNIT_VAR:  # the members that are hashed at once have one
                return _residual(given[position + 1], data, scope)
            condition = _residual(given[position], data, scope)
            if condition is None or condition.split is not None:
                return None
            if truthy(condition.outcome):
                return _residual(given[position + 1], data, scope)
        return _residual(given[-1], data, scope) if len(given) % 2 else Residual(None)
    if name == "or":
        for position, item in enumerate(given):
            left = _residual(item, data, scope)
            if position == len(given) - 1 or left is None:
                return left
            if left.split is not None:
                return None
            if truthy(left.outcome):
                return left
    return _split_left(given, scope) if name == "fractional" else None


def _split_left(given: list[Any], scope: Scope) -> Residual | None:
    first, plain_split = given[0], type(given[0]) is list
    pairs = given if plain_split else given[1:]
    split = parse_split(pairs) if all(map(literal, pairs)) else None
    if split is None:
        return None
    v3 = scope.generation == "v3"
    if plain_split:
        return Residual(None, split, unit_prefix(scope.flag_key, scope.generation), b"", v3)
    if first in _UNIT_VAR:
        return Residual(None, split, b"", b"", v3)
    name, parts = arguments(first) if type(first) is dict and len(first) == 1 else ("", [])
    if name == "cat" and len(parts) == 2 and type(parts[0]) is str and parts[1] in _UNIT_VAR:
        return Residual(None, split, b"", parts[0].encode(), v3)
    return None


def _reads_unit(node: Any, scope: Scope) -> bool:
    """Return whether a rule may depend on the unit."""
    if type(node) is list:
        return any(_reads_unit(item, scope) for item in node)
    if type(node) is not dict or not node:
        return False
    name, given = arguments(node)
    if name == "$ref":
        return _reads_unit(scope.evaluators[given[0]], scope)
    if name == "var":
        path = given[0] if given else ""
        named = (
            type(path) is str
            and path not in {"", "targetingKey"}
            and not path.startswith("targetingKey.")
        )
        return not named or _reads_unit(given[1:], scope)
    # In v2 a key that is no text stands for the unit as well.
    return name in {"fractional", "rollout", "missing", "missing_some"} or _reads_unit(given, scope)
