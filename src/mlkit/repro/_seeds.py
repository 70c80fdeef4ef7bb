"""Named random streams: a tree of 128-bit keys under one root, by a derivation that is published and frozen.

```text
node(root)             = blake2b(root as 16 bytes, little-endian)
node(parent / name)    = blake2b(key = parent, data = "s" + name in UTF-8)
node(parent / number)  = blake2b(key = parent, data = "i" + number in decimal)
word(node, purpose)    = blake2b(key = node,   data = "=" + purpose), read as a little-endian integer
```

Every hash is 16 bytes long and personalised with `mlkit.seeds.v1`. The letter keeps the number 1, the name "1" and the
purposes of one node apart. `docs/concepts/repro.md` has the test vectors, `tests/test_repro/test_seeds.py` freezes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast, final

from mlkit._arguments import whole
from mlkit.errors import ConfigurationError
from mlkit.repro._rekey import rekey

if TYPE_CHECKING:
    import builtins
    import random
    from collections.abc import Callable

    import numpy as np
    import torch

__all__ = ["Seeds", "as_rank", "as_seeds", "words_of"]

_G = TypeVar("_G")
_PERSON = b"mlkit.seeds.v1"
_BITS = 128
_MOST = 2**_BITS


def _hash(key: bytes, data: bytes) -> bytes:
    global _blake2b  # noqa: PLW0603 - looked up once, then on the path of every draw of a loop
    if _blake2b is None:
        from hashlib import blake2b  # loads OpenSSL: 4 ms that an import need not pay

        _blake2b = blake2b
    return cast("bytes", _blake2b(data, key=key, digest_size=16, person=_PERSON).digest())


_blake2b: Any = None


@final
class Seeds:
    """An immutable tree of random streams: `(seeds / "data" / epoch / item).numpy()`.

    A stream depends on the root and the path alone: not on what was made before it, the process, rank or worker, the
    modules imported or the hash seed. Unequal paths give unrelated streams, and so do the libraries at one path. Two
    calls at one path give two generators that start at the same place: the path is the stream's name.

    Immutable and hashable, hence safe to share between threads; pickles to its root and path.

    Args:
        root: A whole number, `0 <= root < 2**128`. None takes fresh entropy from the operating system; `root` tells
            it, so that the run can be repeated.

    Raises:
        ConfigurationError: If *root* is anything else. A bool, a float and a negative number are refused: other
            libraries read them as another seed than the one you see.

    Examples:
        >>> seeds = Seeds(42)
        >>> seeds / "data" / 3
        Seeds(42) / 'data' / 3
        >>> (seeds / "init").numpy().integers(100, size=4).tolist()
        [63, 57, 74, 39]
        >>> (seeds / 1).int() == (seeds / "1").int()
        False

    Note:
        The collision argument is that of NumPy's `SeedSequence`: keys of 128 bits, so that among 2**40 streams two
        agree with a probability of about 2**-49. Making a child takes one BLAKE2b call.
    """

    __slots__ = ("_node", "_path", "_root")

    _root: int
    _path: tuple[int | str, ...]
    _node: bytes

    def __init__(self, root: int | None = None) -> None:
        if root is None:
            from secrets import randbits

            root = randbits(_BITS)
        number = whole("Seeds(root)", root, low=0, high=_MOST - 1)
        _set(self, number, (), _hash(b"", number.to_bytes(16, "little")))

    @property
    def root(self) -> int:
        """The number at the root of the tree, of at most 128 bits."""
        return self._root

    @property
    def path(self) -> tuple[int | str, ...]:
        """The names and numbers that lead here from the root."""
        return self._path

    def __truediv__(self, name: int | str) -> Seeds:
        """Return the child called *name*.

        Args:
            name: A text that is not empty, or a whole number of at most 128 bits. 1 and "1" are two children, and
                "a/b" is one child whose name holds a stroke.

        Raises:
            ConfigurationError: If it is anything else (a bool, a float, None, bytes).
        """
        part: int | str
        if type(name) is int and 0 <= name < _MOST:  # the common case, in a hot loop
            part, data = name, b"i%d" % name
        elif isinstance(name, str):
            part = str(name)
            try:
                data = b"s" + part.encode()
            except UnicodeEncodeError:
                raise ConfigurationError(
                    "Seeds / name", name, "text that UTF-8 can write"
                ) from None
            if not part:
                raise ConfigurationError("Seeds / name", name, "a name that is not empty")
        else:
            part = whole(
                "Seeds / name", name, low=-(_MOST // 2), high=_MOST - 1, also="a name (str) or "
            )
            data = b"i%d" % part
        child = object.__new__(Seeds)
        _set(child, self._root, (*self._path, part), _hash(self._node, data))
        return child

    def int(self, bits: builtins.int = 32) -> builtins.int:
        """Return a number in `[0, 2**bits)`, for libraries that take a plain seed (`random_state=`).

        Args:
            bits: How many bits the library uses, 1 to 128: 32 for scikit-learn and XGBoost. Each size is a number of
                its own.

        Raises:
            ConfigurationError: If *bits* is out of range.
        """
        size = whole("Seeds.int(bits=...)", bits, low=1, high=_BITS)
        return self._word(f"int:{size}") >> (_BITS - size)

    def numpy(self) -> np.random.Generator:
        """Return a new NumPy generator: `Generator(Philox(key=word))`, whose `spawn()` is reproducible, too.

        Its raw bits are frozen for ever. What its methods make of them (`normal`, `choice`) may change with NumPy's
        version, see NEP 19.
        """
        from numpy.random import Generator, Philox

        from mlkit.repro._numpy_seed import NumpySeed

        seed: Any = NumpySeed(self._hash(b"numpy"))
        return Generator(Philox(seed))

    def rekey(self, generator: _G) -> _G:
        """Let a generator start over as the one of this path does, in place, for loops too hot to make new ones.

        Afterwards `generator` draws what `numpy()`, `python()` or `torch()` of these seeds would. NumPy's generators
        with another bit generator than Philox, and `RandomState`, start at streams of their own.

        Args:
            generator: A `numpy.random.Generator` or `RandomState`, `random.Random` or `torch.Generator`. Not safe while
                another thread draws from it.

        Returns:
            The same generator.

        Raises:
            ConfigurationError: If it is none of these.

        Examples:
            >>> seeds, generator = Seeds(42) / "noise", Seeds(0).numpy()
            >>> drawn = [(seeds / step).rekey(generator).random() for step in range(3)]
            >>> drawn == [(seeds / step).numpy().random() for step in range(3)]
            True
        """
        rekey(generator, self._hash)
        return generator

    def python(self) -> random.Random:
        """Return a new generator of the standard library: `random.Random(word)`."""
        from random import Random

        return Random(self._word("python"))  # noqa: S311 - for science, not for secrets

    def torch(self, device: str | torch.device = "cpu") -> torch.Generator:
        """Return a new torch generator.

        On the CPU its whole state is derived from 128 bits, where `manual_seed` would use 32; on other devices it is
        seeded with the 64 bits that they take.

        Args:
            device: Where the generator draws.

        Raises:
            MissingDependencyError: If torch is not installed.
            ConfigurationError: If torch has no such device here.
        """
        from mlkit._optional import require
        from mlkit.repro._torch_mersenne import seed_torch_generator

        torch = require("torch", extra="torch", feature="Seeds.torch")
        try:
            generator = torch.Generator(device=device)
        except (RuntimeError, TypeError) as error:
            expected = "a device that torch can use here, such as 'cpu'"
            raise ConfigurationError("Seeds.torch(device)", device, expected) from error
        seed_torch_generator(torch, generator, self._hash(b"torch"))
        return generator

    def _hash(self, purpose: bytes) -> bytes:
        return _hash(self._node, b"=" + purpose)

    def _word(self, purpose: str) -> builtins.int:
        return int.from_bytes(self._hash(purpose.encode()), "little")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Seeds):
            return NotImplemented
        # An int and a str are never equal, and bools were refused: plain equality is typed equality.
        return (self._root, self._path) == (other._root, other._path)

    def __hash__(self) -> builtins.int:
        return hash((Seeds, self._root, self._path))

    def __repr__(self) -> str:
        return " / ".join([f"Seeds({self._root})", *map(repr, self._path)])

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._root, self._path)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Seeds is immutable; make a child instead: seeds / {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("Seeds is immutable")


def as_rank(argument: str, rank: object) -> int | None:
    """Return *rank* if it is one or None, or say that *argument* is wrong."""
    return None if rank is None else whole(argument, rank, high=2**63 - 1, also="None or ")


def words_of(seeds: Seeds) -> Callable[[bytes], bytes]:
    """Return what gives the 16 bytes of *seeds* for a purpose."""
    return seeds._hash  # noqa: SLF001 - the block's own


def as_seeds(value: Seeds | int, argument: str) -> Seeds:
    """Return *value* as seeds, or say that *argument* is wrong."""
    if isinstance(value, Seeds):
        return value
    return Seeds(whole(argument, value, high=_MOST - 1, also="Seeds or "))


def _set(seeds: Seeds, root: int, path: tuple[int | str, ...], node: bytes) -> None:
    put = object.__setattr__
    put(seeds, "_root", root)
    put(seeds, "_path", path)
    put(seeds, "_node", node)


def _rebuild(root: int, path: tuple[int | str, ...]) -> Seeds:
    seeds = Seeds(root)
    for name in path:
        seeds = seeds / name
    return seeds
