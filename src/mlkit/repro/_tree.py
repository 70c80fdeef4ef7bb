"""Files and folders by content, remembered by their stat signature where a cache is given."""

from __future__ import annotations

import os
import stat
import sys
from io import FileIO
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._digest import digest_bytes
from mlkit.errors import FingerprintError
from mlkit.repro._stat_cache import Found

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlkit.repro._hashing import Hashing
    from mlkit.repro._stat_cache import StatCache

__all__ = ["of_path"]


def of_path(
    path: Path, hashing: Hashing, cache: StatCache | None, mark: Callable[[str, object], object]
) -> str:
    """Return the fingerprint of what lies at *path*.

    Args:
        path: A file, a folder, or a link to one.
        hashing: What to hash with.
        cache: What earlier calls found, or None.
        mark: What makes a value that no other encodes as, from a kind and its content.

    Raises:
        FingerprintError: If it cannot be read, changes meanwhile, or is neither file nor folder.
    """
    try:
        status = path.stat()  # follows a link: this path was named by the caller
        if not stat.S_ISDIR(status.st_mode):
            place = str(path.absolute())
            known = None if cache is None else cache.known(place).get(place)
            content = _file_content(place, status, hashing, known)
            if cache is not None and known != (_signature(status), content):
                cache.keep([Found(place, _signature(status), status.st_ctime_ns, content)])
            return content
        return _of_folder(path, hashing, cache, mark)
    except OSError as error:
        raise FingerprintError(str(path), f"it cannot be read ({error})") from error


def _of_folder(
    path: Path, hashing: Hashing, cache: StatCache | None, mark: Callable[[str, object], object]
) -> str:
    root = str(path.absolute())
    if cache is None:
        contents = {entry.name: entry.content(hashing, None) for entry in _walk(root)}
        return hashing.of_plain(mark("tree", contents))
    cache.refuse_inside(root)
    entries = sorted(_walk(root))  # no two have one name
    signature = digest_bytes("\0".join(entry.identity for entry in entries).encode(*_NAMES))
    if (kept := cache.tree(root)) is not None and kept[0] == signature:
        return kept[1]
    known = cache.known(root)
    contents = {entry.name: entry.content(hashing, known.get(entry.place)) for entry in entries}
    whole = hashing.of_plain(mark("tree", contents))
    files = [
        Found(entry.place, entry.signature, entry.status.st_ctime_ns, contents[entry.name][2])
        for entry in entries
        if entry.status is not None
    ]
    cache.keep(files, tree=(root, signature, whole))
    return whole


class _Entry(NamedTuple):
    """One thing below a folder. Links and folders have no status and no signature, files no target."""

    name: str
    place: str
    kind: str
    target: str
    status: os.stat_result | None
    signature: str

    @property
    def identity(self) -> str:
        """What is the same as long as the thing has not changed."""
        return f"{self.name}\0{self.kind}\0{self.target}\0{self.signature}"

    def content(self, hashing: Hashing, kept: tuple[str, str] | None) -> list[Any]:
        """Return what counts of it: a list that begins with its kind."""
        if self.status is None:
            return [self.kind] if self.kind == "folder" else [self.kind, self.target]
        executable = bool(self.status.st_mode & stat.S_IXUSR)
        return ["file", executable, _file_content(self.place, self.status, hashing, kept)]


def _walk(root: str) -> Iterator[_Entry]:
    """Return everything below *root*, named relative to it."""
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        with os.scandir(folder) as found:
            for entry in found:
                name = f"{prefix}{entry.name}"
                if entry.is_symlink():
                    target = os.readlink(entry.path)  # noqa: PTH115 - as text, also where it dangles
                    yield _Entry(name, entry.path, "link", target, None, "")
                elif entry.is_dir():
                    yield _Entry(name, entry.path, "folder", "", None, "")
                    folders.append((f"{name}/", entry.path))
                else:
                    status = entry.stat()
                    yield _Entry(name, entry.path, "file", "", status, _signature(status))


def _file_content(
    place: str, status: os.stat_result, hashing: Hashing, kept: tuple[str, str] | None
) -> str:
    """Return the digest of a file, read unless it was *kept* under the signature that it has now."""
    signature = _signature(status)
    if kept is not None and kept[0] == signature:
        return kept[1]
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise FingerprintError(place, "it is neither a file, a folder nor a link")
    with FileIO(place) as file:
        content = hashing.of_file(file)
        if signature != _signature(os.fstat(file.fileno())):
            raise FingerprintError(place, "it changed while it was read; stop what writes to it")
    return content


def _signature(status: os.stat_result) -> str:
    # The change time cannot be set by a program: a rewrite that restores size and mtime still shows.
    return (
        f"{status.st_dev} {status.st_ino} {status.st_mode} {status.st_size} "
        f"{status.st_mtime_ns} {status.st_ctime_ns}"
    )


# Names of files are bytes; what is no text in them comes back as the same bytes.
_NAMES = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
