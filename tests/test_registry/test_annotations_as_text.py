"""Annotations written as text (`from __future__ import annotations`), and names that do not exist at run time."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

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
