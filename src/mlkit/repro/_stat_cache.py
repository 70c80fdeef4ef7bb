"""What files contained when they were last read, by their stat signature, in one SQLite file."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, final

from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable
    from os import PathLike

    from mlkit.repro._hashing import Hashing

__all__ = ["Found", "StatCache"]

T = TypeVar("T")

# Says in the header of the file that it is ours; "mlkf" in ASCII
_APPLICATION, _VERSION = 0x6D6C6B66, 1
# A file that was changed this short before it was read could change again within one tick of the file system's clock
# and keep its signature; such files are read again. Two seconds is the tick of FAT, the coarsest there is.
_TICK_NS = 2 * 10**9
_SCHEMA = (
    """CREATE TABLE content (algorithm TEXT, place TEXT, signature TEXT, digest TEXT,
    PRIMARY KEY (algorithm, place)) WITHOUT ROWID""",
    """CREATE TABLE tree (algorithm TEXT, root TEXT, signature TEXT, digest TEXT,
    PRIMARY KEY (algorithm, root)) WITHOUT ROWID""",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)


class Found(NamedTuple):
    """A file that was read: where, its stat signature, when it was last changed in nanoseconds, its digest."""

    place: str
    signature: str
    changed: int
    digest: str


@final
class StatCache:
    """The cache of one call. Several processes may use one file; one that is locked too long is not used.

    Whoever can write the file can make an unchanged file seem to have another content.
    """

    __slots__ = ("_algorithm", "_path", "_started")

    def __init__(self, path: str | PathLike[str], hashing: Hashing) -> None:
        try:
            self._path = Path(path).absolute()
        except TypeError:
            raise self._refused(path, "the path of a file") from None
        self._algorithm = hashing.name
        # Not the clock of the context: it is compared with the file system's.
        self._started = time.time_ns()
        if not self._path.parent.is_dir():
            raise self._refused(path, "a file in a folder that exists")

    @staticmethod
    def _refused(value: object, allowed: str) -> ConfigurationError:
        return ConfigurationError("fingerprint(cache=...)", value, allowed)

    def refuse_inside(self, root: str) -> None:
        """Raise if the cache lies in the folder whose content is asked for, which it would change."""
        if self._path.is_relative_to(root):
            raise self._refused(str(self._path), f"a file outside {root}")

    def tree(self, root: str) -> tuple[str, str] | None:
        """Return signature and digest of a whole folder, if they are known."""
        asked = "SELECT signature, digest FROM tree WHERE algorithm = ? AND root = ?"
        rows = self._rows(asked, (self._algorithm, root))
        return rows[0] if rows else None

    def known(self, root: str) -> dict[str, tuple[str, str]]:
        """Return signature and digest of the file *root*, or of each file below the folder *root*."""
        asked = (
            "SELECT place, signature, digest FROM content "
            "WHERE algorithm = ? AND (place = ? OR (place > ? AND place < ?))"
        )
        rows = self._rows(asked, (self._algorithm, root, f"{root}/", f"{root}0"))  # "0" follows "/"
        return {place: (signature, digest) for place, signature, digest in rows}

    def keep(self, found: Iterable[Found], tree: tuple[str, str, str] | None = None) -> None:
        """Remember what was read, but for what changed only just now.

        Args:
            found: The files.
            tree: The folder that holds all of them, the signature of all in it, and its digest.
        """
        found = list(found)
        settled = [file for file in found if file.changed < self._started - _TICK_NS]
        rows = [(self._algorithm, file.place, file.signature, file.digest) for file in settled]

        def write(db: sqlite3.Connection) -> None:
            with db:
                if tree is not None:
                    root = tree[0]
                    gone = "DELETE FROM content WHERE algorithm = ? AND place > ? AND place < ?"
                    db.execute(gone, (self._algorithm, f"{root}/", f"{root}0"))
                    if len(settled) == len(found):
                        kept = "REPLACE INTO tree VALUES (?, ?, ?, ?)"
                        db.execute(kept, (self._algorithm, *tree))
                db.executemany("REPLACE INTO content VALUES (?, ?, ?, ?)", rows)

        self._try(write)

    def _rows(self, asked: str, given: tuple[str, ...]) -> list[Any]:
        return self._try(lambda db: db.execute(asked, given).fetchall()) or []

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do something with the file, or nothing where it cannot be read or written for now."""
        import sqlite3

        try:
            with closing(sqlite3.connect(self._path)) as db:
                self._check(db)
                return work(db)
        except (sqlite3.OperationalError, UnicodeEncodeError):
            return None  # locked, read-only, full; or the name of a file is no text
        except sqlite3.DatabaseError as error:
            raise self._refused(str(self._path), "a cache made by fingerprint") from error

    def _check(self, db: sqlite3.Connection) -> None:
        """Raise unless the file is a cache of this version; make it one if it is new."""
        if _header(db) == (_APPLICATION, _VERSION):
            return
        db.execute("BEGIN IMMEDIATE")  # so that of several processes one makes it
        application, version = _header(db)
        if (application, version) != (_APPLICATION, _VERSION):
            if application == _APPLICATION:
                raise self._refused(
                    str(self._path), "a cache of this version of mlkit, or a new file"
                )
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise self._refused(str(self._path), "a cache made by fingerprint, or a new file")
            for statement in _SCHEMA:
                db.execute(statement)
        db.commit()


def _header(db: sqlite3.Connection) -> tuple[int, int]:
    application = db.execute("PRAGMA application_id").fetchone()[0]
    return application, db.execute("PRAGMA user_version").fetchone()[0]
