"""The file of one process: whole frames appended to it, and what happens when the disk does not play along."""

from __future__ import annotations

import fcntl
import os
from errno import ENOSPC
from typing import TYPE_CHECKING, final

from mlkit._clock import current
from mlkit.tracking import _frames
from mlkit.tracking._folder import sync_path

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Writer"]

_SYNC_EVERY = {"record": 0.0, "group": 0.05}
_SEGMENT = 64 << 20  # bytes after which a writer goes on in a new file


@final
class Writer:
    """Appends to this process's own file of a run, one `write` a call, and goes on in a new one when it is long.

    A frame that was written in part is taken back, because no reader would find anything behind it. What fails is
    counted, never raised. Not thread-safe: whoever calls holds the journal's lock.

    Args:
        folder: Where journal files are.
        durability: `"process"`, `"group"` or `"record"`.
    """

    __slots__ = (
        "_failing", "_file", "_files", "_folder", "_opened", "_removed", "_size", "_sync_every", "_synced",
        "epoch", "lost", "news", "path", "records",
    )  # fmt: skip

    path: Path | None
    epoch: int
    records: int
    lost: int
    news: list[tuple[str, dict[str, str | float]]]

    def __init__(self, folder: Path, durability: str) -> None:
        self.path = None
        self.epoch = 0
        """The number of the file, counted from 1; 0 while there is none to write to."""
        self.records = 0
        """Records that were written to files it can still see."""
        self.lost = 0
        """Records that could not be written."""
        self.news = []
        """What is to be told, once no lock is held."""
        self._folder = folder
        self._sync_every = _SYNC_EVERY.get(durability)
        self._synced = 0.0
        self._file = -1
        self._files = self._opened = self._size = 0
        self._failing = self._removed = False

    @property
    def removed(self) -> bool:
        """Whether somebody has removed the file, and what was written to it is nowhere; as it was when it was closed."""
        if self._file >= 0:
            self._removed = not os.fstat(self._file).st_nlink
        return self._removed

    def append(self, data: bytes, records: int) -> bool:
        """Append frames, and return whether they were written."""
        try:
            written = os.write(self._file, data)
            if written != len(data):
                self._take_back(written)
                raise OSError(ENOSPC, "no space left on device, or the file may not grow")
        except OSError as error:
            self.failed(error, records)
            return False
        self.records += records
        self._size += written
        if self._size >= _SEGMENT:
            self._rotate()
        if self._failing:
            self._failing = False
            self.news.append(("tracking.journal.recovered", {"lost": self.lost}))
        if self._sync_every is not None:
            now = current().monotonic()
            if now - self._synced >= self._sync_every:
                self.sync()
                self._synced = now
        return True

    def ready(self, records: int) -> bool:
        """Return whether there is a file to append to; if there is none, try to open one."""
        if self._file < 0:
            try:
                self.open()
            except OSError as error:
                self.failed(error, records)
                return False
        return True

    def open(self) -> None:
        """Begin a new file.

        Raises:
            OSError: If that cannot be done; the old one is kept.
        """
        # Readers go by the names' order, also when the clock has gone back since the last file.
        opened = max(int(current().time() * 1e6), self._opened + 1)
        stem = f"{opened:016d}-{os.getpid()}-{os.urandom(3).hex()}"
        fresh, path = self._folder / f"{stem}.new", self._folder / f"{stem}.mkj"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            # Nobody may see the file without its lock, or its writer would be taken for dead.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.write(descriptor, _frames.MAGIC) != len(_frames.MAGIC):
                raise OSError(ENOSPC, "no space left on device")
            fresh.rename(path)
            if self._sync_every is not None:
                sync_path(self._folder)
        except OSError:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        self.drop()
        self._file, self.path = descriptor, path
        self._size, self._opened = len(_frames.MAGIC), opened
        self._files += 1
        self.epoch = self._files

    def sync(self) -> None:
        """Bring to the disk what has been written."""
        if self._file >= 0:
            try:
                _fdatasync(self._file)
            except OSError as error:
                self.failed(error, 0)

    def close(self) -> None:
        """Let go of the file, on the disk if the durability says so."""
        if self._sync_every is not None:
            self.sync()
        self.drop()

    def drop(self) -> None:
        """Let go of the file."""
        _ = self.removed
        descriptor, self._file, self.epoch = self._file, -1, 0
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError as error:
                self.failed(error, 0)

    def begin_in_child(self) -> None:
        """After a fork: the file and what was counted are the parent's."""
        self.news.clear()
        self.records = self.lost = 0
        self.path = None
        self.drop()
        self._removed = False

    def failed(self, error: Exception, records: int) -> None:
        """Note that records were lost."""
        self.lost += records
        if not self._failing:
            self._failing = True
            fields: dict[str, str | float] = {"error": f"{type(error).__name__}: {error}"}
            self.news.append(("tracking.journal.failed", fields))

    def _rotate(self) -> None:
        """Go on in a new file; one that cannot be made now is tried again a segment later."""
        if self._sync_every is not None:
            self.sync()  # nobody comes back to the old one
        try:
            self.open()
        except OSError:
            self._size = 0

    def _take_back(self, written: int) -> None:
        """Remove a part of a frame, behind which no reader would find anything."""
        try:
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
        except OSError:
            self.drop()


_fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync
