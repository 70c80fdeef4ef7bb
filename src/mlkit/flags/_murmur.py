"""MurmurHash3 of many texts of one size at once, with the same bytes before each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["hash_words"]

_C1, _C2, _ADD = 0xCC9E2D51, 0x1B873593, 0xE6546B64
_MASK = 0xFFFFFFFF
_AT_ONCE = 2**16  # words: what fits into a core's cache


def hash_words(prefix: bytes, words: NDArray[np.uint32], size: int) -> NDArray[np.uint32]:
    """Return MurmurHash3 x86_32, seed 0, of *prefix* and each text.

    Args:
        prefix: What comes before each text.
        words: The texts, `(n, k)`, as little-endian words padded with zeros.
        size: Bytes of each text, at least 1 and at most `4 * k`.
    """
    import numpy as np

    words = words[:, : -(-size // 4)]
    hashes = np.empty(len(words), dtype=np.uint32)
    step = max(1, _AT_ONCE // words.shape[1])
    for begin in range(0, len(words), step):
        part = np.array(words[begin : begin + step].T, order="C")  # one text a column
        hashes[begin : begin + step] = _hash(prefix, part, size)
    return hashes


def _hash(prefix: bytes, words: NDArray[np.uint32], size: int) -> NDArray[np.uint32]:
    """Return the hash of each column of *words*, which is written to."""
    import numpy as np

    length, whole = len(prefix) + size, len(prefix) // 4
    blocks = _behind(prefix[4 * whole :], words, size)
    blocks *= np.uint32(_C1)
    _rotate(blocks, 15)
    blocks *= np.uint32(_C2)
    hashed = np.full(blocks.shape[1], _begun(prefix[: 4 * whole]), dtype=np.uint32)
    for index, block in enumerate(blocks, whole):
        hashed ^= block
        if index < length // 4:  # the padded last word is the algorithm's tail
            _rotate(hashed, 13)
            hashed *= np.uint32(5)
            hashed += np.uint32(_ADD)
    hashed ^= np.uint32(length & _MASK)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashed ^= hashed >> np.uint32(shift)
        hashed *= np.uint32(factor)
    hashed ^= hashed >> np.uint32(16)
    return hashed


def _behind(head: bytes, words: NDArray[np.uint32], size: int) -> NDArray[np.uint32]:
    """Return the words of the texts with up to three bytes before each."""
    import numpy as np

    if not head:
        return words
    left = np.uint32(8 * len(head))
    right = np.uint32(32 - 8 * len(head))
    n_words = -(-(len(head) + size) // 4)
    moved = np.empty((n_words, words.shape[1]), dtype=np.uint32)
    np.left_shift(words, left, out=moved[: len(words)])
    moved[len(words) :] = 0
    moved[1:] |= words[: n_words - 1] >> right
    moved[0] |= np.uint32(int.from_bytes(head, "little"))
    return moved


def _rotate(values: NDArray[np.uint32], by: int) -> None:
    import numpy as np

    low = values >> np.uint32(32 - by)
    values <<= np.uint32(by)
    values |= low


def _begun(prefix: bytes) -> int:
    """Return the state of the hash after whole words that all texts share."""
    hashed = 0
    for place in range(0, len(prefix), 4):
        block = int.from_bytes(prefix[place : place + 4], "little") * _C1 & _MASK
        block = ((block << 15) | (block >> 17)) & _MASK
        hashed ^= block * _C2 & _MASK
        hashed = ((hashed << 13) | (hashed >> 19)) & _MASK
        hashed = (hashed * 5 + _ADD) & _MASK
    return hashed
