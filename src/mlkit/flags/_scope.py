"""What one context (task or thread) sees instead of everybody's flags: a pinned snapshot, overridden values."""

from __future__ import annotations

from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from mlkit.flags._document import Snapshot

__all__ = ["NOTHING", "SCOPES", "Scoped", "View", "view"]

T = TypeVar("T")


class View(NamedTuple):
    """What a context sees of one `Flags`.

    Attributes:
        snapshot: The snapshot it is pinned to, None for the present one.
        values: Overridden values by key.
    """

    snapshot: Snapshot | None
    values: Mapping[str, Any]


NOTHING = View(None, MappingProxyType({}))
# One variable for all `Flags`, by their identity: a variable per object would never be collected. None costs least.
SCOPES: ContextVar[Mapping[object, View] | None] = ContextVar("mlkit.flags", default=None)


def view(flags: object) -> View:
    """Return what the present context sees of *flags*."""
    scopes = SCOPES.get()
    return NOTHING if scopes is None else scopes.get(flags, NOTHING)


@final
class Scoped(Generic[T]):
    """Context manager: change what this context sees, and put it back.

    Args:
        flags: Whose view changes.
        change: Returns the new view and what `with` shall give.
    """

    __slots__ = ("_before", "_change", "_flags")

    def __init__(self, flags: object, change: Callable[[View], tuple[View, T]]) -> None:
        self._flags, self._change = flags, change
        self._before: list[Mapping[object, View] | None] = []

    def __enter__(self) -> T:
        before = SCOPES.get()
        after, given = self._change(view(self._flags))
        SCOPES.set({**(before or {}), self._flags: after})
        self._before.append(before)
        return given

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        SCOPES.set(self._before.pop())
