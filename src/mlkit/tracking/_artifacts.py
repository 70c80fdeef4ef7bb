"""Artifacts are copied into the run before the call returns, each content once, named by its digest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlkit._digest import digest_bytes, digest_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["keep_bytes", "keep_file"]


def keep_bytes(store: Path, data: bytes, *, sync: bool) -> str:
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


def keep_file(store: Path, source: Path, *, sync: bool) -> tuple[str, int]:
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
        descriptor = os.open(fresh, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fresh.rename(place)
