"""NumPy's global Mersenne Twister, copied and written as memory.

Its own `get_state` and `set_state` go word by word through Python numbers, 40 to 65 us each: most of what `isolated` and
an item of `Keyed` would cost; and its `seed` needs 15 us for four words. The bit generator says where its state lies (`BitGenerator.ctypes.state_address`); how it
lies there is probed once, and where it is laid out in another way the two calls are used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from mlkit.repro._numpy_seed import rekey_philox

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WORDS", "copied", "put_back", "started"]

WORDS = 624
_BYTES = WORDS * 4 + 4  # the words, then the position as a C int
_USED_UP = WORDS.to_bytes(4, "little")


def copied(legacy: Any, generator: Any) -> bytes | None:
    """Return the state of NumPy's global generator, or None if it has to be asked for with `get_state`.

    None too if a Gaussian is kept for the next draw, which lies elsewhere. Not while another thread draws.

    Args:
        legacy: `numpy.random`.
        generator: Its global bit generator.
    """
    view = _view(legacy, generator)
    if view is None:
        return None
    state = bytes(view)
    gauss = _taken_gauss(legacy, view, state)
    if gauss is None:
        return state
    whole = legacy.get_state(legacy=False)
    legacy.set_state({**whole, "has_gauss": 1, "gauss": gauss})
    return None


def put_back(legacy: Any, generator: Any, state: bytes) -> None:
    """Put a copied state back, with no Gaussian kept."""
    view = _view(legacy, generator)
    if view is None:
        raise ValueError("numpy's generator was laid out in another way when its state was copied")
    _taken_gauss(legacy, view, bytes(view))
    view[:] = state


def started(legacy: Any, generator: Any, word: bytes) -> Callable[[], object]:
    """Return what lets NumPy's global generator start at the state that *word* names, with no Gaussian kept.

    Its words are the first of `Philox(key=word)`: half the cost of NumPy's own way from four words to 624.

    Args:
        legacy: `numpy.random`.
        generator: Its global bit generator, an MT19937.
        word: 16 bytes.
    """
    try:
        philox = _spare.pop()
    except IndexError:
        philox = legacy.Philox(0)
    rekey_philox(philox, word)
    words = philox.random_raw(WORDS // 2).astype("<u8", copy=False).view("<u4")
    _spare.append(philox)
    words[0] |= 0x80000000  # a Mersenne Twister state must not be all zero
    view = _view(legacy, generator)
    if view is None or sys.byteorder != "little":
        state = {"key": words.astype("u4"), "pos": WORDS}
        return lambda: legacy.set_state(
            {"bit_generator": "MT19937", "state": state, "has_gauss": 0, "gauss": 0.0}
        )
    content = words.tobytes() + _USED_UP

    def start() -> None:
        _taken_gauss(legacy, view, bytes(view))
        view[:] = content

    return start


_spare: list[Any] = []  # Philox to be started over, which takes a third of making one


def _taken_gauss(legacy: Any, view: memoryview, state: bytes) -> float | None:
    """Return the Gaussian that was kept, which is then no longer kept; the words stay at *state*."""
    try:
        gauss = legacy.standard_normal()
        if view == state:  # nothing was drawn: it was the kept one
            return cast("float", gauss)
        legacy.standard_normal()  # the second of the pair, which the first draw kept
    finally:
        view[:] = state
    return None


def _view(legacy: Any, generator: Any) -> memoryview | None:
    """Return the memory of the generator's state, if we know how it is laid out."""
    if type(generator) is not legacy.MT19937:
        return None
    if not _memory:
        _memory.append(_probed(legacy))
    look = _memory[0]
    return None if look is None else look(generator)


_memory: list[Callable[[Any], memoryview] | None] = []  # the answer of the probe, once asked


def _probed(legacy: Any) -> Callable[[Any], memoryview] | None:
    """Return what gives the memory of a Mersenne Twister's state, or None if it is not as we know it."""
    import numpy as np

    try:
        from ctypes import c_ubyte
    except ImportError:
        return None
    kind: Any = c_ubyte * _BYTES

    def look(generator: Any) -> memoryview:
        return memoryview(kind.from_address(generator.ctypes.state_address)).cast("B")

    known = legacy.MT19937(5489)
    known.random_raw(7)
    state = known.state["state"]
    memory = look(known)
    words = np.frombuffer(memory[:-4], dtype=np.uint32)
    position = int.from_bytes(memory[-4:], sys.byteorder)
    return look if np.array_equal(words, state["key"]) and position == state["pos"] else None
