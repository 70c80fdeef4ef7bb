"""Conditions put together into one function: the call of a closure costs more than most comparisons.

A rule of three conditions is five closures, one inside the other. Here its common parts, comparisons of an attribute with a
constant joined by `if`, `and`, `or` and `!`, become one Python expression, and everything else a call in it. The expression
has no word of the rule in it: constants, attributes and closures are named by their number. So rules of one form share their
code, which is made once, and nothing in a file can become code.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, final

from mlkit.flags._coerce import truthy
from mlkit.flags._rule import arguments, literal
from mlkit.flags._shortcuts import comparison

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.flags._rule import Scope

    Code = Callable[[Any], Any]

__all__ = ["fused"]

_MAX_NODES = 64
_TEXT = "({v} {op} {c} if type({v} := get({a})) is str else {f}(data))"
_NUMBER = "({v} {op} {c} if type({v} := get({a})) is int or type({v}) is float else {f}(data))"
_FORMS = {
    **{name: _TEXT.replace("{op}", name[:2]) for name in ("==", "===", "!=", "!==")},
    **{name: _NUMBER.replace("{op}", name) for name in ("<", "<=", ">", ">=")},
    "in": _TEXT.replace("{op}", "in"),
}
# What is in the code that is made, besides numbered parts.
_KNOWN = {"type": type, "str": str, "int": int, "float": float}


def fused(
    node: dict[str, Any],
    scope: Scope,
    compile_rule: Callable[[Any, Scope], Code],
    is_truth: Callable[[Any], bool],
) -> Code | None:
    """Return a function of the data for a rule whose parts can be put together, None for any other.

    Args:
        node: The rule.
        scope: Where it stands.
        compile_rule: What compiles a part that stays a function of its own.
        is_truth: Whether a node gives true, false or null, which Python takes for the same as JsonLogic.
    """
    name, given = arguments(node)
    chooses = name in {"if", "?:"} and len(given) > 1
    if scope.inner or not (chooses or is_truth(node)) or _count(node, 0) > _MAX_NODES:
        return None
    writer = _Writer(scope, compile_rule, is_truth)
    text = writer.value(node)
    return _maker(text, len(writer.parts))(*writer.parts) if writer.n_comparisons else None


def _count(node: Any, n: int) -> int:
    """Return *n* and how many nodes there are, or any number above the largest that matters."""
    inside = node.values() if type(node) is dict else node if type(node) is list else ()
    for item in inside:
        if n > _MAX_NODES:
            break
        n = _count(item, n)
    return n + 1


@lru_cache(maxsize=1024)
def _maker(text: str, n: int) -> Any:
    names = ", ".join(f"p{number}" for number in range(n))
    source = (
        f"def make({names}):\n def run(data):\n  get = data.get\n  return {text}\n return run\n"
    )
    made: dict[str, Any] = {"__builtins__": _KNOWN}
    exec(source, made)  # noqa: S102 - no word of it is from outside
    return made["make"]


@final
class _Writer:
    """Writes the expression of one rule; arguments as for `fused`."""

    __slots__ = ("_compile", "_is_truth", "_scope", "n_comparisons", "parts")

    def __init__(
        self,
        scope: Scope,
        compile_rule: Callable[[Any, Scope], Code],
        is_truth: Callable[[Any], bool],
    ) -> None:
        self._scope, self._compile, self._is_truth = scope, compile_rule, is_truth
        self.parts: list[Any] = []
        self.n_comparisons = 0

    def value(self, node: Any) -> str:
        """Return an expression for the value of a node."""
        if literal(node):
            return self._part(node)
        if self._is_truth(node):
            return self._truth(node)
        name, given = arguments(node) if type(node) is dict and node else ("", [])
        return self._choice(given) if name in {"if", "?:"} and given else self._call(node)

    def _choice(self, given: list[Any]) -> str:
        if len(given) == 1:
            return self.value(given[0])
        if self._is_truth(given[0]):
            test = self._truth(given[0])
        else:
            test = f"{self._part(truthy)}({self.value(given[0])})"
        then = self.value(given[1])
        otherwise = self._choice(given[2:]) if len(given) > 2 else "None"
        return f"({then} if {test} else {otherwise})"

    def _truth(self, node: Any) -> str:
        """Return an expression for a node that gives true, false or null."""
        if type(node) is bool:
            return self._part(node)
        name, given = arguments(node)
        if name in {"and", "or"} and given:
            return f"({f' {name} '.join(map(self._truth, given))})"
        if name == "!" and len(given) == 1 and self._is_truth(given[0]):
            return f"(not {self._truth(given[0])})"
        simple = comparison(name, given, self._scope)
        if simple is None:
            return self._call(node)
        self.n_comparisons += 1
        attribute, constant, code = (
            *map(self._part, simple),
            self._part(self._compile(node, self._scope)),
        )
        return _FORMS[name].format(v=f"v{self.n_comparisons}", a=attribute, c=constant, f=code)

    def _call(self, node: Any) -> str:
        return f"{self._part(self._compile(node, self._scope))}(data)"

    def _part(self, value: Any) -> str:
        self.parts.append(value)
        return f"p{len(self.parts) - 1}"
