"""What the names of one registry mean: looked up, loaded, and remembered for the next call."""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING, Any, final

from mlkit.errors import ConfigurationError, DuplicateNameError, EntryError, UnknownNameError
from mlkit.registry._entry import Entry, Record, parse_ref
from mlkit.registry._override import OVERRIDE, overridden
from mlkit.registry._table import Table, atomic_items, describe
from mlkit.registry._target import checked, load, owner_of
from mlkit.telemetry import Counter, emit, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.registry._target import Base

__all__ = ["Catalogue", "warn_deprecated"]

# One lock for the writers of all registries, held for a few dictionary updates and never while user code runs.
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it at the fork
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


@final
class Catalogue:
    """The records of a registry: those of code, then those of installed plugins, then the overrides in their place.

    Attributes:
        name: Of the registry.
        base: What everything made must be an instance of.
        ready: Factories as they are called, by reference as written. Good only while `overriding` is 0; every change
            puts an empty one in its place, so that who began before the change writes into one that nobody reads.
        plans: What `build` knows of a reference, under the same rule as `ready`.
        overriding: How many overrides are open, in whatever context.
    """

    __slots__ = (
        "_group",
        "_imports",
        "_plugins",
        "base",
        "name",
        "overriding",
        "plans",
        "ready",
        "table",
    )

    def __init__(self, name: str, base: Base, group: str | None) -> None:
        self.name, self.base, self._group = name, base, group
        self.table = Table()
        self._plugins: Table | None = None
        self.ready: dict[Any, Callable[..., Any]] = {}
        self.plans: dict[str, Any] = {}
        self.overriding = 0
        self._imports = Counter("registry_imports_total", registry=name)
        register(self._imports)

    def put(self, record: Record, *, replace: bool) -> None:
        """Add *record*.

        Raises:
            DuplicateNameError: If another owner has its name and version, or an alias means something else.
        """
        entry = record.entry
        with _lock:
            # An installed plugin that registers itself on import stays a plugin: what a name means must not depend on
            # which of its versions happened to be imported first.
            table, plugins = self.table, self._plugins
            if plugins is not None:
                declared = plugins.find(entry.name, entry.version)
                if declared is not None and declared.owner == record.owner:
                    table = plugins
            table.put(self.name, record, replace=replace)
            self.ready, self.plans = {}, {}

    def names(self) -> list[tuple[str, tuple[Record, ...]]]:
        """Return every name with its versions; a plugin never adds to a name that code registered."""
        plugins = self._scan()
        found = atomic_items(self.table.names)
        if plugins is not None:
            ours = {name for name, _ in found}
            found += [item for item in atomic_items(plugins.names) if item[0] not in ours]
        return found

    def search(self, name: str, version: int | None) -> Record | None:
        """Return the record of a name or alias, or None."""
        found = self.table.find(name, version)
        if found is None and self._group is not None:
            plugins = self._scan()
            found = plugins.find(name, version) if plugins is not None else None
        return found

    def lookup(self, ref: str) -> Record:
        """Return the record that was registered as *ref*.

        Raises:
            UnknownNameError: If nothing was.
        """
        parsed = parse_ref(ref)
        record = self.search(*parsed) if parsed is not None else None
        if record is None:
            raise self._unknown(ref)
        return record

    def find(self, ref: str) -> tuple[Entry, Record]:
        """Return the entry of *ref* and the record to use for it, which an override may have put in its place."""
        record = self.lookup(ref)
        return record.entry, overridden(self, record) if self.overriding else record

    def load(self, record: Record) -> Callable[..., Any]:
        """Return the factory of *record* as it is called, importing it if need be.

        Raises:
            EntryError: If it cannot be imported, or is a class outside of the base.
            DuplicateNameError: If two installed distributions claim its name.
        """
        ready = record.ready
        if ready is not None:
            return ready
        entry = record.entry
        if record.conflict is not None:
            other = Record(record.conflict, "")
            raise DuplicateNameError(
                self.name, entry.ref, first=describe(record), second=describe(other)
            )
        try:
            factory = load(self.name, entry)
            made = checked(self.name, entry, factory, self.base)
        except EntryError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else None
            emit("registry.entry.failed", self.name, entry=entry.ref, error=cause)
            raise
        with _lock:
            if record.ready is None:  # of 32 threads that imported it at once, one decides for all
                record.factory, record.ready = factory, made
                self._imports.add()
            return record.ready

    def factory(self, ref: str) -> Callable[..., Any]:
        """Return the factory of *ref* itself; to be called by what the user calls, for the place of a warning."""
        entry, record = self.find(ref)
        self.load(record)
        if entry.deprecated is not None:
            warn_deprecated(self.name, entry, stacklevel=4)
        found: Any = record.factory
        return found  # type: ignore[no-any-return]

    def prepare(self, ref: Any) -> Callable[..., Any]:
        """Return the factory of *ref* as it is called, and remember it for the next call if nothing stands against."""
        cache = self.ready
        if isinstance(ref, str):
            entry, record = self.find(ref)
            ready = self.load(record)
            lasting = record.owner is not OVERRIDE
        else:
            known = self._registered(ref)
            entry = known.entry
            record = overridden(self, known) if self.overriding else known
            lasting = record is known and known.factory is ref
            if record is known and not lasting:
                ready = checked(self.name, entry, ref, self.base)
            else:
                ready = self.load(record)
        if entry.deprecated is not None:
            warn_deprecated(self.name, entry, stacklevel=4)
        elif lasting:
            try:
                cache[ref] = ready
            except TypeError:  # a callable object that cannot be hashed
                return ready
        return ready

    def count_override(self, change: int) -> None:
        """Note that an override was opened (1) or closed (-1)."""
        with _lock:
            self.overriding += change

    def _registered(self, handle: Any) -> Record:
        if not callable(handle):
            raise ConfigurationError(
                f"{self.name}.create(ref)", handle, "a name, or a registered class or function"
            )
        records = [record for _, versions in self.names() for record in versions]
        record = next((record for record in records if record.factory is handle), None)
        if record is not None:
            return record
        # A lazy entry that was not imported through the registry, or a definition that has since run again.
        target, _ = owner_of(handle)
        record = next((record for record in records if record.entry.target == target), None)
        if record is not None:
            return record
        raise UnknownNameError(self.name, target, (record.entry.target for record in records))

    def _unknown(self, ref: str) -> UnknownNameError:
        name, at, _ = ref.partition("@")
        versions = self.table.versions(name)
        if not versions and self._plugins is not None:
            versions = self._plugins.versions(name)
        if at and versions:
            return UnknownNameError(self.name, ref, [record.entry.ref for record in versions])
        known = [name for name, _ in self.names()] + list(self.table.aliases.copy())
        hint = "(if it is defined, was the module that registers it imported?)"
        return UnknownNameError(self.name, ref, known, hint=hint)

    def _scan(self) -> Table | None:
        plugins = self._plugins
        if plugins is None and self._group is not None:
            from mlkit.registry._plugins import scan

            found = scan(self.name, self._group)
            with _lock:
                plugins = self._plugins
                if plugins is None:
                    moved = self._adopt(found)
                    self._plugins = plugins = found
                    for record in moved:
                        self.table.remove(record)
                    self.ready, self.plans = {}, {}
        return plugins

    def _adopt(self, plugins: Table) -> list[Record]:
        """Put what plugins registered before they were scanned with what they declare, as `put` does afterwards."""
        moved = []
        for name, records in self.table.names.items():
            for record in records:
                declared = plugins.find(name, record.entry.version)
                if declared is not None and declared.owner == record.owner:
                    try:
                        plugins.put(self.name, record, replace=False)
                    except (
                        DuplicateNameError
                    ):  # an alias that another plugin has: no reason for a scan to fail
                        continue
                    moved.append(record)
        return moved


def warn_deprecated(registry: str, entry: Entry, *, stacklevel: int) -> None:
    """Warn that a deprecated entry is used; *stacklevel* counts from here: 2 is the caller."""
    warnings.warn(
        f"{entry.ref} of registry {registry!r} is deprecated: {entry.deprecated}",
        FutureWarning,
        stacklevel=stacklevel,
    )
