"""NumPy's global Mersenne Twister, copied as memory.

Its own `get_state` and `set_state` go word by word through Python numbers, 40 to 65 us each: most of what `isolated` and
an item of `Keyed` would cost. The bit generator says where its state lies (`BitGenerator.ctypes.state_address`); how it
lies there is probed once, and where it is laid out in another way the two calls are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["copied", "put_back"]

_BYTES = 624 * 4 + 4  # the words, then the position as a C int


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
    import sys

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
