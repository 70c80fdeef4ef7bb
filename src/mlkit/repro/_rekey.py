"""Generators that are started over in place, and those that a dataset holds."""

from __future__ import annotations

import sys
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from mlkit.errors import ConfigurationError
from mlkit.repro._numpy_seed import NumpySeed, rekey_philox
from mlkit.repro._torch_mersenne import seed_torch_generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

__all__ = ["held", "rekey"]

_DEPTH = 12  # a split of a chain of datasets, each with a list of transforms, takes 7


def rekey(generator: Any, word: Callable[[bytes], bytes]) -> None:
    """Start *generator* over.

    Args:
        generator: A generator of Python, NumPy or torch.
        word: Gives the 16 bytes of a purpose.

    Raises:
        ConfigurationError: If it is none.
    """
    numpy, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    if numpy is not None and isinstance(generator, numpy.Generator):
        _rekey_numpy(numpy, generator.bit_generator, word(b"numpy"))
    elif numpy is not None and isinstance(generator, numpy.RandomState):
        # A state without the cached Gaussian, which the bit generator alone does not hold
        fresh = numpy.RandomState(numpy.MT19937(NumpySeed(word(b"numpy:legacy"))))
        generator.set_state(fresh.get_state(legacy=False))
    elif torch is not None and isinstance(generator, torch.Generator):
        seed_torch_generator(torch, generator, word(b"torch"))
    elif isinstance(generator, _python()):
        generator.seed(int.from_bytes(word(b"python"), "little"))
    else:
        expected = "a numpy.random.Generator or RandomState, a random.Random or a torch.Generator"
        raise ConfigurationError("Seeds.rekey(generator)", generator, expected)


def _rekey_numpy(numpy: Any, bits: Any, word: bytes) -> None:
    if type(bits) is numpy.Philox:
        rekey_philox(bits, word)
    else:
        bits.state = type(bits)(NumpySeed(word)).state


def _python() -> type[Random]:
    from random import Random

    return Random


def held(dataset: object) -> dict[str, Any]:
    """Return the generators that *dataset* holds, by where: in its attributes, and in lists, dicts and objects there.

    The libraries' global generators are left out.
    """
    import random

    kinds: list[type] = [random.Random]
    everyones: list[object] = [getattr(random, "_inst", None)]
    if (numpy := sys.modules.get("numpy.random")) is not None:
        kinds += [numpy.Generator, numpy.RandomState]
        everyones.append(getattr(numpy.mtrand, "_rand", None))
    if (torch := sys.modules.get("torch")) is not None:
        kinds.append(torch.Generator)
        everyones.append(torch.default_generator)
    everything = _walk("", dataset, {id(one) for one in everyones}, 0)
    return {path: value for path, value in everything if isinstance(value, tuple(kinds))}


def _walk(path: str, value: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    """Return what lies in *value*, each thing once, with the attributes and keys that lead there."""
    if id(value) in seen or depth > _DEPTH or type(value) in _LEAVES:
        return
    seen.add(id(value))
    yield path, value
    if isinstance(value, dict):
        inner = [(f"[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        if len(value) > _MOST_ITEMS:  # rows, not parts
            return
        inner = [(f"[{index}]", item) for index, item in enumerate(value)]
    elif isinstance(value, MethodType):
        inner = [(".__self__", value.__self__)]
    elif isinstance(value, partial):
        inner = [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    elif isinstance(value, type) or _is_closed(type(value).__module__):
        return
    else:
        slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
        inner = [(f".{name}", getattr(value, name, None)) for name in slots]
        inner += [(f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]
    for step, item in inner:
        yield from _walk(f"{path}{step}", item, seen, depth + 1)


_LEAVES = frozenset({str, bytes, int, float, bool, type(None)})
_MOST_ITEMS = 1000
_OTHERS = frozenset({"numpy", "torch", "pandas", "pyarrow", "builtins", "random"})
# Splits and chains of datasets, sequences of transforms.
_WRAPPERS = ("torch.utils.data", "torch.nn.modules")


def _is_closed(module: str) -> bool:
    return module.partition(".")[0] in _OTHERS and not module.startswith(_WRAPPERS)


def _slots(kind: type) -> list[str]:
    names = kind.__dict__.get("__slots__", ())
    return [names] if isinstance(names, str) else list(names)
