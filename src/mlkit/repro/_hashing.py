"""The two hashes that a fingerprint can be made with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mlkit._arguments import one_of
from mlkit._digest import canonical
from mlkit._optional import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from io import FileIO

__all__ = ["Algorithm", "Hashing", "hashing"]

Algorithm = Literal["sha256", "blake3"]
_PIECE = 1 << 18  # bytes; of a file, at a time


class Hashing(NamedTuple):
    """One hash: of bytes, of pieces of them, of an open file, of plain data."""

    name: str
    of_bytes: Callable[[Any], str]
    of_pieces: Callable[[Iterable[Any]], str]
    of_file: Callable[[FileIO], str]

    def of_plain(self, value: object) -> str:
        """Return the hash of the canonical encoding of plain data.

        Raises:
            DigestError: If something in *value* has no canonical encoding.
        """
        return self.of_bytes(canonical(value))


def hashing(algorithm: Algorithm) -> Hashing:
    """Return the hash of that name.

    Raises:
        ConfigurationError: If there is none.
        MissingDependencyError: If its package is not installed.
    """
    one_of("fingerprint(algorithm=...)", algorithm, ("sha256", "blake3"))
    if algorithm == "sha256":
        from hashlib import sha256

        def new() -> Any:
            return sha256()
    else:
        new = require("blake3", extra="blake3", feature="fingerprint(algorithm='blake3')").blake3

    def of_pieces(pieces: Iterable[Any]) -> str:
        hasher = new()
        for piece in pieces:
            hasher.update(piece)
        return f"{algorithm}:{hasher.hexdigest()}"

    return Hashing(
        algorithm,
        of_bytes=lambda data: of_pieces([data]),
        of_pieces=of_pieces,
        of_file=lambda file: of_pieces(_pieces(file)),
    )


def _pieces(file: FileIO) -> Iterator[bytes]:
    while data := file.read(_PIECE):
        yield data
