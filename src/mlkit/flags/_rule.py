"""The parts of a rule as it is written: nodes, arguments, and where it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Scope", "arguments", "literal"]


class Scope(NamedTuple):
    """What a rule means depends on.

    Attributes:
        flag_key: The flag it belongs to.
        generation: Bucketing generation, `"v2"` or `"v3"`.
        evaluators: Shared rules by name, for `$ref`.
        inner: Whether the data is one element of a list (`map`, `filter`, ...) and not the context.
    """

    flag_key: str
    generation: str
    evaluators: Mapping[str, Any]
    inner: bool = False


def literal(node: Any) -> bool:
    """Return whether *node* means itself: no operator in it."""
    return type(node) is not dict and (type(node) is not list or all(map(literal, node)))


def arguments(node: dict[str, Any]) -> tuple[str, list[Any]]:
    """Return the operator of a node and its arguments; one argument need not be in a list."""
    ((name, given),) = node.items()
    return name, given if type(given) is list else [given]
