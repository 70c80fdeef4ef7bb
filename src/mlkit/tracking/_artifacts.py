"""Artifacts are copied into the run before the call returns, each content once, named by its digest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, final

from mlkit._digest import digest_bytes, digest_file
from mlkit.errors import ConfigurationError
from mlkit.tracking import _frames
from mlkit.tracking._folder import sync_path
from mlkit.tracking._values import artifact_name

if TYPE_CHECKING:
    from pathlib import Path

    from mlkit.tracking._journal import Journal

__all__ = ["Artifacts"]

_READABLE = "the path of a file that can be read, or bytes"


@final
class Artifacts:
    """The artifacts of a run. Thread-safe.

    Args:
        store: Folder of their contents.
        journal: Where they are noted.
        sync: Whether they shall survive a power cut.
    """

    __slots__ = ("_journal", "_store", "_sync")

    def __init__(self, store: Path, journal: Journal, *, sync: bool) -> None:
        self._store, self._journal, self._sync = store, journal, sync

    def add(self, where: str, source: str | os.PathLike[str] | bytes, name: str | None) -> str:
        """Keep a file or bytes and return the digest of the content."""
        if isinstance(source, (bytes, bytearray, memoryview)):
            if name is None:
                raise ConfigurationError(
                    f"{where}(name=...)", name, "a name, because bytes have none"
                )
            return self._keep(bytes(source), artifact_name(f"{where}(name=...)", name))
        path = _readable(f"{where}(source)", source)
        wanted = path.name if name is None else name
        return self._keep(path, artifact_name(f"{where}(name=...)", wanted))

    def add_folder(
        self, where: str, folder: str | os.PathLike[str], name: str | None
    ) -> dict[str, str]:
        """Keep all files of a folder and return their digests by name; nothing is kept if one cannot be."""
        from pathlib import Path

        top = Path(folder) if isinstance(folder, (str, os.PathLike)) else None
        if top is None or not top.is_dir():
            raise ConfigurationError(f"{where}(folder)", folder, "the path of a folder")
        prefix = f"{artifact_name(f'{where}(name=...)', name)}/" if name else ""
        found = {
            artifact_name(f"{where}(folder)", prefix + path.relative_to(top).as_posix()):
            _readable(f"{where}(folder)", path)
            for path in sorted(top.rglob("*"))
            if path.is_file()
        }  # fmt: skip
        return {entry: self._keep(path, entry) for entry, path in found.items()}

    def _keep(self, source: Path | bytes, name: str) -> str:
        try:
            digest, size = _store(self._store, source, sync=self._sync)
        except OSError as error:
            digest = _digest_of(source)
            self._journal.count_lost(error, 1)
            return digest
        self._journal.add(_frames.ARTIFACT, {"name": name, "digest": digest, "size": size}, 1)
        return digest


def _readable(where: str, source: object) -> Path:
    """Return the path of a file if it can be read."""
    from pathlib import Path

    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    try:
        if path is not None and path.is_file():
            path.open("rb").close()
            return path
    except OSError:
        pass
    raise ConfigurationError(where, source, _READABLE)


def _store(store: Path, source: Path | bytes, *, sync: bool) -> tuple[str, int]:
    """Store a content and return its digest and size.

    Args:
        store: Folder of the run's artifacts.
        source: A file, or the content itself.
        sync: Whether it shall survive a power cut.

    Raises:
        OSError: If it cannot be stored.
    """
    if isinstance(source, bytes):
        return _keep_bytes(store, source, sync=sync), len(source)
    return _keep_file(store, source, sync=sync)


def _digest_of(source: Path | bytes) -> str:
    """Return the digest of a content that could not be kept.

    Raises:
        ConfigurationError: If that is because it cannot be read.
    """
    try:
        return digest_bytes(source) if isinstance(source, bytes) else digest_file(source)
    except OSError as error:
        raise ConfigurationError("Run.log_artifact(source)", source, _READABLE) from error


def _keep_bytes(store: Path, data: bytes, *, sync: bool) -> str:
    """Store *data* and return its digest.

    Raises:
        OSError: If it cannot be written.
    """
    digest = digest_bytes(data)
    if not _place(store, digest).exists():
        fresh = _fresh(store)
        try:
            fresh.write_bytes(data)
            _settle(fresh, _place(store, digest), sync=sync)
        finally:
            fresh.unlink(missing_ok=True)
    return digest


def _keep_file(store: Path, source: Path, *, sync: bool) -> tuple[str, int]:
    """Store a copy of a file and return its digest and size.

    Raises:
        OSError: If it cannot be copied.
    """
    import shutil  # it brings all compressors along

    fresh = _fresh(store)
    try:
        shutil.copyfile(source, fresh)
        # Of the copy: the source may have changed since.
        digest = digest_file(fresh)
        size = fresh.stat().st_size
        if not _place(store, digest).exists():
            _settle(fresh, _place(store, digest), sync=sync)
    finally:
        fresh.unlink(missing_ok=True)
    return digest, size


def _place(store: Path, digest: str) -> Path:
    return store / digest.removeprefix("sha256:")


def _fresh(store: Path) -> Path:
    return store / f".{os.getpid()}-{os.urandom(6).hex()}"


def _settle(fresh: Path, place: Path, *, sync: bool) -> None:
    if sync:
        sync_path(fresh)
    fresh.rename(place)
    if sync:
        sync_path(place.parent)
