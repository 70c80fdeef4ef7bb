"""The global random generators of this process: seed them, take their state, put it back.

One rule for all of `mlkit.repro`: Python and NumPy always; torch only if it is imported already; accelerators only if
torch has started them already. Nothing here imports torch or starts a device.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit.errors import ReproError
from mlkit.repro._accelerators import accelerator_step, queued, requeue
from mlkit.repro._mersenne import copied, put_back, started
from mlkit.repro._torch_mersenne import cpu_state

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Snapshot", "loaded_torch", "prepare", "take"]


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


def prepare(word: Callable[[bytes], bytes]) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return for each global generator of this process how many bits of seed it gets and what seeds it.

    Everything that can fail happens here, so that the steps then run through: all are seeded, or none.

    Args:
        word: Gives the 16 bytes of a purpose.

    Raises:
        ReproError: If NumPy's global generator was replaced by one that cannot be seeded.
    """
    import random

    legacy = _legacy()
    live = legacy.get_bit_generator()
    if not isinstance(live, legacy.MT19937):
        raise ReproError(
            f"numpy's global generator was replaced by a {type(live).__name__}, which cannot be seeded; put an MT19937 "
            f"back with numpy.random.set_bit_generator"
        )
    python = int.from_bytes(word(b"global:python"), "little")
    steps: dict[str, tuple[int, Callable[[], object]]] = {
        "python": (128, lambda: random.seed(python)),
        "numpy": (128, started(legacy, live, word(b"global:numpy"))),
    }
    torch = loaded_torch()
    if torch is None:
        return steps
    name = word(b"global:torch")
    seed = int.from_bytes(name[:8], "little")
    devices = accelerator_step(torch, seed)
    if devices is not None:
        steps["torch accelerators"] = (64, devices)
    generator = torch.default_generator
    state = cpu_state(torch, name)
    if state is None:
        steps["torch"] = (32, lambda: generator.manual_seed(seed))
    else:
        steps["torch"] = (128, lambda: generator.set_state(state))
    return steps
