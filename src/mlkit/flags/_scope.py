"""What one context (task or thread) sees instead of everybody's flags: a pinned snapshot, overridden values."""

from __future__ import annotations

from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, final

from mlkit._suggest import did_you_mean, listing
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from mlkit.flags._document import Snapshot
    from mlkit.flags._store import Store

__all__ = ["NOTHING", "SCOPES", "Scoped", "View", "overridden", "pinned", "view"]

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
        self._before: list[tuple[Mapping[object, View] | None, Mapping[object, View]]] = []

    def __enter__(self) -> T:
        before = SCOPES.get()
        after, given = self._change(view(self._flags))
        made = {**(before or {}), self._flags: after}
        SCOPES.set(made)
        self._before.append((before, made))
        return given

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        before, made = self._before.pop()
        # Left in another context than it was entered in, as generators are by whoever ends them: that one is not ours.
        if SCOPES.get() is made:
            SCOPES.set(before)


def pinned(store: Store) -> Scoped[Snapshot]:
    """Return a context manager that keeps the context at one snapshot; see `Flags.snapshot`."""

    def pin(before: View) -> tuple[View, Snapshot]:
        snapshot = before.snapshot or store.current
        return View(snapshot, before.values), snapshot

    return Scoped(store, pin)


def overridden(store: Store, values: Mapping[str, Any]) -> Scoped[None]:
    """Return a context manager that gives the context other values; see `Flags.override`."""
    known = {*store.current.definitions, *store.current.broken, *store.declared}
    for key, value in values.items():
        if key not in known:
            hint = did_you_mean(key, known).removeprefix("; ") if isinstance(key, str) else ""
            raise ConfigurationError(
                "Flags.override(values)",
                key,
                "the key of a flag, or of a handle",
                hint=hint or f"there are {listing(known)}",
            )
        _check_override(store, key, value)
    added = dict(values)

    def change(before: View) -> tuple[View, None]:
        return View(before.snapshot, {**before.values, **added}), None

    return Scoped(store, change)


def _check_override(store: Store, key: str, value: Any) -> None:
    definition, declared = store.current.definitions.get(key), store.declared.get(key)
    variants = definition.variants if definition is not None else {}
    if declared is None or (isinstance(value, str) and value in variants):
        return
    try:
        declared.kind.accept(value, None, {})
    except (TypeError, ValueError):
        raise ConfigurationError(
            f"Flags.override({{{key!r}: ...}})",
            value,
            f"a variant or {declared.kind.wanted}",
            hint=f"there are variants {listing(variants)}" if variants else "",
        ) from None
