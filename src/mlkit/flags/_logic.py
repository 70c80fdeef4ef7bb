"""JsonLogic compiled to closures: one call per node, data in, JSON value out.

The dialect is flagd's: classic JsonLogic (https://jsonlogic.com/operations.html) plus `fractional`, `rollout`,
`sem_ver`, `starts_with` and `ends_with`. `check_rule` looks at a rule without running it; `compile_rule` trusts what it accepted.
An operator never raises for want of a value: a number that cannot be made is NaN, as in ECMAScript.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit.flags._coerce import PLAIN, loosely_equal, number, plain, strictly_equal, truthy
from mlkit.flags._data import absent, lookup, walk
from mlkit.flags._fractional import compile_fractional, compile_rollout
from mlkit.flags._fused import fused
from mlkit.flags._operators import SPREAD, VALUE_OPERATORS, contains, spend
from mlkit.flags._rule import arguments, literal
from mlkit.flags._shortcuts import shortcut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.flags._rule import Scope

    Code = Callable[[Any], Any]

__all__ = ["ITERATORS", "OPERATORS", "compile_rule"]


def compile_rule(node: Any, scope: Scope) -> Code:
    """Return a function of the data for a rule that was checked.

    Args:
        node: The rule.
        scope: Where it stands.
    """
    if type(node) is list:
        if literal(node):
            return _constant(node)
        items = [compile_rule(item, scope) for item in node]
        return lambda data: [item(data) for item in items]
    if type(node) is not dict or not node:
        return _constant(node)
    name, given = arguments(node)
    if name == "$ref":
        return compile_rule(scope.evaluators[given[0]], scope)
    short = shortcut(name, given, scope)
    if short is not None:
        return short
    whole = fused(node, scope, compile_rule, _is_plain_truth) if name in _FUSED else None
    if whole is not None:
        return whole
    special = _SPECIAL.get(name)
    if special is not None:
        return special(given, scope)
    function = VALUE_OPERATORS[name]
    if name in SPREAD and type(node[name]) is dict and node[name]:
        return _spread(function, compile_rule(given[0], scope))
    return _eager(function, [compile_rule(item, scope) for item in given])


def _constant(value: Any) -> Code:
    return lambda _: value


def _eager(function: Callable[..., Any], codes: Sequence[Code]) -> Code:
    if len(codes) == 1:
        one = codes[0]
        return lambda data: function(one(data))
    if len(codes) == 2:
        one, two = codes
        return lambda data: function(one(data), two(data))
    return lambda data: function(*[code(data) for code in codes])


def _spread(function: Callable[..., Any], code: Code) -> Code:
    def run(data: Any) -> Any:
        value = code(data)
        return function(*value) if type(value) is list else function(value)

    return run


# --- reading the data --------------------------------------------------------------------------------------------


def _var(given: list[Any], scope: Scope) -> Code:
    path = given[0] if given else ""
    simple = type(path) is str and path and "." not in path and not scope.inner
    if simple and literal(given[1:]):
        return _attribute(path, given[1] if len(given) > 1 else None)
    name = compile_rule(path, scope)
    fallback = compile_rule(given[1], scope) if len(given) > 1 else _constant(None)
    if type(path) is str:
        steps = path.split(".")
        if path:
            return lambda data: _or(walk(data, steps), fallback, data)

    def run(data: Any) -> Any:
        return _or(lookup(data, name(data)), fallback, data)

    return run


def _attribute(name: str, default: Any) -> Code:
    """Return the common case: an attribute by its name."""

    def run(data: Any) -> Any:
        value = data.get(name)
        if value is None:
            return default
        return value if type(value) in PLAIN else plain(value)

    return run


def _or(value: Any, fallback: Code, data: Any) -> Any:
    return fallback(data) if value is None else value


def _missing(given: list[Any], scope: Scope) -> Code:
    codes = [compile_rule(item, scope) for item in given]

    def run(data: Any) -> Any:
        keys = [code(data) for code in codes]
        if keys and type(keys[0]) is list:
            keys = keys[0]
        return absent(data, keys)

    return run


def _missing_some(given: list[Any], scope: Scope) -> Code:
    codes = [compile_rule(item, scope) for item in given]

    def run(data: Any) -> Any:
        values = [code(data) for code in codes]
        if len(values) < 2 or type(values[1]) is not list:
            return []
        gone = absent(data, values[1])
        return [] if len(values[1]) - len(gone) >= number(values[0]) else gone

    return run


# --- choosing ----------------------------------------------------------------------------------------------------


# What gives true, false or null: Python takes the same of these for true as JsonLogic.
_PLAIN_TRUTH = frozenset(
    {"==", "!=", "===", "!==", "<", "<=", ">", ">=", "!", "!!", "in", "all", "some", "none",
     "starts_with", "ends_with", "sem_ver"}
)  # fmt: skip


_FUSED = frozenset({"if", "?:", "and", "or"})


def _is_plain_truth(node: Any) -> bool:
    if type(node) is not dict or len(node) != 1:
        return type(node) is bool
    name, given = arguments(node)
    return name in _PLAIN_TRUTH or (name in {"and", "or"} and all(map(_is_plain_truth, given)))


def _condition(node: Any, scope: Scope) -> Code:
    """Return a function of the data whose result Python takes for true where the condition holds."""
    code = compile_rule(node, scope)
    return code if _is_plain_truth(node) else lambda data: truthy(code(data))


def _if(given: list[Any], scope: Scope) -> Code:
    if not given:
        return _constant(None)
    tests = [_condition(item, scope) for item in given[:-1:2]]
    chosen = [compile_rule(item, scope) for item in given[1::2]]
    otherwise = compile_rule(given[-1], scope) if len(given) % 2 else _constant(None)
    if len(tests) == 1 and literal(given[1]) and (len(given) == 2 or literal(given[2])):
        (test,), yes, no = tests, given[1], given[2] if len(given) > 2 else None
        return lambda data: yes if test(data) else no
    if len(tests) == 1:
        (test,), (then,) = tests, chosen
        return lambda data: then(data) if test(data) else otherwise(data)
    pairs = list(zip(tests, chosen, strict=False))

    def run(data: Any) -> Any:
        for test, then in pairs:
            if test(data):
                return then(data)
        return otherwise(data)

    return run


def _and(given: list[Any], scope: Scope) -> Code:
    codes = [compile_rule(item, scope) for item in given]
    if all(map(_is_plain_truth, given)):
        if len(codes) == 2:
            one, two = codes
            return lambda data: one(data) and two(data)
        if len(codes) == 3:
            one, two, three = codes
            return lambda data: one(data) and two(data) and three(data)

    def run(data: Any) -> Any:
        value = None
        for code in codes:
            value = code(data)
            if not truthy(value):
                return value
        return value

    return run


def _or_rule(given: list[Any], scope: Scope) -> Code:
    codes = [compile_rule(item, scope) for item in given]

    def run(data: Any) -> Any:
        value = None
        for code in codes:
            value = code(data)
            if truthy(value):
                return value
        return value

    return run


# --- comparing ---------------------------------------------------------------------------------------------------


def _equality(
    same: Callable[[Any, Any], bool], *, expected: bool
) -> Callable[[list[Any], Scope], Code]:
    def build(given: list[Any], scope: Scope) -> Code:
        if len(given) > 2:
            return chained([compile_rule(item, scope) for item in given])
        given = [*given, None, None][:2]
        for side, other in ((given[0], given[1]), (given[1], given[0])):
            if type(side) is str:
                return against_text(side, compile_rule(other, scope))
        one, two = compile_rule(given[0], scope), compile_rule(given[1], scope)
        return lambda data: same(one(data), two(data)) is expected

    def chained(codes: list[Code]) -> Code:
        def run(data: Any) -> bool:
            left = codes[0](data)
            for code in codes[1:]:
                left, before = code(data), left
                if same(before, left) is not expected:
                    return False
            return True

        return run

    def against_text(wanted: str, code: Code) -> Code:
        def run(data: Any) -> bool:
            value = code(data)
            if type(value) is str:
                return (value == wanted) is expected
            return same(value, wanted) is expected

        return run

    return build


def _in(given: list[Any], scope: Scope) -> Code:
    given = [*given, None, None][:2]
    needle = compile_rule(given[0], scope)
    if type(given[1]) is list and all(type(item) is str for item in given[1]):
        members = frozenset(given[1])

        def run(data: Any) -> bool:
            value = needle(data)
            return type(value) is str and value in members

        return run
    return _eager(contains, [needle, compile_rule(given[1], scope)])


# --- lists -------------------------------------------------------------------------------------------------------


def _over_list(finish: Callable[[list[Any], Code], Any]) -> Callable[[list[Any], Scope], Code]:
    """Return the builder of an operator that runs its second argument on each element of its first."""

    def build(given: list[Any], scope: Scope) -> Code:
        given = [*given, None, None][:2]
        items = compile_rule(given[0], scope)
        body = compile_rule(given[1], scope._replace(inner=True))

        def run(data: Any) -> Any:
            elements = items(data)
            elements = elements if type(elements) is list else []
            spend(len(elements))
            return finish(elements, body)

        return run

    return build


def _reduce(given: list[Any], scope: Scope) -> Code:
    given = [*given, None, None, None][:3]
    items, initial = compile_rule(given[0], scope), compile_rule(given[2], scope)
    body = compile_rule(given[1], scope._replace(inner=True))

    def run(data: Any) -> Any:
        elements, value = items(data), initial(data)
        if type(elements) is list:
            spend(len(elements))
            for element in elements:
                value = body({"current": element, "accumulator": value})
        return value

    return run


_SPECIAL: dict[str, Callable[[list[Any], Scope], Code]] = {
    "var": _var,
    "missing": _missing,
    "missing_some": _missing_some,
    "if": _if,
    "?:": _if,
    "and": _and,
    "or": _or_rule,
    "==": _equality(loosely_equal, expected=True),
    "!=": _equality(loosely_equal, expected=False),
    "===": _equality(strictly_equal, expected=True),
    "!==": _equality(strictly_equal, expected=False),
    "in": _in,
    "filter": _over_list(lambda items, body: [item for item in items if truthy(body(item))]),
    "map": _over_list(lambda items, body: [body(item) for item in items]),
    "all": _over_list(
        lambda items, body: bool(items) and all(truthy(body(item)) for item in items)
    ),
    "some": _over_list(lambda items, body: any(truthy(body(item)) for item in items)),
    "none": _over_list(lambda items, body: not any(truthy(body(item)) for item in items)),
    "reduce": _reduce,
    "fractional": lambda given, scope: compile_fractional(
        given, [compile_rule(item, scope) for item in given], scope
    ),
    "rollout": lambda given, scope: compile_rollout(
        given, [compile_rule(item, scope) for item in given], scope
    ),
}
OPERATORS = frozenset({*VALUE_OPERATORS, *_SPECIAL, "$ref"})
ITERATORS = frozenset({"filter", "map", "all", "some", "none", "reduce", "merge"})
