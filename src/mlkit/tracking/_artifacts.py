"""Artifacts are copied into the run before the call returns, each content once, named by its digest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlkit._digest import digest_bytes, digest_file
from mlkit.errors import ConfigurationError
from mlkit.tracking._folder import sync_path

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["digest_of", "keep", "readable"]

_READABLE = "the path of a file that can be read, or bytes"


def readable(where: str, source: object) -> Path:
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


def keep(store: Path, source: Path | bytes, *, sync: bool) -> tuple[str, int]:
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


def digest_of(source: Path | bytes) -> str:
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
