"""The types a handle can have. Conversions lose nothing: a bool is never a number, 10.0 is 10 and 10.5 is no int."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from mlkit._suggest import clip, listing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from enum import Enum

__all__ = ["BoolKind", "EnumKind", "JsonKind", "ModelKind", "NumberKind", "StrKind"]

E = TypeVar("E", bound="Enum")
N = TypeVar("N", int, float)


@final
class BoolKind:
    """True or false."""

    name = "bool"
    wanted = "a bool"
    names_default = False

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> bool:
        del variant, metadata
        if type(value) is not bool:
            raise TypeError(f"expected a bool, got {_shown(value)}")
        return value


@final
class StrKind:
    """Text."""

    name = "str"
    wanted = "a str"
    names_default = False

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> str:
        del variant, metadata
        if not isinstance(value, str):
            raise TypeError(f"expected a str, got {_shown(value)}")
        return value


@final
class NumberKind(Generic[N]):
    """A number within bounds.

    Args:
        kind: `int` or `float`.
        ge: Least value, None for no bound.
        le: Greatest value, None for no bound.
    """

    names_default = False

    def __init__(self, kind: type[N], ge: float | None = None, le: float | None = None) -> None:
        self.kind: type[N] = kind
        self.ge, self.le = ge, le
        self.name = kind.__name__

    @property
    def wanted(self) -> str:
        """What it accepts, for messages."""
        least = None if self.ge is None else f">= {self.ge}"
        most = None if self.le is None else f"<= {self.le}"
        bounds = " and ".join(bound for bound in (least, most) if bound)
        return f"a finite {self.name}{bounds and ' '}{bounds}"

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> N:
        del variant, metadata
        if type(value) not in {int, float} or not math.isfinite(value):
            raise TypeError(f"expected a finite {self.name}, got {_shown(value)}")
        made: N = self.kind(value)
        if made != value:
            raise TypeError(f"expected an {self.name}, got {_shown(value)}")
        if (self.ge is not None and made < self.ge) or (self.le is not None and made > self.le):
            raise ValueError(f"{made} is not within [{self.ge}, {self.le}]")
        return made


@final
class JsonKind:
    """An object or a list, read-only."""

    name = "json"
    wanted = "an object or a list"
    names_default = False

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> Any:
        del variant, metadata
        from mlkit.flags._body import freeze

        frozen = freeze(value)
        if isinstance(frozen, (str, int, float)) or frozen is None:
            raise TypeError(f"expected an object or a list, got {_shown(value)}")
        return frozen


@final
class EnumKind(Generic[E]):
    """A member of an enum, by its value.

    Args:
        members: The enum.
    """

    names_default = False

    def __init__(self, members: type[E]) -> None:
        self.members = members
        self.name = members.__name__

    @property
    def wanted(self) -> str:
        """What it accepts, for messages."""
        known = listing(str(member.value) for member in self.members)
        return f"a member of {self.name}, or the value of one: {known}"

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> E:
        del variant, metadata
        if isinstance(value, self.members):
            return value
        if type(value) is not bool:
            for member in self.members:
                if type(member.value) is type(value) and member.value == value:
                    return member
        known = listing(str(member.value) for member in self.members)
        raise TypeError(f"{_shown(value)} is no value of {self.name}; there are {known}")


@final
class ModelKind:
    """The URI of a model: the `model.<variant>` of the flag's metadata, or else the variant's value."""

    name = "model"
    wanted = "the URI of a model"
    names_default = True

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> str:
        uri = metadata.get(f"model.{variant}", value)
        if not isinstance(uri, str) or not uri:
            raise TypeError(f"expected the URI of a model, got {_shown(uri)}")
        return uri


def _shown(value: Any) -> str:
    return clip(repr(value) if isinstance(value, str) else value, 40)
