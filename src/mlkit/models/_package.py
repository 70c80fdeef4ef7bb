"""What somebody exported, read as if it came from an enemy: nothing of it becomes a path, and nothing is unpacked."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from mlkit.errors import ConfigurationError, IntegrityError
from mlkit.models._bundle import MAX_BUNDLE, description, files_of, is_about
from mlkit.models._codec import is_format
from mlkit.models._folder import checked_digest
from mlkit.models._names import check_name
from mlkit.models._version import MAX_DOCUMENT, Facts, parse_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Package", "Parts", "read_package", "read_parts"]

MAX_BUNDLES = 64
_MAX_VERSION = 2 << 20  # a line of the history has at most half of that
_MAX_EVIDENCE = 20
_MAX_NUMBER = 10**9
_MAX_WHO = 1000
# What opening says of what is not there, or is a link, a socket or no folder; a disk that fails says something else.
_OTHER = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR})
_LIMITS = {
    "document.json": MAX_DOCUMENT,
    "history.json": MAX_DOCUMENT,
    "version.json": _MAX_VERSION,
}


class Parts(NamedTuple):
    """The files of a version but its weights, as bytes of anybody."""

    where: str
    """What to call them in errors: a folder or a file."""
    files: dict[str, bytes]
    weights: Callable[[], Iterable[bytes]]


class Package(NamedTuple):
    """A version outside of a store, checked but for its weights."""

    where: str
    name: str
    number: int
    facts: Facts
    document: bytes
    bundles: list[bytes]
    evidence: dict[str, str]
    weights: Callable[[], Iterable[bytes]]


def read_package(parts: Parts) -> Package:
    """Return the version that files of anybody describe, if they fit each other.

    Args:
        parts: The files.

    Raises:
        IntegrityError: If they do not.
    """
    from hashlib import sha256

    files = parts.files
    for name in ("document.json", "version.json"):
        if name not in files:
            raise IntegrityError(f"{parts.where}/{name}", expected="a file", got="nothing")
    name, number, facts = _described(f"{parts.where}/version.json", files["version.json"])
    document = files["document.json"]
    got = f"sha256:{sha256(document).hexdigest()}"
    if got != facts.digest:
        raise IntegrityError(f"{parts.where}/document.json", expected=facts.digest, got=got)
    _check_document(f"{parts.where}/document.json", document, facts)
    bundles = [content for name, content in files.items() if name.endswith(".sig")]
    for path, content in files.items():
        if path.endswith(".sig") and not is_about(
            f"{name}@{number}", files_of(name, number, facts), content
        ):
            expected = f"a signature of {name}@{number} and its files"
            raise IntegrityError(f"{parts.where}/{path}", expected=expected, got="something else")
    evidence = _evidence(files.get("history.json", b"[]"))
    return Package(parts.where, name, number, facts, document, bundles, evidence, parts.weights)


def read_parts(path: str) -> Parts:
    """Return the files of an exported version; their content is not looked at.

    Args:
        path: The folder, or the tar file.

    Raises:
        ConfigurationError: If it is neither.
        IntegrityError: If there is anything in it that an export does not have.
    """
    try:
        if os.path.isdir(path):  # noqa: PTH112 - as above
            return _from_folder(path)
        return _from_tar(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        expected = "a folder or file that export() wrote and that can be read"
        raise ConfigurationError(
            "import_(path)", path, expected, hint=str(error.strerror)
        ) from None


def _from_folder(path: str) -> Parts:
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files: dict[str, bytes] = {}
        for name in sorted(os.listdir(root)):  # noqa: PTH208 - of a descriptor
            if name == "signatures":
                files |= _signatures(path, root)
            elif name in _LIMITS or name == "model.sig":
                limit = _LIMITS.get(name, MAX_BUNDLE)
                files[name] = b"".join(_read(path, name, root, limit))
            elif name != "weights":
                raise IntegrityError(f"{path}/{name}", expected="nothing of that name", got="it")
    finally:
        os.close(root)
    return Parts(path, files, lambda: _weights_of(path))


def _weights_of(path: str) -> Iterator[bytes]:
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield from _read(path, "weights", root, None)
    finally:
        os.close(root)


def _signatures(path: str, root: int) -> dict[str, bytes]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder = os.open("signatures", flags, dir_fd=root)
    except OSError as error:
        if error.errno not in _OTHER:
            raise
        raise IntegrityError(
            f"{path}/signatures", expected="a folder", got="something else"
        ) from None
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - as above
        _check_names(path, [f"signatures/{name}" for name in names])
        return {
            f"signatures/{name}": b"".join(_read(f"{path}/signatures", name, folder, MAX_BUNDLE))
            for name in names
        }
    finally:
        os.close(folder)


def _read(where: str, name: str, folder: int, limit: int | None) -> Iterator[bytes]:
    """Yield a plain file, piece by piece; links and anything else are not opened."""
    import stat

    path = f"{where}/{name}"
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno not in _OTHER:
            raise
        got = "nothing" if isinstance(error, FileNotFoundError) else "something else"
        raise IntegrityError(path, expected="a plain file", got=got) from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise IntegrityError(path, expected="a plain file", got="something else")
        _check_size(path, facts.st_size, limit)
        left = facts.st_size
        while left > 0 and (piece := os.read(descriptor, min(left, 1 << 20))):
            left -= len(piece)
            yield piece
    finally:
        os.close(descriptor)


def _from_tar(path: str) -> Parts:
    files: dict[str, bytes] = {}
    weights: tuple[int, int] | None = None
    with open(path, "rb") as file:  # noqa: PTH123 - as above
        while (entry := _entry(path, file.read(512))) is not None:
            name, size = entry
            if name in files or (name == "weights" and weights is not None):
                raise IntegrityError(f"{path}/{name[:80]}", expected="each file once", got="more")
            if name == "weights":
                weights = file.tell(), size
                file.seek(size + -size % 512, os.SEEK_CUR)
                continue
            if name != "model.sig" and name not in _LIMITS:
                _check_names(path, [*(known for known in files if "/" in known), name])
            _check_size(f"{path}/{name}", size, _LIMITS.get(name, MAX_BUNDLE))
            files[name] = file.read(size)
            file.seek(-size % 512, os.SEEK_CUR)
    if weights is None:
        raise IntegrityError(f"{path}/weights", expected="a file", got="nothing")
    offset, size = weights
    return Parts(path, files, lambda: _slice(path, offset, size))


def _entry(path: str, head: bytes) -> tuple[str, int] | None:
    """Return the name and the size of a plain file in a tar file, or None at the end of it.

    One head at a time, and nothing but plain files: extended heads may be of any size, and links lead anywhere.
    """
    from tarfile import AREGTYPE, REGTYPE, HeaderError, TarInfo

    if not head.strip(b"\0"):
        return None
    try:
        entry = TarInfo.frombuf(head, "utf-8", "replace")
    except (HeaderError, ValueError) as error:
        got = f"something else ({type(error).__name__})"
        raise IntegrityError(path, expected="a tar file that export() wrote", got=got) from None
    if entry.type not in {REGTYPE, AREGTYPE} or entry.size < 0:
        shown = f"{path}/{entry.name[:80]}"
        raise IntegrityError(shown, expected="a plain file", got="something else")
    return entry.name, entry.size


def _slice(path: str, offset: int, size: int) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - as above
        file.seek(offset)
        while size > 0 and (piece := file.read(min(size, 1 << 20))):
            size -= len(piece)
            yield piece


def _check_names(where: str, names: list[str]) -> None:
    """Refuse what no export has; a name is only compared and never used as a path."""
    if len(names) > MAX_BUNDLES:
        expected = f"at most {MAX_BUNDLES} signatures"
        raise IntegrityError(f"{where}/signatures", expected=expected, got=str(len(names)))
    for name in names:
        plain = name.removeprefix("signatures/").removesuffix(".sig")
        if name != f"signatures/{plain}.sig" or not plain.replace("-", "").isalnum():
            raise IntegrityError(f"{where}/{name[:80]}", expected="nothing of that name", got="it")


def _check_size(path: str, size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise IntegrityError(path, expected=f"at most {limit} bytes", got=f"{size} bytes")


def _described(path: str, content: bytes) -> tuple[str, int, Facts]:
    import json

    try:
        said = json.loads(content)
        if said["mlkit"] != 1 or type(said["number"]) is not int:
            raise ValueError("form")
        if not 0 < said["number"] < _MAX_NUMBER or len(said["who"]) > _MAX_WHO:
            raise ValueError("number or who")
        name = check_name("name", said["name"])
        if not is_format(said["format"]) or not isinstance(said["run"], (str, type(None))):
            raise ValueError("format or run")
        facts = Facts(
            float(said["time"]),
            str(said["who"]),
            checked_digest(said["digest"]),
            checked_digest(said["payload"]),
            said["format"],
            int(said["n_bytes"]),
            said["run"],
            {str(key): float(value) for key, value in dict(said["metrics"]).items()},
            {str(key): str(value) for key, value in dict(said["tags"]).items()},
        )
        if description(name, said["number"], facts) != content:
            raise ValueError("other bytes than export() writes")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError):
        raise IntegrityError(
            path, expected="the description of a version", got="something else"
        ) from None
    return name, said["number"], facts


def _check_document(path: str, content: bytes, facts: Facts) -> None:
    import json

    try:
        payload = parse_payload(json.loads(content))
        if (payload.digest, payload.format, payload.n_bytes) != (
            facts.payload,
            facts.format,
            facts.n_bytes,
        ):
            raise ValueError("other weights")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError):
        raise IntegrityError(
            path, expected="the document of the version", got="something else"
        ) from None


def _evidence(content: bytes) -> dict[str, str]:
    """Return what the history of the other store says, in short; it is hearsay, whatever is in it."""
    import json

    from mlkit._suggest import clip

    try:
        changes = json.loads(content)
        told = {
            f"{int(change['sequence'])} {clip(str(change['kind']), 20)}"
            + (f" {clip(str(change['alias']), 40)}" if change["alias"] else ""): clip(
                f"by {change['who']} at {float(change['time'])!r}: {change['why']}", 300
            )
            for change in changes[-_MAX_EVIDENCE:]
        }
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError):
        return {"history": "cannot be read"}
    return told
