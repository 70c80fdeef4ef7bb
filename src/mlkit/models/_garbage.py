"""Files that nothing needs any more: those of processes that died, of deleted versions, and readable ones beside sealed."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from mlkit.errors import VersionInUseError
from mlkit.models._folder import blob_path, sealed_path
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlkit.models._backing import Backing
    from mlkit.models._catalog import Catalog
    from mlkit.models._folder import Folder
    from mlkit.models._version import Change

__all__ = ["Sweep", "collect", "delete", "reseal"]

_HEX = "0123456789abcdef"


class Sweep(NamedTuple):
    """What `collect_garbage` removed, or would, or `reseal` wrote anew.

    Attributes:
        files: The files, relative to the folder of the store, sorted.
        n_bytes: What they take on the disk, in bytes.
    """

    files: tuple[str, ...]
    n_bytes: int


def delete(store: Backing, name: str, number: int, why: str) -> Change:
    """Delete a version and what only it uses.

    Args:
        store: The store.
        name: The model.
        number: The version.
        why: Why.
    """
    store.catalog.state(name)
    log = store.catalog.log(name)
    with store.folder.lock():
        state = log.read_locked()
        gone = store.catalog.version(name, state, number)
        if using := [alias for alias, holder in state.aliases().items() if holder == number]:
            raise VersionInUseError(gone.ref, using)
        change = log.append(state, store.event("deleted", number, why)).last_change()
        facts = state.versions[number]
        unused = {facts.digest, facts.payload, *state.signatures(number)}
        kept = store.catalog.remove_unused(unused)
    emit("models.version.deleted", name, version=number, files_kept=kept)
    return change


def collect(folder: Folder, catalog: Catalog, *, before: float, dry_run: bool) -> Sweep:
    """Remove what no version needs, and return what that was.

    Args:
        folder: The store.
        catalog: What is in it.
        before: Only files last changed before this time, in seconds since the Unix epoch.
        dry_run: Whether nothing is removed.

    Raises:
        IntegrityError, ModelStoreError: If a history cannot be read: it may need anything.
        OSError: If a file cannot be removed.
    """
    old = {path: size for path, size, changed in _files(folder) if changed < before}
    blobs = {path for path in old if not path.startswith("tmp/")}
    if blobs and dry_run:
        blobs -= catalog.needed()
    elif blobs:
        # Under the lock nobody begins to need one meanwhile: what is saved is adopted and named in one turn.
        with folder.lock():
            blobs = {path for path in blobs - catalog.needed() if _changed(folder, path) < before}
            for path in sorted(blobs):
                folder.remove(path)
    temporary = {path for path in old if path.startswith("tmp/")}
    if not dry_run:
        for path in sorted(temporary):
            folder.remove(path)
    gone = sorted(blobs | temporary)
    return Sweep(tuple(gone), sum(old[path] for path in gone))


def reseal(folder: Folder, catalog: Catalog) -> Sweep:
    """Seal every file that a version needs with the present key, and return which were not.

    Args:
        folder: The store, with keys.
        catalog: What is in it.
    """
    from mlkit.models._sealed import sealed_with

    keys = folder.keys
    if keys is None:
        raise AssertionError("checked by the caller")
    present, done, n_bytes = keys.current()[0], [], 0
    for digest in sorted(catalog.contents()):
        try:
            descriptor, relative, sealed = folder.open_blob(digest)
        except FileNotFoundError:
            continue  # deleted meanwhile, or damage that a load will report
        try:
            name = sealed_with(descriptor, folder.path(relative)) if sealed else None
        finally:
            os.close(descriptor)
        if name != present:
            n_bytes += _seal(folder, catalog, digest)
            done.append(relative)
    return Sweep(tuple(done), n_bytes)


def _seal(folder: Folder, catalog: Catalog, digest: str) -> int:
    """Seal one blob anew, take its readable form away, and return the size of its content."""
    from mlkit.models._payload import HashedFile

    path = folder.temporary()
    try:
        with HashedFile(path, folder.sealer) as file:
            for piece in folder.pieces(digest):  # the last one comes only if all were right
                file.write(piece)
            _, size = file.settle()
        with folder.lock():
            if digest in catalog.contents():
                folder.adopt(path, digest, sealed=True)
                folder.remove(blob_path(digest))
    finally:
        with suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - it has become a blob, or is one more file in tmp/
    return size


def _files(folder: Folder) -> Iterator[tuple[str, int, float]]:
    """Yield each file that can be garbage: its path in the store, its size, and when it was last changed."""
    for name in folder.listing("tmp"):
        yield from _file(folder, f"tmp/{name}")
    for top in ("blobs/sha256", "sealed/sha256"):
        for part in folder.listing(top):
            if len(part) != 2 or part.strip(_HEX):  # such as the .DS_Store of a file manager
                continue
            for name in folder.listing(f"{top}/{part}"):
                if f"{top}/{part}/{name}" in _paths_of(name):
                    yield from _file(folder, f"{top}/{part}/{name}")


def _paths_of(name: str) -> tuple[str, str]:
    """Return where a blob of that name would lie: a file of another name is somebody else's."""
    digest = f"sha256:{name}"
    is_digest = len(name) == 64 and not name.strip(_HEX)
    return (blob_path(digest), sealed_path(digest)) if is_digest else ("", "")


def _file(folder: Folder, path: str) -> Iterator[tuple[str, int, float]]:
    with suppress(FileNotFoundError):
        facts = os.lstat(folder.path(path))
        if stat.S_ISREG(facts.st_mode):
            yield path, facts.st_size, facts.st_mtime


def _changed(folder: Folder, path: str) -> float:
    for _, _, changed in _file(folder, path):
        return changed
    return float("inf")
