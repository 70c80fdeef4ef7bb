"""Factories put in place of registered ones for as long as a `with` block runs, in its context only."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, final

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError
from mlkit.registry._entry import Record, parse_ref
from mlkit.registry._target import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token
    from types import TracebackType

    from mlkit.registry._catalogue import Catalogue

__all__ = ["OVERRIDE", "Override", "overridden"]

OVERRIDE = "override"  # the source of a record that stands in for another

# One variable for all registries: a context keeps every variable it ever saw alive.
_layers: ContextVar[tuple[Override, ...]] = ContextVar("mlkit.registry.overrides", default=())


@final
class Override:
    """The `with` block of `Registry.override`. Not thread-safe itself; each block is entered once."""

    __slots__ = ("_open", "_token", "catalogue", "records")

    def __init__(self, catalogue: Catalogue, factories: Mapping[str, Callable[..., Any]]) -> None:
        self.catalogue = catalogue
        self.records: dict[tuple[str, int | None], Record] = {}
        for ref, factory in factories.items():
            where = f"{catalogue.name}.override({clip(ref, 60)})"
            if not isinstance(ref, str):
                raise ConfigurationError(where, ref, "a name")
            if not callable(factory):
                raise ConfigurationError(where, factory, "a class or function")
            entry = catalogue.lookup(ref).entry
            parsed = parse_ref(ref)
            stand_in = Record(entry.name, OVERRIDE, factory)
            stand_in.stands_for(entry)
            stand_in.ready = checked(catalogue.name, stand_in, factory, catalogue.base)
            self.records[entry.name, parsed[1] if parsed else None] = stand_in
        self._open = False
        self._token: Token[tuple[Override, ...]] | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            raise RuntimeError("an override is used once; call override(...) again")
        self._token = _layers.set((*_layers.get(), self))
        self._open = True
        self.catalogue.count_override(1)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if not self._open:
            return
        # Closing it ends it everywhere, also in tasks and generators that copied the context and live longer.
        self._open = False
        self.catalogue.count_override(-1)
        layers = _layers.get()
        if self in layers:
            _layers.set(tuple(layer for layer in layers if layer is not self))


def overridden(catalogue: Catalogue, record: Record) -> Record:
    """Return what stands in for *record* in this context: the innermost open override of its version or name."""
    entry = record.entry
    for layer in reversed(_layers.get()):
        if layer.catalogue is catalogue and layer._open:  # noqa: SLF001
            found = layer.records.get((entry.name, entry.version))
            found = found or layer.records.get((entry.name, None))
            if found is not None:
                return found
    return record
