"""What NumPy's bit generators ask for their key, answered by one of our words."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

__all__ = ["NumpySeed", "rekey_philox"]


@final
class NumpySeed:
    """A seed sequence, as `numpy.random.bit_generator.ISpawnableSeedSequence` has it, over 16 bytes.

    `Philox(NumpySeed(word))` is `Philox(key=word)`. Children depend on the word and their number alone.
    """

    __slots__ = ("_spawned", "_word")

    def __init__(self, word: bytes, spawned: int = 0) -> None:
        _register()
        self._word, self._spawned = word, spawned

    def generate_state(self, n_words: int, dtype: DTypeLike = "uint32") -> np.ndarray[Any, Any]:
        """Return *n_words* words: the key itself, and beyond it a stretch of SHAKE-256."""
        import numpy as np

        if dtype is np.uint64 and n_words == 2:  # what Philox asks for
            return np.frombuffer(self._word, "<u8")
        kind = np.dtype(dtype)
        data = self._word
        if n_words * kind.itemsize > len(data):
            from hashlib import shake_256

            data += shake_256(data).digest(n_words * kind.itemsize - len(data))
        return np.frombuffer(data, kind.newbyteorder("<"), n_words).astype(kind)

    def spawn(self, n_children: int) -> list[NumpySeed]:
        """Return the next *n_children* children."""
        from hashlib import blake2b

        first, self._spawned = self._spawned, self._spawned + n_children
        return [
            NumpySeed(blake2b(b"child%d" % number, key=self._word, digest_size=16).digest())
            for number in range(first, self._spawned)
        ]

    def __reduce__(self) -> tuple[Any, ...]:  # generators pickle with their seed sequence
        return NumpySeed, (self._word, self._spawned)


def rekey_philox(bits: Any, word: bytes) -> None:
    """Start a `numpy.random.Philox` over as `Philox(key=word)`, in place."""
    bits.state = {
        "bit_generator": "Philox",
        "state": {"counter": _ZEROS, "key": _two_words(word)},
        "buffer": _ZEROS,
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }


_ZEROS = (0, 0, 0, 0)
_two_words = Struct("<QQ").unpack


def _register() -> None:
    """Tell NumPy that this is a seed sequence; not a base class, which importing this module would need NumPy for."""
    if not _registered:
        from numpy.random.bit_generator import ISpawnableSeedSequence

        ISpawnableSeedSequence.register(NumpySeed)
        _registered.append(True)


_registered: list[bool] = []
