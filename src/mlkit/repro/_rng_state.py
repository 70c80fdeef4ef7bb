"""The state of every global generator as a value: keep it in a file without pickle, put it back exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, final

from mlkit._suggest import clip
from mlkit.errors import ConfigurationError, DigestError, RngStateError
from mlkit.repro._generators import Snapshot, loaded_torch, take
from mlkit.repro._seeds import as_rank
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["RngState", "rng_state"]

_SCHEMA = "mlkit.rng-state/1"
_TORCH_SUFFIXES = {".pt", ".pth"}


@final
class RngState:
    """The state of the global generators of Python, NumPy and torch at one moment. Made by `rng_state`.

    A plain value: immutable, comparable, hashable, picklable, and safe to share between threads. `to_dict` is plain
    data, which may be put into a checkpoint that `torch.load(weights_only=True)` reads.

    Attributes:
        rank: The number of the process among many that it was taken in, or None for one process.

    Examples:
        >>> import random
        >>> state = rng_state()
        >>> first = random.random()
        >>> state.restore()
        >>> random.random() == first
        True
    """

    __slots__ = ("_generators", "_versions", "rank")

    rank: int | None
    _generators: dict[str, Any]
    _versions: dict[str, str]

    def __init__(
        self,
        generators: dict[str, Any],
        versions: dict[str, str] | None = None,
        rank: int | None = None,
    ) -> None:
        object.__setattr__(self, "_generators", generators)
        object.__setattr__(self, "_versions", _versions() if versions is None else versions)
        object.__setattr__(self, "rank", rank)

    @property
    def generators(self) -> tuple[str, ...]:
        """The names of the generators, e.g. `("numpy", "python", "torch")`."""
        return tuple(sorted(self._generators))

    @property
    def digest(self) -> str:
        """The digest of the state, and of its rank if it has one."""
        from mlkit._digest import digest

        generators = self._generators
        return digest(generators if self.rank is None else [generators, self.rank])

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain data: text, numbers, lists, mappings with text keys."""
        from copy import deepcopy

        generators = deepcopy(self._generators)
        return {
            "schema": _SCHEMA,
            "versions": dict(self._versions),
            "rank": self.rank,
            "generators": generators,
            "digest": self.digest,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RngState:
        """Return the state that `to_dict` gave.

        Args:
            data: What `to_dict` returned.

        Raises:
            RngStateError: If it is something else, was changed, or is from a newer version.
        """
        return _from_plain(data, "RngState.from_dict(data)")

    def save(self, path: str | PathLike[str]) -> None:
        """Write the state to one file, without pickled objects; an old file is replaced in one step.

        Args:
            path: The file: torch's format, for `torch.load(path, weights_only=True)`, if it ends in `.pt` or `.pth`;
                else JSON.

        Raises:
            OSError: If it cannot be written.
            MissingDependencyError: If it is to be torch's format, and torch is not installed.
        """
        from pathlib import Path

        from mlkit.repro._files import write_json, write_torch

        write = write_torch if Path(path).suffix in _TORCH_SUFFIXES else write_json
        write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> RngState:
        """Return the state that `save` wrote, in either format.

        Args:
            path: The file.

        Raises:
            RngStateError: If the file is no such state, was changed, or is from a newer version.
            OSError: If it cannot be read.
        """
        from pathlib import Path

        from mlkit.repro._files import read_json, read_torch

        read = read_torch if Path(path).suffix in _TORCH_SUFFIXES else read_json
        return _from_plain(read(path, RngStateError), str(path))

    def restore(self, *, rank: int | None = None, strict: bool = True) -> None:
        """Put every generator back to this state: all of them or, on an error, none.

        A state that holds torch's generator imports torch.

        Args:
            rank: The rank that goes on with it, which must be the one that it was taken on. To go on with another
                rank's draws on purpose, say that rank: `state.restore(rank=state.rank)`.
            strict: Refuse if this process has a generator that the state lacks, which would go on from anywhere.

        Raises:
            RngStateError: If the state does not fit this process: another rank, another library version's layout,
                other devices.
            MissingDependencyError: If it needs torch, which is not installed.
        """
        if not isinstance(strict, bool):
            raise ConfigurationError("RngState.restore(strict=...)", strict, "True or False")
        self._refuse_other_rank(as_rank("RngState.restore(rank=...)", rank))
        if "torch" in self._generators and loaded_torch() is None:
            from mlkit._optional import require

            require("torch", extra="torch", feature="restoring torch's generator")
        before = take()
        live = set(_plain(before))
        wanted = set(self._generators)
        if missing := sorted(wanted - live):
            raise RngStateError(
                f"the state holds {' and '.join(missing)}, which this process does not have; restore it on the devices "
                f"it was saved on, after they have started"
            )
        if strict and (extra := sorted(live - wanted)):
            raise RngStateError(
                f"this process has {' and '.join(extra)}, which the state does not hold, so that its draws would not "
                f"repeat; pass strict=False if that does not matter"
            )
        try:
            _apply(self._generators)
        except Exception as error:
            before.restore()
            raise RngStateError(
                f"the state does not fit this process, nothing was changed: {error}; restore it with the library "
                f"versions it was saved with{_told(self._versions)}"
            ) from error
        emit("repro.generators.restored", "rng_state", generators=", ".join(self.generators))

    def _refuse_other_rank(self, rank: int | None) -> None:
        if rank == self.rank:
            return
        if self.rank is None:
            raise RngStateError(
                f"the state was taken without a rank, so that rank {rank} would draw what other ranks draw; take one on "
                f"each rank, rng_state(rank={rank}), or seed a rank that is new: seed_all(seeds, rank={rank})"
            )
        here = "this process did not say its rank" if rank is None else f"this is rank {rank}"
        raise RngStateError(
            f"the state was taken on rank {self.rank}, and {here}; restore each rank's own, restore(rank=...), and seed "
            f"a rank that is new: seed_all(seeds, rank=...)"
        )

    def diff(self, other: RngState) -> tuple[str, ...]:
        """Return the names of the generators that are not in the same state here and in *other*.

        Args:
            other: Another state.
        """
        if not isinstance(other, RngState):
            raise ConfigurationError("RngState.diff(other)", other, "an RngState")
        names = sorted({*self._generators, *other._generators})
        return tuple(
            name for name in names if self._generators.get(name) != other._generators.get(name)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RngState):
            return NotImplemented
        return self.rank == other.rank and self._generators == other._generators

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        from mlkit._digest import short

        rank = "" if self.rank is None else f", rank {self.rank}"
        return f"<RngState {short(self.digest)}: {', '.join(self.generators)}{rank}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RngState, (self._generators, self._versions, self.rank)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("RngState is immutable")


def rng_state(*, rank: int | None = None) -> RngState:
    """Return the present state of the global generators: Python, NumPy, and torch if it is imported.

    CUDA generators are held if CUDA has started; nothing here starts it.

    Args:
        rank: Number of this process among many, `>= 0`. The state is then this rank's: `restore` refuses it elsewhere,
            where a mixed-up file would make two ranks draw the same.

    Raises:
        ConfigurationError: If *rank* is no rank.
    """
    return RngState(_plain(take()), rank=as_rank("rng_state(rank=...)", rank))


def _versions() -> dict[str, str]:
    """Return the versions of what the generators belong to, which decide how a state is laid out."""
    import sys
    from platform import python_version

    modules = {name: sys.modules.get(name) for name in ("numpy", "torch")}
    found = {
        name: str(module.__version__) for name, module in modules.items() if module is not None
    }
    return {"python": python_version(), **found}


def _told(versions: dict[str, str]) -> str:
    """Return how *versions* differ from those of this process, to end a sentence with."""
    here = _versions()
    other = [
        f"{name} {version[:40]}, where this process has {here[name][:40]}"
        for name, version in versions.items()
        if name in here and here[name] != version
    ]
    return f": {'; '.join(other)}" if other else ""


def _plain(snapshot: Snapshot) -> dict[str, Any]:
    """Return *snapshot* as plain data that JSON can hold exactly."""
    version, words, gauss = snapshot.python
    generators: dict[str, Any] = {
        "python": {"version": version, "words": _text(_packed(words)), "gauss": _hex(gauss)},
        "numpy": _flatten(snapshot.numpy[1]),
    }
    if snapshot.torch is not None:
        generators["torch"] = _text(bytes(snapshot.torch.numpy()))
    for index, state in enumerate(snapshot.cuda):
        generators[f"torch cuda:{index}"] = _text(bytes(state.numpy()))
    return generators


def _apply(generators: dict[str, Any]) -> None:
    """Set the live generators."""
    import random

    from numpy import random as module

    legacy: Any = module
    python = generators["python"]
    gauss = None if python["gauss"] is None else float.fromhex(python["gauss"])
    random.setstate((python["version"], _unpacked(_data(python["words"])), gauss))
    state = _unflatten(generators["numpy"])
    live = legacy.get_bit_generator()
    if type(live).__name__ != state["bit_generator"]:
        made = getattr(legacy, state["bit_generator"], None)
        if not (isinstance(made, type) and issubclass(made, legacy.BitGenerator)):
            raise ValueError(f"numpy has no bit generator {state['bit_generator']!r}")
        legacy.set_bit_generator(made())
    legacy.set_state(state)
    torch = loaded_torch()
    for name, text in generators.items():
        if name == "torch":
            torch.default_generator.set_state(_bytes_tensor(torch, text))
        elif name.startswith("torch cuda:"):
            index = int(name.removeprefix("torch cuda:"))
            torch.cuda.default_generators[index].set_state(_bytes_tensor(torch, text))


def _from_plain(data: Any, source: str) -> RngState:
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != _SCHEMA:
        raise RngStateError(f"{source}: expected a state of schema {_SCHEMA!r}, found {schema!r}")
    generators = data.get("generators")
    if not isinstance(generators, dict) or not {"python", "numpy"} <= set(generators):
        raise RngStateError(f"{source}: the state has no 'python' and 'numpy' generators")
    from copy import deepcopy

    versions, rank = data.get("versions"), data.get("rank")
    if rank is not None and (type(rank) is not int or rank < 0):
        raise RngStateError(f"{source}: its rank is {clip(rank)}, which is none")
    told = versions if isinstance(versions, dict) else {}
    told = {str(name): str(one) for name, one in told.items()}
    state = RngState(deepcopy(generators), told, rank)
    try:
        digest = state.digest
    except DigestError as error:
        raise RngStateError(f"{source}: it holds something that no state holds: {error}") from None
    if data.get("digest") != digest:
        raise RngStateError(f"{source}: the state was changed after it was saved; use another copy")
    return state


def _packed(words: tuple[int, ...]) -> bytes:
    from struct import pack

    return pack(f"<{len(words)}I", *words)


def _unpacked(data: bytes) -> tuple[int, ...]:
    from struct import unpack

    return unpack(f"<{len(data) // 4}I", data)


def _text(data: bytes) -> str:
    from base64 import b64encode

    return b64encode(data).decode()


def _data(text: str) -> bytes:
    from base64 import b64decode

    return b64decode(text, validate=True)


def _hex(number: float | None) -> str | None:
    return None if number is None else number.hex()


def _bytes_tensor(torch: Any, text: str) -> Any:
    return torch.frombuffer(bytearray(_data(text)), dtype=torch.uint8)


def _flatten(value: Any) -> Any:
    """Write NumPy's state dictionary without arrays; floats as hexadecimal text."""
    import numpy as np

    if isinstance(value, dict):
        return {key: _flatten(item) for key, item in value.items()}
    if isinstance(value, float):
        return {"!float": float(value).hex()}
    if isinstance(value, np.ndarray):
        little = value.astype(value.dtype.newbyteorder("<"))
        return {"!array": [little.dtype.str, _text(little.tobytes())]}
    return value if isinstance(value, str) else int(value)


def _unflatten(value: Any) -> Any:
    import numpy as np

    if not isinstance(value, dict):
        return value
    if "!float" in value:
        return float.fromhex(value["!float"])
    if "!array" in value:
        dtype, text = value["!array"]
        return np.frombuffer(_data(text), dtype=dtype).copy()
    return {key: _unflatten(item) for key, item in value.items()}
