"""The files of a store: written whole or not at all, read with their digest checked, never outside the folder."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, final

from mlkit._digest import digest_bytes, digest_file
from mlkit.errors import ConfigurationError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlkit._clock import Clock

__all__ = [
    "READABLE",
    "WRITABLE",
    "Folder",
    "blob_path",
    "checked_digest",
    "write_all",
    "write_file",
]

READABLE, WRITABLE = "a folder that can be read", "a folder that can be written"

# What the path of a store or the rights on it can be wrong by; a full or a broken disk is not a wrong argument.
_UNFIT = frozenset(
    [
        errno.EACCES,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    ]
)
_PIECE = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block us


def blob_path(digest: str) -> str:
    """Return where the content of *digest* lies, relative to the store.

    Args:
        digest: A whole digest, checked by whoever read it.
    """
    algorithm, _, body = digest.partition(":")
    return f"blobs/{algorithm}/{body[:2]}/{body}"


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write *data* to the end, however many calls it takes.

    Args:
        descriptor: An open file.
        data: What to write.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_file(path: str, data: bytes) -> None:
    """Write *data* to a file that does not exist yet.

    Args:
        path: The file.
        data: What to write.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


@final
class Folder:
    """A folder with content-addressed blobs and one lock.

    No symbolic link below the folder is followed, so that a store that came from elsewhere cannot make this process
    read or write outside it. Picklable; safe for threads and forks (it holds no state but its path).

    Args:
        root: The folder; it may be a symbolic link itself, and need not exist.
        timeout: How long to wait for the lock, in seconds; None for as long as it takes.
        clock: What time is told by while waiting.
    """

    __slots__ = ("clock", "root", "timeout")
    root: str

    def __init__(
        self, root: str, *, timeout: float | None = None, clock: Clock | None = None
    ) -> None:
        self.root, self.timeout, self.clock = root, timeout, clock

    def __reduce__(self) -> tuple[type[Folder], tuple[str]]:
        return Folder, (self.root,)

    def path(self, relative: str) -> str:
        """Return the path of a file of the store.

        Args:
            relative: Its path below the root.
        """
        return os.path.join(self.root, relative)  # noqa: PTH118 - paths are on the way of every load

    @contextmanager
    def fit(self, expected: str) -> Iterator[None]:
        """Report a folder that cannot be used as what it is, a wrong argument, if the block finds that out.

        What is wrong with one file of one model, and the errors of other paths, come through.

        Args:
            expected: What the folder must be for the block.

        Raises:
            ConfigurationError: If the path or the rights on it are wrong.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in _UNFIT or not self._stands_for_all(error.filename):
                raise
            raise ConfigurationError(
                "ModelStore(path)", self.root, expected, hint=str(error.strerror)
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store against every other writer, in this process and others, while the block runs.

        Raises:
            StoreLockedError: If another writer held it for longer than the timeout.
        """
        from mlkit.models._lock import locked

        with self.fit(WRITABLE):
            self.make("")
        with locked(self):
            yield

    def make(self, relative: str) -> None:
        """Create a folder of the store, and those above it, durably.

        Args:
            relative: Its path below the root; empty for the root.
        """
        if not relative:
            _make_root(self.root)
            return
        parts = relative.split("/")
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            try:
                os.mkdir(self.path(folder))  # noqa: PTH102 - as above
            except FileExistsError:
                self._refuse_link(folder)
            else:
                self.sync("/".join(parts[: depth - 1]))

    def temporary(self) -> str:
        """Return a path, on the file system of the store, that nobody else has."""
        self.make("")
        self.make("tmp")
        return self.path(f"tmp/{os.getpid()}-{os.urandom(8).hex()}")

    def settle(self, temporary: str) -> tuple[str, int]:
        """Make a finished temporary file durable and read-only.

        Args:
            temporary: Its path.

        Returns:
            Its digest and its size in bytes.
        """
        descriptor = os.open(temporary, _READ)
        try:
            facts = os.fstat(descriptor)
            os.fchmod(descriptor, stat.S_IMODE(facts.st_mode) & ~0o222)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return digest_file(temporary), facts.st_size

    def adopt(self, temporary: str, digest: str) -> None:
        """Move a settled temporary file to its blob. A blob that is there already is replaced: it may be damaged.

        Args:
            temporary: Its path.
            digest: Its digest.
        """
        target = blob_path(digest)
        folder = target.rpartition("/")[0]
        self.make(folder)
        os.replace(temporary, self.path(target))  # noqa: PTH105 - as above
        self.sync(folder)

    def remove(self, relative: str) -> None:
        """Remove a file of the store if it is there.

        Args:
            relative: Its path below the root.
        """
        self._refuse_links_above(relative)
        try:
            os.unlink(self.path(relative))  # noqa: PTH108 - as above
        except FileNotFoundError:
            return

    def sync(self, relative: str) -> None:
        """Make the names in a folder of the store durable.

        Args:
            relative: Its path below the root.
        """
        _sync(self.path(relative))

    def open(self, relative: str, flags: int = _READ) -> int:
        """Open a regular file of the store and return its descriptor.

        Args:
            relative: Its path below the root.
            flags: As for `os.open`.

        Raises:
            FileNotFoundError: If it is not there.
            IntegrityError: If it, or a folder above it, is a link or anything but a plain file.
        """
        self._refuse_links_above(relative)
        path = self.path(relative)
        try:
            descriptor = os.open(path, flags, 0o666)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENXIO, errno.EISDIR}:
                raise IntegrityError(path, expected="a plain file", got="something else") from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise IntegrityError(path, expected="a plain file", got="something else")
        return descriptor

    def read_blob(self, digest: str, *, n_bytes: int | None = None, limit: int = 0) -> bytes:
        """Return the content of a blob after checking it against its digest.

        Args:
            digest: What it must be.
            n_bytes: The size it must have, if that is known: a swapped file is refused before it is read.
            limit: The largest size to read, in bytes, where the size is not known.

        Raises:
            FileNotFoundError: If it is not there.
            IntegrityError: If it is something else.
        """
        relative = blob_path(digest)
        with os.fdopen(self.open(relative), "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if n_bytes is not None and size != n_bytes:
                raise IntegrityError(
                    self.path(relative),
                    expected=f"{digest} of {n_bytes} bytes",
                    got=f"{size} bytes",
                )
            if n_bytes is None and size > limit:
                raise IntegrityError(
                    self.path(relative), expected=f"at most {limit} bytes", got=f"{size} bytes"
                )
            data = file.readall() or b""
        if (got := digest_bytes(data)) != digest:
            raise IntegrityError(self.path(relative), expected=digest, got=got)
        return data

    def check_blob(self, digest: str, *, n_bytes: int) -> None:
        """Raise if the content of a blob is not what its digest says; it is read piece by piece.

        Args:
            digest: What it must be.
            n_bytes: The size it must have.

        Raises:
            FileNotFoundError: If it is not there.
            IntegrityError: If it is something else.
        """
        from hashlib import sha256

        relative, hasher, size = blob_path(digest), sha256(), 0
        with os.fdopen(self.open(relative), "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                hasher.update(piece)
                size += len(piece)
        got = f"sha256:{hasher.hexdigest()}"
        if got != digest or size != n_bytes:
            raise IntegrityError(self.path(relative), expected=digest, got=got)

    def listing(self, relative: str) -> list[str]:
        """Return the names in a folder of the store, sorted; none if it is not there.

        Args:
            relative: Its path below the root.
        """
        self._refuse_links_above(f"{relative}/-")
        try:
            return sorted(os.listdir(self.path(relative)))  # noqa: PTH208 - as above
        except FileNotFoundError:
            return []

    def _stands_for_all(self, path: object) -> bool:
        """Return whether *path* is the folder, one above it, or one that no call does without."""
        if not isinstance(path, str):
            return False
        if self.root == path or self.root.startswith(os.path.join(path, "")):  # noqa: PTH118 - as above
            return True
        top, _, rest = path.removeprefix(self.path("")).partition("/")
        return path.startswith(self.path("")) and (not rest or top == "tmp")

    def _refuse_links_above(self, relative: str) -> None:
        parts = relative.split("/")
        for depth in range(1, len(parts)):
            self._refuse_link("/".join(parts[:depth]))

    def _refuse_link(self, folder: str) -> None:
        path = self.path(folder)
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "something else"
            raise IntegrityError(path, expected="a folder of the store", got=kind)


def _make_root(path: str) -> None:
    if os.path.isdir(path):  # noqa: PTH112 - as above
        return
    parent = os.path.dirname(path)  # noqa: PTH120 - as above
    _make_root(parent)
    try:
        os.mkdir(path)  # noqa: PTH102 - as above
    except FileExistsError:
        if not os.path.isdir(path):  # noqa: PTH112 - as above
            raise
    with suppress(PermissionError):  # one may add to a folder that one may not read
        _sync(parent)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checked_digest(value: object) -> str:
    """Return *value* if it is a whole digest, so that it may become a path.

    Args:
        value: What a file says.
    """
    # A history has two for each version, and this is ten times as fast as looking at each character.
    if not isinstance(value, str) or not value.startswith("sha256:") or len(value) != 71:
        raise ValueError("not a digest")
    body = value[7:]
    if bytes.fromhex(body).hex() != body:
        raise ValueError("not a digest")
    return value
