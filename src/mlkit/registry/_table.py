"""The names of a registry. Readers take no lock: every step of a change is one assignment to a dictionary."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mlkit.registry._entry import Record

__all__ = ["Clash", "Table", "newest"]


class Clash(NamedTuple):
    """Why a record was not added: *name* already means *other*."""

    name: str
    other: Record


class Table:
    """Versions by name, and names by alias.

    Writers must hold the lock of the registries; readers need none.
    """

    __slots__ = ("aliases", "names")

    def __init__(self) -> None:
        # Most names have one version. Several are a tuple, oldest first, which is replaced and never changed.
        self.names: dict[str, Record | tuple[Record, ...]] = {}
        self.aliases: dict[str, str] = {}

    def versions(self, name: str) -> tuple[Record, ...]:
        """Return the records of *name* or alias, oldest first; empty if there are none."""
        found = self.names.get(name)
        if found is None:
            found = self.names.get(self.aliases.get(name, ""), ())
        return found if type(found) is tuple else (found,)  # type: ignore[return-value]

    def find(self, name: str, version: int | None) -> Record | None:
        """Return one version of *name*; without a version the newest that is not deprecated, else the newest."""
        found = self.versions(name)
        if version is not None:
            return next((record for record in found if record.said.version == version), None)
        return newest(found) if found else None

    def at(self, name: str, version: int) -> Record | None:
        """Return what is registered under exactly this name, which is no alias."""
        return self.find(name, version) if name in self.names else None

    def pairs(self) -> list[tuple[str, tuple[Record, ...]]]:
        """Return all names with their versions."""
        # dict.copy() does not give up the interpreter half-way, so that another thread may be writing; a loop does.
        return [
            (name, found if type(found) is tuple else (found,))  # type: ignore[misc]
            for name, found in self.names.copy().items()
        ]

    def put(self, record: Record, *, replace: bool) -> Clash | None:
        """Add *record* in place of its own earlier version, unless that changes what another name or alias means.

        Args:
            record: What to add.
            replace: Take the name and the aliases whatever they mean.

        Returns:
            Why it was not added; nothing is changed then.
        """
        name, aliases = record.name, record.said.aliases
        if not replace:
            clash = self._clash(record)
            if clash is not None:
                return clash
        found = self.versions(name) if name in self.names else ()
        old = [kept for kept in found if kept.said.version == record.said.version]
        versions = [kept for kept in found if kept not in old] + [record]
        versions.sort(key=lambda kept: kept.said.version)
        self.names[name] = tuple(versions) if len(versions) > 1 else record
        self.aliases.pop(name, None)  # only with replace=True can the name have been an alias
        for alias in aliases:
            self.aliases[alias] = name
            if alias in self.names:  # as above
                self._drop(alias)
        self._forget_aliases(old, versions, name)
        return None

    def remove(self, record: Record) -> None:
        """Take *record* out again, and the aliases that only it has."""
        left = [kept for kept in self.versions(record.name) if kept is not record]
        if not left:
            self._drop(record.name)
            return
        self.names[record.name] = tuple(left) if len(left) > 1 else left[0]
        self._forget_aliases([record], left, record.name)

    def _drop(self, name: str) -> None:
        for alias in [alias for alias, meant in self.aliases.items() if meant == name]:
            del self.aliases[alias]
        del self.names[name]

    def _forget_aliases(self, gone: list[Record], left: list[Record], name: str) -> None:
        wanted = {alias for kept in left for alias in kept.said.aliases}
        for record in gone:
            for alias in record.said.aliases:
                if alias not in wanted and self.aliases.get(alias) == name:
                    del self.aliases[alias]

    def _clash(self, record: Record) -> Clash | None:
        if record.name in self.aliases:
            return Clash(record.name, self.versions(record.name)[-1])
        for alias in record.said.aliases:
            meant = alias if alias in self.names else self.aliases.get(alias)
            if meant is not None and meant != record.name:
                return Clash(alias, self.versions(meant)[-1])
        return None


def newest(versions: tuple[Record, ...]) -> Record:
    """Return the newest of some versions that is not deprecated, or the newest if all are."""
    if len(versions) > 1:
        current = [record for record in versions if record.said.deprecated is None]
        return (current or versions)[-1]
    return versions[-1]
