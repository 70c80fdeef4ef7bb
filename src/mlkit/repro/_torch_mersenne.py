"""torch's CPU generator started with all 128 bits of a word, where `manual_seed` keeps 32.

It is a Mersenne Twister, too, and its public `set_state` takes any state; how one is laid out is probed once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mlkit.repro._mersenne import WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FIRST", "ask_layout", "cpu_state", "seed_torch_generator"]

# c10's CPUGeneratorImplStateLegacy: seed (u64), left and seeded (2 x i32), next (u64), then the words as u64.
_BYTES, _SEED, FIRST = 5056, slice(0, 8), 24


def seed_torch_generator(torch: Any, generator: Any, word: bytes) -> None:
    """Seed one torch generator with as many bits of the 16 bytes of *word* as its device takes."""
    state = cpu_state(torch, word) if generator.device.type == "cpu" else None
    if state is None:
        generator.manual_seed(int.from_bytes(word[:8], "little"))
    else:
        generator.set_state(state)


def cpu_state(torch: Any, word: bytes) -> Any:
    """Return the state of a CPU generator made of all 16 bytes, or None if this torch lays it out in another way."""
    make = ask_layout(torch)
    return None if make is None else make(word)


_layout: list[Callable[[bytes], Any] | None] = []  # the answer of the probe, once it has been asked


def ask_layout(torch: Any) -> Callable[[bytes], Any] | None:
    """Return what makes a state of 16 bytes, if this torch lays it out as we write it; asked once."""
    if not _layout:
        _layout.append(_probe(torch))
    return _layout[0]


def _probe(torch: Any) -> Callable[[bytes], Any] | None:
    """Compare a state, seeded with 5489, with the very words that NumPy's MT19937 has then."""
    import numpy as np

    generator = torch.Generator()
    generator.manual_seed(5489)
    fresh = bytes(generator.get_state().numpy())  # nothing drawn, no Gaussian kept
    if sys.byteorder != "little" or len(fresh) != _BYTES:
        return None
    expected: Any = np.random.RandomState(5489).get_state(legacy=False)
    words = np.frombuffer(fresh, "<u8", WORDS, FIRST)
    seed = int.from_bytes(fresh[_SEED], "little")
    if seed != 5489 or not np.array_equal(words, expected["state"]["key"]):
        return None
    from hashlib import shake_256

    long, short = np.dtype("<u8"), np.dtype("<u4")

    def make(word: bytes) -> Any:
        state = bytearray(fresh)
        state[_SEED] = word[:8]
        stretched = np.frombuffer(shake_256(word).digest(4 * WORDS), short)
        np.frombuffer(state, long, WORDS, FIRST)[:] = stretched
        state[FIRST + 3] |= 0x80  # a Mersenne Twister state must not be all zero
        return torch.frombuffer(state, dtype=torch.uint8)

    return make
