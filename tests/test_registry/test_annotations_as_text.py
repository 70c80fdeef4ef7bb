"""Annotations written as text (`from __future__ import annotations`), and names that do not exist at run time."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import pytest

from mlkit.errors import SpecError
from mlkit.registry import Registry

if TYPE_CHECKING:
    from decimal import Decimal

parts: Registry[Any] = Registry("parts")


@parts.register("leaf")
@dataclasses.dataclass
class Leaf:
    n: int = 0


@parts.register("branch")
@dataclasses.dataclass
class Branch:
    left: Annotated[Any, parts]
    right: Annotated[Any, parts] | None = None


@parts.register("hidden")
class Hidden:
    def __init__(self, price: Decimal | None = None, n: int = 1) -> None:
        self.n = n


def test_text_is_evaluated_where_it_was_written():
    built = parts.build(
        {
            "type": "branch",
            "left": {"type": "branch", "left": "leaf"},
            "right": {"type": "leaf", "n": 2},
        }
    )
    assert (type(built.left.left), built.right.n) == (Leaf, 2)
    with pytest.raises(SpecError, match="expected int"):
        parts.build({"type": "branch", "left": {"type": "leaf", "n": "two"}})


def test_a_name_for_type_checkers_only_matters_where_it_is_used():
    assert parts.build({"type": "hidden", "n": 3}).n == 3
    with pytest.raises(SpecError, match="TYPE_CHECKING"):
        parts.build({"type": "hidden", "price": 3})


def test_parts_of_an_annotation_that_are_text():
    def net(nodes, n, gone=None) -> object:
        return (nodes, n)

    net.__annotations__ = {
        "nodes": list[Annotated["Leaf", parts]],
        "n": list["int"],
        "gone": list["Gone"],  # noqa: F821 - as above
    }
    registry: Registry[Any] = Registry("partly")
    registry.register("net")(net)
    nodes, n = registry.build({"type": "net", "nodes": ["leaf"], "n": [1]})
    assert type(nodes[0]) is Leaf
    assert n == [1]
    with pytest.raises(SpecError) as caught:
        registry.build({"type": "net", "nodes": ["leaf"], "n": ["x"], "gone": []})
    assert [problem.path for problem in caught.value.problems] == ["n[0]", "gone"]


class Pair(NamedTuple):
    left: int
    right: Annotated[Any, parts]


def test_a_named_tuple_keeps_text_as_forward_references():
    parts.register("pair")(Pair)
    assert type(parts.build({"type": "pair", "left": 1, "right": "leaf"}).right) is Leaf
    with pytest.raises(SpecError, match="expected int"):
        parts.build({"type": "pair", "left": "x", "right": "leaf"})
