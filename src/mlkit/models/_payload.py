"""The file of weights on its way in and out: hashed while it is written, and read from a copy that only we can change.

Hashing is the slowest part (1.2 GB/s where the processor helps), so writing and copying happen beside it, in one more
thread, as soon as there is more than fits into a chunk.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from functools import partial
from io import BytesIO, RawIOBase
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar, final

from mlkit.errors import IntegrityError
from mlkit.models._codec import BUILT_IN
from mlkit.models._folder import write_all
from mlkit.models._sealed import unsealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from mlkit.models._folder import Folder
    from mlkit.models._sealed import Sealer
    from mlkit.models._version import Payload

__all__ = ["HashedFile", "in_memory", "open_payload", "private_copy"]

T = TypeVar("T")
_CHUNK = 1 << 20  # what is copied, hashed and written in turn stays in the processor's cache
_PART = 4 << 20
_SMALL = 1 << 20  # below it one more thread costs more than it saves
_MAX_SEND = 1 << 30  # Linux sends no more than 2 GiB at a time


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


@final
class HashedFile(RawIOBase):
    """A new file that is hashed while it is written, from a private copy of what is passed to `write`.

    So the digest is that of the bytes in the file even if another thread changes the tensors meanwhile. It takes two
    chunks of memory, whatever is written. Not thread-safe.

    Args:
        path: A file that does not exist yet.
        sealer: Makes what seals the file out of what writes to it, if it is to be sealed. Digest and size are of what
            is passed to `write`, sealed or not.
    """

    def __init__(
        self,
        path: str,
        sealer: Callable[[Callable[[Any], object]], Sealer | None] = lambda _: None,
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        put = partial(write_all, self._descriptor)
        self._sealer = sealer(put)
        self._put = put if self._sealer is None else self._sealer.write
        self._hash = _sha256()
        self._size = 0
        self._pool: Executor | None = None
        self._spare, self._busy = bytearray(), bytearray()
        self._hashed: Callable[[], None] = lambda: None

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._size

    def write(self, data: Any) -> int:
        """Write all of *data*, and hash it.

        Args:
            data: Any contiguous buffer.
        """
        view = memoryview(data).cast("B")
        size = len(view)
        if self._pool is None and size <= _SMALL:
            content = bytes(view)
            self._hash.update(content)
            self._put(content)
        else:
            if self._pool is None:
                self._pool = _one_thread()
                self._spare, self._busy = bytearray(_CHUNK), bytearray(_CHUNK)
            for begin in range(0, size, _CHUNK):
                self._write_chunk(self._pool, view[begin : begin + _CHUNK])
        self._size += size
        return size

    def settle(self) -> tuple[str, int]:
        """Make the file durable and read-only; nothing is written after that.

        Returns:
            Its digest and its size in bytes.
        """
        self._hashed()
        if self._sealer is not None:
            self._sealer.finish()
        facts = os.fstat(self._descriptor)
        os.fchmod(self._descriptor, stat.S_IMODE(facts.st_mode) & ~0o222)
        os.fsync(self._descriptor)
        return f"sha256:{self._hash.hexdigest()}", self._size

    def close(self) -> None:
        """Close the file. Idempotent."""
        if not self.closed:
            if self._pool is not None:
                self._pool.shutdown()
            os.close(self._descriptor)
        super().close()

    def _write_chunk(self, pool: Executor, chunk: memoryview) -> None:
        size = len(chunk)
        copy = memoryview(self._spare)[:size]
        copy[:] = chunk
        self._hashed()  # of the chunk before; its buffer is free now
        self._hashed = _beside(pool, self._hash.update, copy)
        self._spare, self._busy = self._busy, self._spare
        self._put(copy)


def open_payload(folder: Folder, payload: Payload) -> IO[bytes]:
    """Return a private copy of the weights of a version after checking it.

    Args:
        folder: The store.
        payload: What the document says of them.

    Raises:
        FileNotFoundError: If they are not there.
        SealError: If they are sealed, and not with a key that there is.
        IntegrityError: If they are something else.
    """
    descriptor, relative, sealed = folder.open_blob(payload.digest)
    try:
        size = payload.n_bytes if sealed else os.fstat(descriptor).st_size
        if size != payload.n_bytes:  # a swapped file is refused before it is read
            expected = f"{payload.digest} of {payload.n_bytes} bytes"
            raise IntegrityError(folder.path(relative), expected=expected, got=f"{size} bytes")
        # The other formats of ours need all bytes at once, which a buffer gives without another copy.
        is_mapped = payload.format in {"torch", "numpy"} or payload.format not in BUILT_IN
        if sealed:
            frames = unsealed(descriptor, folder.keys, folder.path(relative))
            file, got = _unsealed_copy(frames, size, mapped=is_mapped)
        else:
            file, got = private_copy(descriptor, size, mapped=is_mapped)
    finally:
        os.close(descriptor)
    if got != payload.digest:
        file.close()
        raise IntegrityError(folder.path(relative), expected=payload.digest, got=got)
    return file


def private_copy(descriptor: int, n_bytes: int, *, mapped: bool = True) -> tuple[IO[bytes], str]:
    """Return a file of our own with the first *n_bytes* of another, and its digest.

    What was hashed is what will be read, whoever changes the other file meanwhile. On Linux the copy is a file in
    memory that can be mapped, so that tensors need no second one; elsewhere, and if it is small, a buffer.

    Args:
        descriptor: An open file.
        n_bytes: Its size.
        mapped: Whether a file in memory is wanted.
    """
    if mapped and n_bytes > _SMALL and (copy := _memory_file()) is not None:
        with ExitStack() as stack:
            file = stack.enter_context(os.fdopen(copy, "rb"))
            digest = _sent(descriptor, copy, n_bytes)
            file.seek(0)
            stack.pop_all()
            return file, digest
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as source:
        source.seek(0)
        content = _all(source, n_bytes)
    hashed = _sha256()
    hashed.update(content)
    return BytesIO(content), f"sha256:{hashed.hexdigest()}"


def _unsealed_copy(frames: Iterator[bytes], n_bytes: int, *, mapped: bool) -> tuple[IO[bytes], str]:
    """Return a file of our own with what frames add up to, and its digest; one frame is opened while one is hashed."""
    copy = _memory_file() if mapped and n_bytes > _SMALL else None
    hashed = _sha256()
    with ExitStack() as stack:
        file: IO[bytes] = BytesIO() if copy is None else os.fdopen(copy, "r+b")
        stack.enter_context(file)
        pool = stack.enter_context(_one_thread()) if n_bytes > _SMALL else None
        coming: Callable[[], object] | None = None
        for frame in frames:
            file.write(frame)
            if coming is not None:
                coming()
            if pool is None:
                hashed.update(frame)
            else:
                coming = _beside(pool, hashed.update, frame)
        if coming is not None:
            coming()
        file.flush()
        file.seek(0)
        stack.pop_all()
        if pool is not None:
            pool.shutdown()
    return file, f"sha256:{hashed.hexdigest()}"


def in_memory(file: IO[bytes]) -> str | None:
    """Return a path under which a file in memory can be mapped while it is open, or None if it is a buffer.

    Args:
        file: What `private_copy` returned.
    """
    return None if isinstance(file, BytesIO) else f"/proc/self/fd/{file.fileno()}"


def _memory_file() -> int | None:
    if not hasattr(os, "memfd_create") or not hasattr(os, "sendfile"):
        return None
    try:
        copy = os.memfd_create("mlkit", os.MFD_CLOEXEC)
    except OSError:  # forbidden, as some sandboxes do
        return None
    if os.path.exists(f"/proc/self/fd/{copy}"):  # noqa: PTH110 - as all paths here
        return copy
    os.close(copy)
    return None


def _sent(source: int, copy: int, n_bytes: int) -> str:
    """Copy within the kernel, one chunk ahead of the hash."""
    from mmap import PROT_READ, mmap

    def send(begin: int) -> int:
        """Copy the next chunk, and return where it ends."""
        sent = os.sendfile(copy, source, begin, min(_PART, n_bytes - begin))
        return begin + sent if sent else n_bytes  # it was cut off meanwhile: zeros, another digest

    hashed = _sha256()
    os.ftruncate(copy, n_bytes)
    with _one_thread() as pool, mmap(copy, n_bytes, prot=PROT_READ) as mapped:
        begin, coming = 0, _beside(pool, send, 0)
        while begin < n_bytes:
            end = coming()
            if end < n_bytes:
                coming = _beside(pool, send, end)
            with memoryview(mapped) as whole, whole[begin:end] as chunk:
                hashed.update(chunk)
            begin = end
    return f"sha256:{hashed.hexdigest()}"


def _all(source: Any, n_bytes: int) -> bytes:
    parts = []
    while n_bytes and (part := source.read(min(n_bytes, _MAX_SEND))):
        parts.append(part)
        n_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _sha256() -> _Hash:
    from hashlib import sha256

    return sha256()


def _one_thread() -> Executor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1, thread_name_prefix="mlkit-models")


def _beside(pool: Executor, task: Callable[..., T], *args: Any) -> Callable[[], T]:
    """Start a task, and return what waits for its result."""
    try:
        return pool.submit(task, *args).result
    except RuntimeError:  # an interpreter that shuts down starts no thread
        result = task(*args)
        return lambda: result
