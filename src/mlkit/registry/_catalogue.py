"""What the names of one registry mean: looked up, loaded, and remembered for the next call."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any, final

from mlkit.errors import (
    ConfigurationError,
    DuplicateNameError,
    EntryError,
    RegistryFrozenError,
    UnknownNameError,
)
from mlkit.registry._choice import ranked
from mlkit.registry._entry import PLAIN, Entry, Record, parse_ref, same_owner
from mlkit.registry._override import OVERRIDE, overridden
from mlkit.registry._owner import same_definition, target_of
from mlkit.registry._table import Clash, Table, newest
from mlkit.registry._target import checked, load
from mlkit.telemetry import Counter, emit, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.registry._plugins import Plugins
    from mlkit.registry._problem import Problem
    from mlkit.registry._registry import Registry
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
        group: The entry points that belong to it, None for none.
        table: What code registered.
        registry: The registry that it belongs to, not kept alive.
    """

    __slots__ = (
        "_candidates",
        "_frozen",
        "_imports",
        "_plugins",
        "base",
        "group",
        "name",
        "overriding",
        "plans",
        "ready",
        "registry",
        "table",
    )

    def __init__(self, registry: Registry[Any], name: str, base: Base, group: str | None) -> None:
        self.registry = weakref.ref(registry)
        self.name, self.base, self.group = name, base, group
        self.table = Table()
        self._plugins: Plugins | None = None
        self._frozen = False
        self.ready: dict[Any, Callable[..., Any]] = {}
        self.plans: dict[str, Any] = {}
        self._candidates: list[
            tuple[Record, ...]
        ] = []  # one if they are known; renewed as `ready` is
        self.overriding = 0
        self._imports = Counter("registry_imports_total", registry=name)
        register(self._imports)

    def put(self, record: Record, replace: bool) -> None:  # noqa: FBT001 - private, and called very often
        """Add *record*.

        Raises:
            DuplicateNameError: If another owner has its name and version, or an alias means something else.
            RegistryFrozenError: If the registry is frozen.
        """
        if record.said is PLAIN and self.group is None:
            names = self.table.names
            with _lock:  # the common case: a new name, which was nothing before, so that nothing remembers it
                if (
                    not (self._frozen or self.table.aliases)
                    and names.setdefault(record.name, record) is record
                ):
                    self._candidates = []
                    return
        while True:
            # Whether two definitions are the same is asked without the lock, because it looks at objects of the user.
            frozen = self._frozen
            table, old = self._place(record)
            same = old is not None and same_owner(old, record)
            if old is not None and not same and not replace and table is self.table:
                raise self._duplicate(Clash(old.entry.ref, old), record)
            if frozen and not (same and _unloaded(old)):
                raise RegistryFrozenError(self.name, record.name)
            if old is not None and (table is not self.table or (same and _unloaded(old))):
                _inherit(record, old)
            with _lock:
                if table.at(record.name, record.said.version) is not old or self._frozen != frozen:
                    continue  # another thread was faster
                clash = table.put(record, replace=replace and table is self.table)
                if clash is None:
                    self._forget()
                    return
            raise self._duplicate(clash, record)

    def _forget(self) -> None:
        self.ready, self.plans, self._candidates = {}, {}, []

    def _place(self, record: Record) -> tuple[Table, Record | None]:
        """Return the table that *record* belongs into, and what that has under its name and version.

        An installed plugin that registers itself on import stays a plugin: what a name means must not depend on which
        of its versions happened to be imported first, nor a conflict end because one of the two was imported.
        """
        plugins = self._plugins
        if plugins is not None:
            declared = plugins.table.at(record.name, record.said.version)
            if declared is not None and any(
                same_owner(claim, record) for claim in (declared, *declared.claims)
            ):
                return plugins.table, declared
        return self.table, self.table.at(record.name, record.said.version)

    def _duplicate(self, clash: Clash, record: Record) -> DuplicateNameError:
        return DuplicateNameError(
            self.name, clash.name, first=clash.other.described, second=record.described
        )

    def freeze(self) -> None:
        """Refuse what would be registered from now on."""
        self._scan()
        with _lock:
            self._frozen = True

    def names(self) -> list[tuple[str, tuple[Record, ...]]]:
        """Return every name with its versions; of a name that code and plugins have, the plugins' versions come last."""
        plugins = self._scan()
        found = self.table.pairs()
        if plugins is None:
            return found
        merged = dict(found)
        for name, declared in plugins.table.pairs():
            ours = merged.get(name, ())
            taken = {record.said.version for record in ours}
            merged[name] = (
                *ours,
                *(record for record in declared if record.said.version not in taken),
            )
        return list(merged.items())

    def plugins(self) -> list[tuple[str, tuple[Record, ...]]]:
        """Return what installed distributions declare, by name."""
        plugins = self._scan()
        return plugins.table.pairs() if plugins is not None else []

    def unusable(self) -> list[Problem]:
        """Return what installed distributions declare under a name or target that can be none."""
        plugins = self._scan()
        return plugins.problems if plugins is not None else []

    def known(self) -> int:
        """Return the number of names as far as they were read: those of plugins only if somebody asked for them."""
        plugins = self._plugins
        return len(self.table.names.keys() | (plugins.table.names.keys() if plugins else ()))

    def candidates(self) -> tuple[Record, ...]:
        """Return what each name means that is asked for without a version, best first; nothing that is deprecated."""
        plugins = self._scan()
        memory = self._candidates
        if not memory:
            found = [newest(versions) for _, versions in self.table.pairs()]
            if plugins is not None:
                ours = self.table.names
                found += [
                    newest(versions) for name, versions in plugins.table.pairs() if name not in ours
                ]
            order = ranked(record for record in found if record.said.deprecated is None)
            memory.append(tuple(order))
        return memory[0]

    def refs(self) -> list[str]:
        """Return every name and alias, alone and with each of its versions, also those that listings leave out."""
        self._scan()
        return [
            ref
            for name in self.words()
            for ref in [name, *(f"{name}@{one.entry.version}" for one in self.versions(name))]
        ]

    def words(self) -> list[str]:
        """Return every name and alias that was read, each once."""
        words = [
            word for one in self._tables() for word in [*one.names.copy(), *one.aliases.copy()]
        ]
        return list(dict.fromkeys(words))

    def versions(self, name: str) -> list[Record]:
        """Return the records of a name or alias that were read, those of code first."""
        return [record for table in self._tables() for record in table.versions(name)]

    def _tables(self) -> list[Table]:
        return [self.table] if self._plugins is None else [self.table, self._plugins.table]

    def search(self, name: str, version: int | None) -> Record | None:
        """Return the record of a name or alias, or None."""
        plugins = self._scan()  # first: what a plugin registered may be in conflict with another
        found = self.table.find(name, version)
        if found is None and plugins is not None:
            found = plugins.table.find(name, version)
        return found

    def lookup(self, ref: str) -> Record:
        """Return the record that was registered as *ref*.

        Raises:
            UnknownNameError: If nothing was.
        """
        parsed = parse_ref(ref)
        record = self.search(*parsed) if parsed is not None else None
        if record is None:
            from mlkit.registry._miss import unknown  # what only a miss needs

            raise unknown(self, ref)
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
        if record.claims:
            raise DuplicateNameError(
                self.name,
                record.entry.ref,
                first=record.described,
                second=record.claims[0].described,
                fix="uninstall one of them, or register the one you mean under the name",
            )
        ready = record.ready
        if ready is not None:
            return ready
        try:
            factory = load(self.name, record)
            made = checked(self.name, record, factory, self.base)
        except EntryError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else None
            emit("registry.entry.failed", self.name, entry=record.entry.ref, error=cause)
            raise
        with _lock:
            ready = record.ready
            if ready is None:  # of 32 threads that imported it at once, one decides for all
                record.factory, record.ready = factory, made
                ready = made
                self._imports.add()
            return ready

    def factory(self, ref: str) -> Callable[..., Any]:
        """Return the factory of *ref* itself; to be called by what the user calls, for the place of a warning."""
        entry, record = self.find(ref)
        self.load(record)
        if entry.deprecated is not None:
            warn_deprecated(self.name, entry, stacklevel=4)
        found: Any = record.factory
        return found  # type: ignore[no-any-return]

    def follow(self, record: Record, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return what to build instead of a record that has `migrate`, and with which arguments.

        Raises:
            EntryError: If a function that migrates raises, or what it leads to is not registered.
        """
        from mlkit.registry._migrate import migrated, wrong  # what only deprecated entries need

        first, seen = record, set[str]()
        ref = record.entry.ref
        while record.said.migrate is not None:
            if record.entry.ref in seen:
                raise wrong(self.name, first, "its replacements lead back to where they began")
            seen.add(record.entry.ref)
            ref, arguments = migrated(self.name, record, arguments)
            try:
                _, record = self.find(ref)
            except UnknownNameError as error:
                raise wrong(self.name, first, f"its replacement is missing: {error}") from error
        return ref, arguments

    def prepare(self, ref: Any) -> Callable[..., Any]:
        """Return the factory of *ref* as it is called, and remember it for the next call if nothing stands against."""
        cache = self.ready
        if isinstance(ref, str):
            entry, record = self.find(ref)
            ready = self._migrating(record) if record.said.migrate else self.load(record)
            lasting = record.source is not OVERRIDE
        else:
            known = self._registered(ref)
            entry = known.entry
            record = overridden(self, known) if self.overriding else known
            lasting = record is known and known.factory is ref
            if record is not known:
                ready = self.load(record)
            else:
                kept = known.ready if lasting else None
                ready = kept or checked(self.name, record, ref, self.base)
        if entry.deprecated is not None:
            warn_deprecated(self.name, entry, stacklevel=4)
        elif lasting:
            try:
                cache[ref] = ready
            except TypeError:  # a callable object that cannot be hashed
                return ready
        return ready

    def _migrating(self, record: Record) -> Callable[..., Any]:
        from mlkit.registry._migrate import named

        def call(*args: Any, **kwargs: Any) -> Any:
            ref, arguments = self.follow(record, named(self.name, record, args, kwargs))
            return self.load(self.find(ref)[1])(**arguments)

        return call

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
        for record in records:
            if record.factory is handle:
                return record
        # A lazy entry that was not imported through the registry, or a definition that has since run again.
        target = target_of(handle)
        for record in records:
            if record.target == target or same_definition(record.factory, handle):
                return record
        targets = dict.fromkeys(record.entry.target for record in records)
        raise UnknownNameError(self.name, target, targets)

    def _scan(self) -> Plugins | None:
        plugins = self._plugins
        if plugins is None and self.group is not None:
            from mlkit.registry._plugins import scan

            found = scan(self.name, self.group)
            mine = self._declared(found.table)
            with _lock:
                plugins = self._plugins
                if plugins is None:
                    for record in mine:
                        if found.table.put(record, replace=False) is None:
                            self.table.remove(record)
                    self._plugins = plugins = found
                    self._forget()
        return plugins

    def _declared(self, plugins: Table) -> list[Record]:
        """Return what plugins registered before they were read, to be put with what they declare."""
        found = []
        for _, records in self.table.pairs():
            for record in records:
                declared = plugins.at(record.name, record.said.version)
                if declared is not None and any(
                    same_owner(claim, record) for claim in (declared, *declared.claims)
                ):
                    _inherit(record, declared)
                    found.append(record)
        return found


def _unloaded(record: Record | None) -> bool:
    return record is not None and record.factory is None


def _inherit(record: Record, declared: Record) -> None:
    """Let the definition of a lazy entry or a plugin keep what was said where it was declared."""
    claimed = (declared, *declared.claims)
    mine = next((claim for claim in claimed if same_owner(claim, record)), declared)
    source = mine.source if mine.distribution else record.source
    record.inherit(record.said.over(mine.said), source, mine.distribution)
    record.claims = tuple(claim for claim in claimed if claim is not mine)


def warn_deprecated(registry: str, entry: Entry, *, stacklevel: int) -> None:
    """Warn that a deprecated entry is used; *stacklevel* counts from here: 2 is the caller."""
    warnings.warn(
        f"{entry.ref} of registry {registry!r} is deprecated: {entry.deprecated}",
        FutureWarning,
        stacklevel=stacklevel,
    )
