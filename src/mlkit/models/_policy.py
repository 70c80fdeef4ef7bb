"""Who must have signed what a store gives out, and the signatures that are kept with a version."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, final

from mlkit._suggest import article
from mlkit.errors import ConfigurationError, SignatureError
from mlkit.models._bundle import MAX_BUNDLE, claimed, files_of, sign
from mlkit.models._folder import WRITABLE, write_file
from mlkit.models._signing import Requirement
from mlkit.models._state import facts_of

if TYPE_CHECKING:
    from mlkit.models._catalog import Catalog
    from mlkit.models._folder import Folder
    from mlkit.models._signing import Signer
    from mlkit.models._state import State
    from mlkit.models._version import Change, ModelVersion

__all__ = ["Policy", "checked_requirement"]


@final
class Policy:
    """The requirement of a store, and its signatures. Thread-safe.

    Args:
        folder: The store.
        catalog: What is in it.
        requirement: What each version must meet, or None.
    """

    __slots__ = ("_catalog", "_folder", "requirement")

    def __init__(self, folder: Folder, catalog: Catalog, requirement: Requirement | None) -> None:
        self._folder, self._catalog, self.requirement = folder, catalog, requirement

    def check(self, version: ModelVersion, also: Requirement | None = None) -> None:
        """Raise if a version is not signed as it must be.

        Args:
            version: The version.
            also: What the caller asks for beside what the store does.
        """
        if self.requirement is not None or also is not None:
            state = self._catalog.state(version.name)
            self.check_number(version.name, version.number, state, also)

    def check_number(
        self, name: str, number: int, state: State, also: Requirement | None = None
    ) -> None:
        """Raise if a version is not signed as it must be.

        Args:
            name: The model.
            number: The version.
            state: The state of the model; a version that is not in it is missing.
            also: What the caller asks for beside what the store does.
        """
        for requirement in (self.requirement, also):
            if requirement is not None:
                bundles = self.bundles(name, number, state)
                files = files_of(name, number, state.facts(number))
                requirement.check(f"{name}@{number}", files, bundles)

    def bundles(self, name: str, number: int, state: State) -> list[bytes]:
        """Return the signatures of a version, oldest first, each as it was when it was added.

        Args:
            name: The model.
            number: The version.
            state: The state of the model.
        """
        version = self._catalog.version(name, state, number)
        return [
            self._catalog.reading(
                version, partial(self._folder.read_blob, digest, limit=MAX_BUNDLE)
            )
            for digest in state.signatures(number)
        ]

    def signed_event(self, saved: dict[str, Any], name: str, key: Signer) -> dict[str, Any]:
        """Sign a version that is about to be saved, keep the bundle, and return the event for the history.

        The caller holds the lock.

        Args:
            saved: The event of the save.
            name: The model.
            key: Who signs.
        """
        number = saved["version"]
        bundle = sign(f"{name}@{number}", files_of(name, number, facts_of(saved)), key)
        kept = {part: saved[part] for part in ("version", "who", "time", "why")}
        return kept | self.keep(bundle)

    def sign(self, version: ModelVersion, key: Signer, event: dict[str, Any]) -> Change:
        """Sign a version and return the change; one that the key has signed already needs no more.

        Args:
            version: The version.
            key: Who signs.
            event: What the history says of it, but for the bundle.
        """
        files = self._catalog.files(version)
        return self.add(version, sign(version.ref, files, key), event, key.requirement)

    def add(
        self, version: ModelVersion, bundle: bytes, event: dict[str, Any], unless: Requirement
    ) -> Change:
        """Keep a signature with a version, and return the change.

        Args:
            version: The version.
            bundle: The signature.
            event: What the history says of it, but for the bundle.
            unless: The requirement that it meets: if it is met already, the change that met it is returned.
        """
        log = self._catalog.log(version.name)
        with self._folder.lock():
            state = log.read_locked()
            if self.has(version.name, version.number, state, unless):
                return state.last_signed(version.number, claimed(bundle))
            return log.append(state, event | self.keep(bundle)).last_change()

    def keep(self, bundle: bytes, *, made_here: bool = True) -> dict[str, Any]:
        """Put a bundle where blobs are, and return what the event says of it. The caller holds the lock.

        Args:
            bundle: A signature.
            made_here: Whether the key is known to have made it, or the bundle only says so.
        """
        with self._folder.fit(WRITABLE):
            path = self._folder.temporary()
        try:
            write_file(path, bundle)
            digest, _ = self._folder.settle(path)
            self._folder.adopt(path, digest)
        finally:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108 - it has become a blob, or is one more file in tmp/
        evidence = {"signed_by" if made_here else "says_signed_by": claimed(bundle)}
        return {"kind": "signed", "bundle": digest, "evidence": evidence}

    def has(self, name: str, number: int, state: State, requirement: Requirement) -> bool:
        """Return whether a version meets a requirement.

        Args:
            name: The model.
            number: The version.
            state: The state of the model.
            requirement: Of a caller.
        """
        bundles = self.bundles(name, number, state)
        files = files_of(name, number, state.facts(number))
        try:
            requirement.check(f"{name}@{number}", files, bundles)
        except SignatureError:
            return False
        return True


def checked_requirement(where: str, require: object) -> Requirement | None:
    """Return *require* if it is a requirement or None.

    Args:
        where: The argument, for the error.
        require: What the caller passed.
    """
    if require is None or isinstance(require, Requirement):
        return require
    raise ConfigurationError(where, article(type(require).__name__), "signed_by(...), or None")
