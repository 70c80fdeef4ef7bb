"""What is in a store: the models with a history, and which version a name, number, alias or digest means."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, final

from mlkit.errors import ConfigurationError, IntegrityError, ModelStoreError, VersionNotFoundError
from mlkit.models._bundle import files_of
from mlkit.models._folder import READABLE, blob_path, sealed_path
from mlkit.models._log import Log, name_of
from mlkit.models._names import parse
from mlkit.models._version import ModelVersion, parse_payload, read_document

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.models._folder import Folder
    from mlkit.models._log import State

__all__ = ["Catalog"]

T = TypeVar("T")


@final
class Catalog:
    """The models of a folder. Thread-safe; it keeps one `Log` for each model that was used.

    Args:
        folder: The store.
    """

    __slots__ = ("_folder", "_logs")

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._logs: dict[str, Log] = {}

    def log(self, name: str) -> Log:
        """Return the log of a model, whether or not it has one yet.

        Args:
            name: A checked name.
        """
        return self._logs.setdefault(name, Log(self._folder, name))

    def state(self, name: str) -> State:
        """Return the present state of a model that has a history.

        Args:
            name: A checked name.

        Raises:
            ConfigurationError: If the folder cannot be read.
            VersionNotFoundError: If it has none.
        """
        with self._folder.fit(READABLE):
            state = self.log(name).read()
        if not state.n_changes:
            # Names that were only asked for must not pile up.
            self._logs.pop(name, None)
            names, root = self.names(), self._folder.root
            hint = f"the store is {root}" if names else f"there are no models in {root}"
            raise VersionNotFoundError(name, names, hint=hint)
        return state

    def names(self) -> list[str]:
        """Return the names of the models that have a history, sorted."""
        with self._folder.fit(READABLE):
            on_disk = self._names_on_disk()
        return sorted(name for name in on_disk if self._has_history(name))

    def version(self, name: str, state: State, number: int) -> ModelVersion:
        """Return a version that a state knows.

        Args:
            name: The model.
            state: Its state.
            number: The version.

        Raises:
            VersionNotFoundError: If there is no such version in it.
        """
        if number not in state.versions:
            raise self.missing(f"{name}@{number}", state)
        return ModelVersion(self._folder, name, number, state.versions[number])

    def missing(self, ref: str, state: State) -> VersionNotFoundError:
        """Return the error for what a state does not know.

        Args:
            ref: What was asked for.
            state: The state of the model.
        """
        name, _, wanted = ref.partition("@")
        deleted = wanted.isdecimal() and 0 < int(wanted) <= state.last
        known = [f"{name}@{alias}" for alias in state.aliases()]
        known += [f"{name}@{number}" for number in state.versions]
        return VersionNotFoundError(ref, known, hint="it was deleted" if deleted else "")

    def resolve(self, where: str, ref: str | ModelVersion) -> ModelVersion:
        """Return the version that a reference means now.

        Args:
            where: The argument, for the error.
            ref: What the caller passed.
        """
        given = ref if isinstance(ref, ModelVersion) else None
        name, number, alias, prefix = parse(where, ref if given is None else given.ref)
        state = self.state(name)
        if alias is not None:
            number = state.aliases().get(alias)
        elif prefix is not None:
            found = {
                facts.digest: number
                for number, facts in state.versions.items()
                if facts.digest.startswith(prefix)
            }
            if len(found) > 1:
                raise ConfigurationError(
                    where, ref, f"more digits: {len(found)} versions of {name!r} begin so"
                )
            number = next(iter(found.values()), None)
        if number is None:
            raise self.missing(str(ref), state)
        version = self.version(name, state, number)
        if given is not None and given.digest != version.digest:
            raise ConfigurationError(where, given, "a version of this store")
        return version

    def number(self, where: str, name: str, version: object) -> int:
        """Return the number of a version of *name*, which need not exist.

        Args:
            where: The argument, for the error.
            name: The model.
            version: What the caller passed; a version of another store is refused, if it differs.
        """
        if isinstance(version, ModelVersion):
            if version.name != name:
                raise ConfigurationError(where, version, f"a version of {name!r}")
            facts = self.state(name).versions.get(version.number)
            if facts is not None and facts.digest != version.digest:
                raise ConfigurationError(where, version, "a version of this store")
            return version.number
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ConfigurationError(where, version, "a version number >= 1, or a ModelVersion")
        return version

    def reading(self, version: ModelVersion, read: Callable[[], T]) -> T:
        """Return what *read* returns; if a file is gone, say whether the version was deleted or damaged.

        Args:
            version: Whose file is read.
            read: Reads it.
        """
        try:
            return read()
        except FileNotFoundError as error:
            state = self.state(version.name)
            if version.number not in state.versions:  # deleted since we looked
                raise self.missing(version.ref, state) from None
            raise IntegrityError(
                str(error.filename), expected=f"a file of {version.ref}", got="nothing"
            ) from None

    def files(self, version: ModelVersion) -> dict[str, str]:
        """Return the digests of the files that a version is exported as, by name.

        Args:
            version: The version.
        """
        state = self.state(version.name)
        self.version(version.name, state, version.number)
        return files_of(version.name, version.number, state.facts(version.number))

    def check_files(self, version: ModelVersion) -> None:
        """Raise if a file of a version is not what was saved; all of them are read.

        Args:
            version: The version.
        """
        self.reading(version, lambda: self._folder.check_blob(version.digest))
        payload = parse_payload(self.reading(version, lambda: read_document(version)))
        self.reading(version, lambda: self._folder.check_blob(payload.digest))

    def contents(self) -> set[str]:
        """Return the digests of every document and all weights that a version of any model needs.

        Raises:
            ModelStoreError: If a history cannot be read.
        """
        found: set[str] = set()
        for name in self._names_on_disk():
            for facts in self.log(name).read_locked().versions.values():
                found |= {facts.digest, facts.payload}
        return found

    def needed(self) -> set[str]:
        """Return the paths, relative to the store, where something lies that a version of any model needs.

        Raises:
            ModelStoreError: If a history cannot be read.
        """
        used = [self.log(name).read_locked().used() for name in self._names_on_disk()]
        digests: set[str] = set().union(*used)
        return {path(digest) for digest in digests for path in (blob_path, sealed_path)}

    def remove_unused(self, digests: set[str]) -> int:
        """Remove blobs that no version of any model uses, and return how many stay that need not.

        The caller holds the lock, so that no version can begin to use one meanwhile.

        Args:
            digests: Of the blobs.
        """
        try:
            for name in self._names_on_disk():
                digests = digests - self.log(name).read_locked().used()
        except (ModelStoreError, OSError):
            return len(digests)  # a history that cannot be read may use anything
        kept = 0
        for digest in digests:
            try:
                self._folder.remove(blob_path(digest))
                self._folder.remove(sealed_path(digest))
            except OSError:
                kept += 1  # the version is deleted all the same
        return kept

    def _names_on_disk(self) -> list[str]:
        found = [name_of(file) for file in self._folder.listing("models")]
        return [name for name in found if name is not None]

    def _has_history(self, name: str) -> bool:
        try:
            return self.log(name).read().n_changes > 0
        except (ModelStoreError, OSError):
            return True  # it is there, and every other call will say what is wrong with it
