"""Zip archives are looked at before anything reads them: what they say they hold must be what a model can hold."""

from __future__ import annotations

from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

__all__ = ["BadZipFile", "problem_of_archive"]

# What code and sparse matrices come to, and far from what an archive can be made to.
_UNPACKED, _RATIO = 256 << 20, 10
_MAX_MEMBERS = 1_000_000


def problem_of_archive(file: IO[bytes]) -> str | None:
    """Return what is wrong with an archive, or None if it may be read. Nothing in it is unpacked.

    Stored members cannot together be longer than the file, so that entries which overlap are found; compressed ones
    may come to 256 MiB and ten times the file.

    Args:
        file: The archive; its place is kept.
    """
    place, size = file.tell(), file.seek(0, 2)
    try:
        with ZipFile(file) as archive:
            members = archive.infolist()
    except (BadZipFile, ValueError, NotImplementedError, OSError, OverflowError) as error:
        return f"no zip archive that can be read ({error})"
    finally:
        file.seek(place)
    if len(members) > _MAX_MEMBERS:
        return f"an archive of {len(members)} files"
    stored = unpacked = 0
    seen: set[str] = set()
    for member in members:
        if _escapes(member.filename):
            return f"an archive with a file that is named {member.filename!r}"
        if member.filename in seen:
            return f"an archive with two files that are named {member.filename!r}"
        seen.add(member.filename)
        if member.flag_bits & 0x1 or member.compress_type not in {ZIP_STORED, ZIP_DEFLATED}:
            return f"an archive with a file {member.filename!r} that is encrypted or compressed unusually"
        if member.compress_type == ZIP_STORED:
            stored += member.file_size
        else:
            unpacked += member.file_size
    if stored > size or unpacked > _UNPACKED + _RATIO * size:
        return f"an archive of {size} bytes that says it holds {stored + unpacked}"
    return None


def _escapes(name: str) -> bool:
    return not name or name[0] in "/\\" or "\\" in name or ":" in name or ".." in name.split("/")
