"""Files and folders by content, remembered by their stat signature where a cache is given."""

from __future__ import annotations

import os
import stat
import sys
from io import FileIO
from operator import attrgetter
from struct import Struct
from typing import TYPE_CHECKING, Any, TypeAlias

from mlkit._digest import digest_bytes
from mlkit.errors import FingerprintError
from mlkit.repro._stat_cache import Found

if TYPE_CHECKING:
    from collections.abc import Callable
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
    if "\0" in str(path):
        raise FingerprintError(str(path), "no name of a file has a null byte in it")
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
        contents = {entry[0]: _content(entry, hashing, None) for entry in _walk(root)}
        return hashing.of_plain(mark("tree", contents))
    cache.refuse_inside(root)
    entries = _walk(root)
    signature = _signature_of(entries)
    if (kept := cache.tree(root)) is not None and kept[0] == signature:
        return kept[1]
    known = cache.known(root)
    contents = {entry[0]: _content(entry, hashing, known.get(entry[1])) for entry in entries}
    whole = hashing.of_plain(mark("tree", contents))
    files = [
        Found(place, _signature(status), status.st_ctime_ns, contents[name][2])
        for name, place, _, _, status in entries
        if status is not None
    ]
    cache.keep(files, tree=(root, signature, whole))
    return whole


# Name, place, kind, target and status of one thing below a folder; links and folders have no status, only links a target.
# A plain tuple: making 20,000 named ones takes as long as a tenth of asking the system for their status.
_Entry: TypeAlias = "tuple[str, str, str, str, os.stat_result | None]"


def _content(entry: _Entry, hashing: Hashing, kept: tuple[str, str] | None) -> list[Any]:
    """Return what counts of an entry: a list that begins with its kind."""
    _, place, kind, target, status = entry
    if status is None:
        return [kind] if kind == "folder" else [kind, target]
    executable = bool(status.st_mode & stat.S_IXUSR)
    return ["file", executable, _file_content(place, status, hashing, kept)]


def _walk(root: str) -> list[_Entry]:
    """Return everything below *root*, named relative to it, in an order that depends on the names alone."""
    entries: list[_Entry] = []
    folders = [("", root)]
    while folders:
        prefix, folder = folders.pop()
        with os.scandir(folder) as found:
            inside = sorted(found, key=_name)
        for entry in inside:
            name, place = prefix + entry.name, entry.path
            if entry.is_file(follow_symlinks=False):
                entries.append((name, place, "file", "", entry.stat(follow_symlinks=False)))
            elif entry.is_dir(follow_symlinks=False):
                entries.append((name, place, "folder", "", None))
                folders.append((f"{name}/", place))
            elif entry.is_symlink():
                target = os.readlink(place)  # noqa: PTH115 - as text, also where it dangles
                entries.append((name, place, "link", target, None))
            else:  # refused later, unless it is gone by then
                entries.append((name, place, "file", "", entry.stat()))
    return entries


_name = attrgetter("name")


def _signature_of(entries: list[_Entry]) -> str:
    """Return what is the same as long as nothing among *entries* has changed."""
    names = [f"{name}\0{kind}\0{target}" for name, _, kind, target, _ in entries]
    stamps = [
        _STAMP(
            status.st_dev,
            status.st_ino,
            status.st_mode,
            status.st_size,
            status.st_mtime_ns & _64_BITS,  # some are before 1970, or after 2262
            status.st_ctime_ns & _64_BITS,
        )
        for _, _, _, _, status in entries
        if status is not None
    ]
    text = "\0".join(names).encode(*_NAMES)
    return digest_bytes(b"%d\0%b%b" % (len(text), text, b"".join(stamps)))


_STAMP = Struct("<6Q").pack
_64_BITS = 2**64 - 1


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
