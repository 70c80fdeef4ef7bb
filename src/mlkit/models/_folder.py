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
    from collections.abc import Callable, Iterator

    from mlkit.models._sealed import KeyProvider, Sealer

__all__ = [
    "READABLE",
    "WRITABLE",
    "Folder",
    "blob_path",
    "checked_digest",
    "sealed_path",
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
_PIECE = 4 << 20
_SEAL = 1 << 10  # what a sealed file has at most beside its frames
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO must not block us


def blob_path(digest: str) -> str:
    """Return where the content of *digest* lies, relative to the store.

    Args:
        digest: A whole digest, checked by whoever read it.
    """
    algorithm, _, body = digest.partition(":")
    return f"blobs/{algorithm}/{body[:2]}/{body}"


def sealed_path(digest: str) -> str:
    """Return where the content of *digest* lies sealed, relative to the store.

    Args:
        digest: A whole digest of the plaintext, checked by whoever read it.
    """
    return "sealed" + blob_path(digest).removeprefix("blobs")


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
        keys: Where the keys of sealed files come from; what is written from now on is sealed. Not pickled.
    """

    __slots__ = ("keys", "root", "timeout")
    root: str
    timeout: float | None
    keys: KeyProvider | None

    def __init__(
        self,
        root: str,
        *,
        timeout: float | None = None,
        keys: KeyProvider | None = None,
    ) -> None:
        self.root, self.timeout, self.keys = root, timeout, keys

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

    def sealer(self, put: Callable[[bytes], object]) -> Sealer | None:
        """Return what seals a new file of weights or a document, or None if they are kept as they are.

        Args:
            put: Writes bytes to the file.

        Raises:
            ConfigurationError: If the store has sealed files, and this one would be readable for everybody.
        """
        from mlkit.models._sealed import Sealer

        if self.keys is not None:
            return Sealer(put, self.keys)
        if os.path.isdir(self.path("sealed")):  # noqa: PTH112 - as above
            expected = "the provider of its keys for a store that has sealed versions"
            raise ConfigurationError("ModelStore(keys=...)", None, expected)
        return None

    def adopt(self, temporary: str, digest: str, *, sealed: bool = False) -> None:
        """Move a settled temporary file to its blob. A blob that is there already is replaced: it may be damaged.

        Args:
            temporary: Its path.
            digest: The digest of its content.
            sealed: Whether the content is sealed in it.
        """
        target = sealed_path(digest) if sealed else blob_path(digest)
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

    def open_blob(self, digest: str) -> tuple[int, str, bool]:
        """Open the file with the content of a digest.

        Args:
            digest: What the content must be; it is not looked at.

        Returns:
            The descriptor, the path relative to the store, and whether the content is sealed.

        Raises:
            FileNotFoundError: If it is not there.
            IntegrityError: If it is no plain file.
        """
        relative = blob_path(digest)
        try:
            return self.open(relative), relative, False
        except FileNotFoundError:
            sealed = sealed_path(digest)
            with suppress(FileNotFoundError):
                return self.open(sealed), sealed, True
            raise

    def pieces(self, digest: str) -> Iterator[bytes]:
        """Yield the content of a blob, piece by piece. What comes is not checked before all of it has come.

        Args:
            digest: What it must be.

        Raises:
            FileNotFoundError: If it is not there.
            SealError: If it is sealed, and not with a key that there is.
            IntegrityError: If it is something else; at the latest after the last piece.
        """
        from hashlib import sha256

        descriptor, relative, sealed = self.open_blob(digest)
        path, hasher = self.path(relative), sha256()
        try:
            for piece in self._pieces(descriptor, path, sealed=sealed):
                hasher.update(piece)
                yield piece
        finally:
            os.close(descriptor)
        if (got := f"sha256:{hasher.hexdigest()}") != digest:
            raise IntegrityError(path, expected=digest, got=got)

    def check_blob(self, digest: str) -> None:
        """Raise if the content of a blob is not what its digest says.

        Args:
            digest: What it must be.

        Raises:
            FileNotFoundError: If it is not there.
            IntegrityError: If it is something else.
        """
        for _ in self.pieces(digest):
            pass

    def read_blob(self, digest: str, *, n_bytes: int | None = None, limit: int = 0) -> bytes:
        """Return the content of a blob after checking it against its digest.

        Args:
            digest: What it must be.
            n_bytes: The size it must have, if that is known: a swapped file is refused before it is read.
            limit: The largest size to read, in bytes, where the size is not known.

        Raises:
            FileNotFoundError: If it is not there.
            SealError: If it is sealed, and not with a key that there is.
            IntegrityError: If it is something else.
        """
        descriptor, relative, sealed = self.open_blob(digest)
        try:
            size = os.fstat(descriptor).st_size
            if n_bytes is not None and size != n_bytes and not sealed:
                raise IntegrityError(
                    self.path(relative),
                    expected=f"{digest} of {n_bytes} bytes",
                    got=f"{size} bytes",
                )
            most = (n_bytes if n_bytes is not None else limit) + sealed * _SEAL
            if size > most + (most >> 10) * sealed:
                raise IntegrityError(
                    self.path(relative), expected=f"at most {limit} bytes", got=f"{size} bytes"
                )
            pieces = list(self._pieces(descriptor, self.path(relative), sealed=sealed))
        finally:
            os.close(descriptor)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if (got := digest_bytes(data)) != digest:
            raise IntegrityError(self.path(relative), expected=digest, got=got)
        return data

    def _pieces(self, descriptor: int, path: str, *, sealed: bool) -> Iterator[bytes]:
        if sealed:
            from mlkit.models._sealed import unsealed

            yield from unsealed(descriptor, self.keys, path)
            return
        with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            # A small file in one piece, which is what most are.
            while piece := file.read(min(max(size, 1), _PIECE)):
                yield piece

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
