"""The global random generators of this process: seed them, take their state, put it back.

One rule for all of `mlkit.repro`: Python and NumPy always; torch only if it is imported already; accelerators only if
torch has started them already. Nothing here imports torch or starts a device.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.errors import ReproError
from mlkit.repro._accelerators import accelerator_step, queued, requeue
from mlkit.repro._mersenne import copied, put_back

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Snapshot", "ask_layout", "loaded_torch", "prepare", "seed_torch_generator", "take"]

_MT_WORDS = 624
# c10's CPUGeneratorImplStateLegacy: seed (u64), left and seeded (2 x i32), next (u64), then the words as u64.
_TORCH_BYTES, _TORCH_SEED, _TORCH_WORDS = 5056, slice(0, 8), slice(24, 24 + 8 * _MT_WORDS)


def _legacy() -> Any:
    """Return `numpy.random`, whose global generator is meant here."""
    from numpy import random

    return random


def loaded_torch() -> Any:
    """Return torch if this process has imported it, else None."""
    return sys.modules.get("torch")


class Snapshot(NamedTuple):
    """The state of every global generator at one moment, as the libraries themselves give it.

    `numpy` is the bit generator, which `numpy.random.set_bit_generator` may put another one in the place of, and its
    state: NumPy's own dictionary or a copy of its memory.
    """

    python: Any
    numpy: tuple[Any, dict[str, Any] | bytes]
    torch: Any
    cuda: tuple[Any, ...]
    cuda_queue: dict[str, Any] | None

    def restore(self) -> None:
        """Put every generator back, and go on with the others if one refuses.

        Raises:
            ReproError: If one refused; its own error is the cause.
        """
        failed: list[tuple[str, Exception]] = []
        for name, step in (
            ("python", self._restore_python),
            ("numpy", self._restore_numpy),
            ("torch", self._restore_torch),
        ):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the other generators must still be put back
                failed.append((name, error))
        if failed:
            names = " and ".join(name for name, _ in failed)
            raise ReproError(
                f"the generator state of {names} could not be put back ({failed[0][1]}); draws from now on differ "
                f"from those before"
            ) from failed[0][1]

    def _restore_python(self) -> None:
        import random

        random.setstate(self.python)

    def _restore_numpy(self) -> None:
        legacy = _legacy()
        generator, state = self.numpy
        if legacy.get_bit_generator() is not generator:
            legacy.set_bit_generator(generator)
        if isinstance(state, bytes):
            put_back(legacy, generator, state)
        else:
            legacy.set_state(state)

    def _restore_torch(self) -> None:
        torch = loaded_torch()
        if torch is None or self.torch is None:
            return
        torch.default_generator.set_state(self.torch)
        for index, state in enumerate(self.cuda):
            torch.cuda.default_generators[index].set_state(state)
        requeue(torch, self.cuda_queue)


def take(*, copy: bool = False) -> Snapshot:
    """Return the present state of every global generator.

    Args:
        copy: Copy NumPy's memory, which is many times as fast, if no other thread draws meanwhile.
    """
    import random

    legacy = _legacy()
    torch = loaded_torch()
    cpu, cuda, waiting = None, (), None
    if torch is not None:
        cpu, waiting = torch.default_generator.get_state(), queued(torch)
        if torch.cuda.is_initialized():  # is_available() or get_rng_state_all() could start CUDA
            cuda = tuple(generator.get_state() for generator in torch.cuda.default_generators)
    generator = legacy.get_bit_generator()
    state = copied(legacy, generator) if copy else None
    if state is None:
        state = legacy.get_state(legacy=False)  # has the kept Gaussian too
    return Snapshot(random.getstate(), (generator, state), cpu, cuda, waiting)


def prepare(word: Callable[[str], int]) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return for each global generator of this process how many bits of seed it gets and what seeds it.

    Everything that can fail happens here, so that the steps then run through: all are seeded, or none.

    Args:
        word: Gives the 128-bit word of a purpose.

    Raises:
        ReproError: If NumPy's global generator was replaced by one that cannot be seeded.
    """
    import random

    legacy = _legacy()
    if not isinstance(legacy.get_bit_generator(), legacy.MT19937):
        kind = type(legacy.get_bit_generator()).__name__
        raise ReproError(
            f"numpy's global generator was replaced by a {kind}, which cannot be seeded; put an MT19937 back with "
            f"numpy.random.set_bit_generator"
        )
    python, words = word("global:python"), _words(word("global:numpy"))
    steps: dict[str, tuple[int, Callable[[], object]]] = {
        "python": (128, lambda: random.seed(python)),
        "numpy": (128, lambda: legacy.seed(words)),
    }
    torch = loaded_torch()
    if torch is None:
        return steps
    number = word("global:torch")
    devices = accelerator_step(torch, number % 2**64)
    if devices is not None:
        steps["torch accelerators"] = (64, devices)
    generator = torch.default_generator
    state = _torch_state(torch, number)
    if state is None:
        steps["torch"] = (32, lambda: generator.manual_seed(number % 2**64))
    else:
        steps["torch"] = (128, lambda: generator.set_state(state))
    return steps


def seed_torch_generator(generator: Any, number: int) -> None:
    """Seed one torch generator with as many bits of the 128-bit *number* as its device takes."""
    torch = loaded_torch()
    state = _torch_state(torch, number) if generator.device.type == "cpu" else None
    if state is None:
        generator.manual_seed(number % 2**64)
    else:
        generator.set_state(state)


def _words(number: int) -> list[int]:
    return [(number >> shift) & 0xFFFFFFFF for shift in (0, 32, 64, 96)]


_layout: list[bytes | None] = []  # the answer of the probe, once it has been asked


def ask_layout(torch: Any) -> bytes | None:
    """Return a fresh CPU generator state as this torch lays it out, if it is laid out as we write it; asked once."""
    if not _layout:
        _layout.append(_probe(torch))
    return _layout[0]


def _torch_state(torch: Any, number: int) -> Any:
    """Return a CPU generator state made of all 128 bits, or None if this torch lays its state out in another way.

    `manual_seed` keeps 32 bits only.
    """
    fresh = ask_layout(torch)
    if fresh is None:
        return None
    from hashlib import shake_256

    import numpy as np

    stretched = shake_256(number.to_bytes(16, "little")).digest(4 * _MT_WORDS)
    state = bytearray(fresh)
    state[_TORCH_SEED] = (number % 2**64).to_bytes(8, "little")
    words = np.frombuffer(state, "<u8", _MT_WORDS, _TORCH_WORDS.start)
    words[:] = np.frombuffer(stretched, "<u4")
    words[0] |= 0x80000000  # a Mersenne Twister state must not be all zero
    return torch.frombuffer(state, dtype=torch.uint8)


def _probe(torch: Any) -> bytes | None:
    """Return a fresh CPU state (nothing drawn, no Gaussian kept) if it is laid out as we write it, else None.

    Seeded with 5489, it must hold the very words that NumPy's MT19937 has.
    """
    import numpy as np

    generator = torch.Generator()
    generator.manual_seed(5489)
    state = bytes(generator.get_state().numpy())
    if sys.byteorder != "little" or len(state) != _TORCH_BYTES:
        return None
    expected: Any = np.random.RandomState(5489).get_state(legacy=False)
    words = np.frombuffer(state[_TORCH_WORDS], dtype="<u8")
    seed = int.from_bytes(state[_TORCH_SEED], "little")
    return state if seed == 5489 and np.array_equal(words, expected["state"]["key"]) else None
