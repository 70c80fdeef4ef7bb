"""The names of a registry. Readers take no lock: every step of a change is one assignment to a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mlkit.errors import DuplicateNameError

if TYPE_CHECKING:
    from mlkit.registry._entry import Record

__all__ = ["Table", "atomic_items", "describe"]

K = TypeVar("K")
V = TypeVar("V")


class Table:
    """Versions by name, and names by alias.

    Writers must hold the lock of the registries; readers need none.
    """

    __slots__ = ("aliases", "names")

    def __init__(self) -> None:
        self.names: dict[
            str, tuple[Record, ...]
        ] = {}  # versions ascend; a tuple is replaced, never changed
        self.aliases: dict[str, str] = {}

    def versions(self, name: str) -> tuple[Record, ...]:
        """Return the records of *name* or alias, oldest first; empty if there are none."""
        found = self.names.get(name)
        if found is None:
            found = self.names.get(self.aliases.get(name, ""), ())
        return found

    def find(self, name: str, version: int | None) -> Record | None:
        """Return one version of *name*; without a version the newest that is not deprecated, else the newest."""
        found = self.versions(name)
        if version is not None:
            return next((record for record in found if record.entry.version == version), None)
        if len(found) > 1:
            current = [record for record in found if record.entry.deprecated is None]
            return (current or found)[-1]
        return found[-1] if found else None

    def put(self, registry: str, record: Record, *, replace: bool) -> None:
        """Add *record*, or raise before anything is changed.

        Raises:
            DuplicateNameError: If another owner has its name and version, or its name or an alias means another name.
        """
        entry = record.entry
        name = entry.name
        before = self.names.get(name, ())
        old = next((kept for kept in before if kept.entry.version == entry.version), None)
        if not replace:
            self._check(registry, record, old)
        if not before and not entry.aliases and not self.aliases:
            self.names[name] = (record,)  # the common case
            return
        versions = [kept for kept in before if kept is not old]
        versions.append(record)
        if len(versions) > 1:
            versions.sort(key=lambda kept: kept.entry.version)
        self.names[name] = tuple(versions)
        if self.aliases:
            self.aliases.pop(name, None)  # only with replace=True can the name have been an alias
        for alias in entry.aliases:
            self.aliases[alias] = name
            if alias in self.names:  # as above
                self._drop(alias)
        if old is not None:
            wanted = {alias for kept in versions for alias in kept.entry.aliases}
            for alias in old.entry.aliases:
                if alias not in wanted and self.aliases.get(alias) == name:
                    del self.aliases[alias]

    def remove(self, record: Record) -> None:
        """Take *record* out again, and the aliases that only it has."""
        name = record.entry.name
        left = tuple(kept for kept in self.names[name] if kept is not record)
        if not left:
            self._drop(name)
            return
        self.names[name] = left
        wanted = {alias for kept in left for alias in kept.entry.aliases}
        for alias in record.entry.aliases:
            if alias not in wanted and self.aliases.get(alias) == name:
                del self.aliases[alias]

    def _drop(self, name: str) -> None:
        for alias in [alias for alias, meant in self.aliases.items() if meant == name]:
            del self.aliases[alias]
        del self.names[name]

    def _check(self, registry: str, record: Record, old: Record | None) -> None:
        entry = record.entry
        if old is not None and old.owner != record.owner:
            self._refuse(registry, entry.ref, old, record)
        if entry.name in self.aliases:
            self._refuse(registry, entry.name, self.names[self.aliases[entry.name]][-1], record)
        for alias in entry.aliases:
            meant = alias if alias in self.names else self.aliases.get(alias)
            if meant is not None and meant != entry.name:
                self._refuse(registry, alias, self.names[meant][-1], record)

    def _refuse(self, registry: str, name: str, first: Record, second: Record) -> None:
        raise DuplicateNameError(registry, name, first=describe(first), second=describe(second))


def describe(record: Record) -> str:
    """Return who a record is and where it was registered, for an error message."""
    return f"{record.entry.target} ({record.entry.source})"


def atomic_items(mapping: dict[K, V]) -> list[tuple[K, V]]:
    """Return the items of a dictionary that another thread may be writing to."""
    return list(
        mapping.copy().items()
    )  # dict.copy() does not give up the interpreter half-way; a loop does
