"""Factories put in place of registered ones for as long as a `with` block runs, in its context only."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from mlkit.registry._entry import Record
    from mlkit.registry._registry import Registry

__all__ = ["Override", "overridden"]

# One variable for all registries: a context keeps every variable it ever saw alive.
_layers: ContextVar[tuple[Override, ...]] = ContextVar("mlkit.registry.overrides", default=())


@final
class Override:
    """The `with` block of `Registry.override`. Not thread-safe itself; each block is entered once."""

    __slots__ = ("_open", "_token", "records", "registry")

    def __init__(
        self, registry: Registry[Any], records: dict[tuple[str, int | None], Record]
    ) -> None:
        self.registry, self.records = registry, records
        self._open = False
        self._token: Token[tuple[Override, ...]] | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            raise RuntimeError("an override is used once; call override(...) again")
        self._token = _layers.set((*_layers.get(), self))
        self._open = True
        self.registry._overridden(1)  # noqa: SLF001 - the two are one mechanism

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        # Closing it ends it everywhere, also in tasks and generators that copied the context and live longer.
        self._open = False
        self.registry._overridden(-1)  # noqa: SLF001
        if self._token is not None:
            layers = _layers.get()
            if self in layers:
                _layers.set(tuple(layer for layer in layers if layer is not self))


def overridden(registry: Registry[Any], record: Record) -> Record:
    """Return what stands in for *record* in this context: the innermost open override of its version or name."""
    entry = record.entry
    for layer in reversed(_layers.get()):
        if layer.registry is registry and layer._open:  # noqa: SLF001
            found = layer.records.get((entry.name, entry.version))
            found = found or layer.records.get((entry.name, None))
            if found is not None:
                return found
    return record
