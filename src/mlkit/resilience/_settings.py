"""Values that hold settings: frozen, equal and hashed by their fields; and what several of them check alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MODES", "Frozen", "checked_name", "exception_types"]

MODES = ("open", "buffer")
"""When the tier of a stream, or the end of its opening, is decided: at the first item, or at the last."""


class Frozen:
    """Base of settings: the public slots are the fields, and the arguments of the constructor."""

    __slots__: ClassVar[tuple[str, ...]] = ()

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name[0] != "_"}

    def _set(self, **fields: object) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"{type(self).__name__} is frozen; make another one to change {name!r}"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), *self._fields().values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._fields())

    def __copy__(self) -> Self:
        return self

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._fields().items())
        return f"{type(self).__name__}({shown})"


def exception_types(
    where: str, value: object, *, base: type[BaseException] = Exception
) -> tuple[type[Any], ...]:
    """Return *value*, an exception type or a tuple of them, as a tuple."""
    kinds = value if isinstance(value, tuple) else (value,)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise ConfigurationError(where, kind, f"subclasses of {base.__name__}")
    return kinds


def checked_name(where: str, value: object) -> str | None:
    """Return *value* if it is a name or None."""
    if value is None or (isinstance(value, str) and value):
        return value
    raise ConfigurationError(where, value, "a name, or None")


def _rebuild(kind: type[Frozen], fields: dict[str, Any]) -> Frozen:
    return kind(**fields)
