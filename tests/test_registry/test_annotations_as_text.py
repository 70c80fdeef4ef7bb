"""Annotations written as text (`from __future__ import annotations`), and names that do not exist at run time."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, Self, TypeVar

import pytest
from typing_extensions import TypeAliasType

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


@parts.register("chain")
@dataclasses.dataclass
class Chain:
    n: Final[int] = 0
    before: Self | None = None
    others: Final[list[Annotated[Self, parts]]] = dataclasses.field(default_factory=list)

    @classmethod
    def after(cls, before: Self) -> Self:
        return cls(before=before)


parts.register("after")(Chain.after)


def test_self_is_the_class_and_final_says_no_more_than_its_type():
    first = parts.build({"type": "chain", "n": 1})
    assert parts.build({"type": "chain", "before": first}).before is first
    assert parts.build({"type": "after", "before": first}).before is first
    assert type(parts.build({"type": "chain", "others": ["chain"]}).others[0]) is Chain
    with pytest.raises(SpecError) as caught:
        parts.build({"type": "chain", "n": "x", "before": Leaf(), "others": ["leaf"]})
    assert [problem.path for problem in caught.value.problems] == ["n", "before", "others[0]"]
    with pytest.raises(SpecError, match="Chain"):
        parts.build({"type": "after", "before": Leaf()})


T = TypeVar("T")
Several = TypeAliasType("Several", list[T] | None, type_params=(T,))


def test_an_alias_nests_what_it_is_given():
    def net(parts: Any, sizes: Any = None) -> object:
        return (parts, sizes)

    net.__annotations__ = {"parts": Several[Annotated[Any, parts]], "sizes": Several[int]}
    registry: Registry[Any] = Registry("aliased")
    registry.register("net")(net)
    inner, sizes = registry.build({"type": "net", "parts": ["leaf"], "sizes": [1]})
    assert (type(inner[0]), sizes) == (Leaf, [1])
    assert registry.build({"type": "net", "parts": None}) == (None, None)
    with pytest.raises(SpecError, match=r"sizes\[0\]: expected int"):
        registry.build({"type": "net", "parts": [], "sizes": ["x"]})


NEWER = """
from __future__ import annotations
from typing import Annotated, Any

type Numbers = int | list[Numbers]
type Deep = Annotated[Any, parts] | list[Deep]

@parts.register("newer")
class Newer[K: int]:
    def __init__(self, key: K, numbers: Numbers = 0, deep: Deep | None = None) -> None:
        self.key, self.numbers = key, numbers
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax of Python 3.12")
def test_aliases_that_have_themselves_in_them_and_parameters_of_a_class():
    scope = {"parts": parts, "__name__": __name__}
    exec(compile(NEWER, "newer.py", "exec", dont_inherit=True), scope)
    assert parts.build({"type": "newer", "key": 1, "numbers": [1, [2]]}).numbers == [1, [2]]
    with pytest.raises(SpecError) as caught:
        parts.build({"type": "newer", "key": "x", "numbers": [["y"]], "deep": ["leaf"]})
    assert [problem.path for problem in caught.value.problems] == ["key", "numbers", "deep"]
    assert "itself" in str(caught.value)
