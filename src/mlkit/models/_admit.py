"""A version that comes from another store: checked to the last byte before a line says that it is here."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from mlkit.errors import IntegrityError, NumberTakenError
from mlkit.models._bundle import description, files_of
from mlkit.models._folder import READABLE, WRITABLE
from mlkit.models._payload import HashedFile

if TYPE_CHECKING:
    from mlkit.models._backing import Backing
    from mlkit.models._folder import Folder
    from mlkit.models._package import Package
    from mlkit.models._signing import Requirement
    from mlkit.models._state import State
    from mlkit.models._version import ModelVersion

__all__ = ["admit"]


def admit(
    package: Package,
    store: Backing,
    *,
    renumber: bool,
    require: Requirement | None,
    why: str,
) -> ModelVersion:
    """Take a version into a store, under the number it has, and return it as it is there.

    Args:
        package: The version; its weights are read and checked here.
        store: The store.
        renumber: Whether it gets the next number if it cannot have its own.
        require: Who must have signed it, beside whom the store requires.
        why: Why.

    Raises:
        NumberTakenError: If it cannot have its number.
        SignatureError: If it is not signed as required.
        IntegrityError: If its weights are not what it says.
    """
    folder, catalog, policy = store.folder, store.catalog, store.policy
    event = store.event("imported", package.number, why)
    name, number, facts = package.name, package.number, package.facts
    log = catalog.log(name)
    with folder.fit(READABLE):
        taken = _taken(package, log.read(), renumber=renumber)
    bundles = package.bundles if taken == number else []
    for requirement in (policy.requirement, require):
        if requirement is not None:
            requirement.check(f"{name}@{taken}", files_of(name, taken, facts), bundles)
    with ExitStack() as stack:
        kept = {facts.payload: _weights(stack, folder, package)}
        kept[facts.digest] = _file(stack, folder, [package.document])[0]
        with folder.lock():
            state = log.read_locked()
            taken = _taken(package, state, renumber=renumber)
            events: list[dict[str, Any]] = []
            if taken not in state.saved:
                for digest, path in kept.items():
                    folder.adopt(path, digest, sealed=folder.keys is not None)
                events.append(event | _imported(package, taken))
            known = policy.bundles(name, taken, state) if taken in state.saved else []
            new = [bundle for bundle in package.bundles if taken == number and bundle not in known]
            events += [
                event | {"version": taken} | policy.keep(bundle, made_here=False) for bundle in new
            ]
            if events:
                state = log.append(state, *events)
    return catalog.version(name, state, taken)


def _taken(package: Package, state: State, *, renumber: bool) -> int:
    """Return the number that a version gets: its own, if it is free or the version is there already."""
    number = package.number
    if number > state.last:
        return number
    if number in state.saved:
        here = description(package.name, number, state.facts(number))
        if here == description(package.name, number, package.facts):
            return number
    if not renumber:
        raise NumberTakenError(f"{package.name}@{number}", last=state.last)
    return state.last + 1


def _weights(stack: ExitStack, folder: Folder, package: Package) -> str:
    facts = package.facts
    path, digest, size = _file(stack, folder, package.weights(), most=facts.n_bytes)
    if (digest, size) != (facts.payload, facts.n_bytes):
        raise IntegrityError(f"{package.where}/weights", expected=facts.payload, got=digest)
    return path


def _file(
    stack: ExitStack, folder: Folder, pieces: Any, *, most: int | None = None
) -> tuple[str, str, int]:
    """Write a temporary file and return its path, digest and size; it is gone at the end, if it is still there."""
    with folder.fit(WRITABLE):
        path = folder.temporary()
    stack.callback(_remove, path)
    size = 0
    with HashedFile(path, folder.sealer) as file:
        for piece in pieces:
            size += len(piece)
            if most is not None and size > most:
                break  # more than was announced: no disk is filled with it
            file.write(piece)
        digest, _ = file.settle()
    return path, digest, size


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)  # noqa: PTH108 - it has become a blob, or is one more file in tmp/


def _imported(package: Package, number: int) -> dict[str, Any]:
    facts = package.facts
    return {
        "kind": "imported",
        "version": number,
        "digest": facts.digest,
        "payload": facts.payload,
        "format": facts.format,
        "n_bytes": facts.n_bytes,
        "run": facts.run,
        "metrics": {key: repr(value) for key, value in facts.metrics.items()},
        "tags": facts.tags,
        "origin": {
            "ref": f"{package.name}@{package.number}",
            "who": facts.who,
            "time": facts.time,
        },
        "evidence": package.evidence,
    }
