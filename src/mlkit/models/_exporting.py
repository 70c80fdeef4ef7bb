"""Versions on their way between stores: a folder or one tar file, written the same way each time, trusted in nothing.

```text
document.json          format, weights, spec, signature, manifest; its SHA-256 is the digest of the version
history.json           the changes that are about this version, for people; nothing relies on it
signatures/*.sig       one Sigstore bundle each
version.json           name, number, metrics, tags, run, who saved it when
weights                the bytes
```
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from mlkit.errors import ConfigurationError
from mlkit.models._bundle import description
from mlkit.models._names import checked_path
from mlkit.models._package import Parts
from mlkit.models._plain import dump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlkit.models._version import Change, Facts

__all__ = ["checked_target", "parts_of", "write_parts"]

_MAX_CHANGES = 1000


def parts_of(
    where: str,
    version: tuple[str, int, Facts],
    *,
    document: bytes,
    bundles: Iterable[bytes],
    changes: Iterable[Change],
    weights: Callable[[], Iterable[bytes]],
) -> Parts:
    """Return what a version is exported as.

    Args:
        where: What to call it in errors.
        version: Its name, number and facts.
        document: Its document.
        bundles: Its signatures.
        changes: The history of the model.
        weights: Gives its weights piece by piece.
    """
    from hashlib import sha256

    name, number, facts = version
    history = [
        change._asdict() for change in changes if number in {change.version, change.previous}
    ][-_MAX_CHANGES:]
    files = {
        "document.json": document,
        "history.json": dump(history),
        "version.json": description(name, number, facts),
    }
    files |= {f"signatures/{sha256(each).hexdigest()[:16]}.sig": each for each in bundles}
    return Parts(where, dict(sorted(files.items())), weights)


def checked_target(where: str, path: object) -> str:
    """Return *path* as absolute text if an export may be written there, as far as can be seen before.

    Args:
        where: The argument, for the error.
        path: What the caller passed.
    """
    target = checked_path(where, path, "a path")
    if not os.path.isdir(os.path.dirname(target)):  # noqa: PTH112, PTH120 - paths are text here
        raise ConfigurationError(where, path, "a path in a folder that exists")
    return target


def write_parts(parts: Parts, path: str, n_bytes: int) -> None:
    """Write a folder, or a tar file if *path* ends so, that does not exist; it appears when it is whole.

    Args:
        parts: What to write.
        path: Where.
        n_bytes: The size of the weights.
    """
    if path.endswith(".tar"):
        _to_tar(parts, path, n_bytes)
    else:
        _to_folder(parts, path)


def _to_folder(parts: Parts, path: str) -> None:
    from shutil import rmtree

    partial = f"{path}.{os.urandom(8).hex()}"
    os.mkdir(partial)  # noqa: PTH102 - paths are text here
    try:
        if any(name.startswith("signatures/") for name in parts.files):
            os.mkdir(f"{partial}/signatures")  # noqa: PTH102 - as above
        for name, content in parts.files.items():
            _write(f"{partial}/{name}", [content])
        _write(f"{partial}/weights", parts.weights())
        if os.path.lexists(path):
            raise _exists(path)
        os.rename(partial, path)  # noqa: PTH104 - as above
    finally:
        rmtree(partial, ignore_errors=True)


def _to_tar(parts: Parts, path: str, n_bytes: int) -> None:
    # Not compressed, so that the weights can be read in place.
    partial = f"{path}.{os.urandom(8).hex()}"
    try:
        _write(partial, _tar(parts, n_bytes))
        if os.path.lexists(path):
            raise _exists(path)
        os.rename(partial, path)  # noqa: PTH104 - as above
    finally:
        with suppress(OSError):
            os.unlink(partial)  # noqa: PTH108 - as above


def _write(path: str, pieces: Iterable[bytes]) -> None:
    from mlkit.models._folder import write_all

    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for piece in pieces:
            write_all(descriptor, piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tar(parts: Parts, n_bytes: int) -> Iterator[bytes]:
    from tarfile import USTAR_FORMAT, TarInfo

    def head(name: str, size: int) -> bytes:
        entry = TarInfo(name)
        entry.size, entry.mode = size, 0o644
        # More than 8 GiB does not fit into the octal digits of ustar; GNU's base-256 form does, and is as fixed.
        return entry.tobuf(USTAR_FORMAT if size < 8 << 30 else 1)

    for name, content in parts.files.items():
        yield head(name, len(content)) + content + bytes(-len(content) % 512)
    yield head("weights", n_bytes)
    yield from parts.weights()
    yield bytes(-n_bytes % 512 + 1024)


def _exists(path: str) -> ConfigurationError:
    return ConfigurationError("export(path)", path, "a path where nothing is")
