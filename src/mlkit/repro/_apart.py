"""A function run in new processes, under settings that one process cannot change, each leaving its trace."""

from __future__ import annotations

import os
import pickle
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mlkit.errors import ConfigurationError, ReproError
from mlkit.repro._recorder import UNKNOWN, compare, record
from mlkit.repro._seeding import isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlkit.repro._divergence import Divergence

__all__ = ["hash_seeds_differ"]

_SEEDS = ("0", "1")


def hash_seeds_differ(fn: Callable[..., Any], args: tuple[Any, ...]) -> Divergence | None:
    """Return where `fn(*args)` differs between processes of two hash seeds, or None.

    Raises:
        ConfigurationError: If a new process cannot import *fn* or take *args*.
        ReproError: If *fn* raises there.
    """
    try:
        pickle.dumps((fn, args))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        expected = "a function of a module and arguments that can be pickled, for a new process"
        raise ConfigurationError("check(fn, vary=['hashseed'])", fn, expected) from error
    with TemporaryDirectory(prefix="mlkit-check-") as scratch:
        found = _compared(fn, args, Path(scratch), None)
        if found is None or not found.reason.startswith(UNKNOWN):
            return found
        again = _compared(fn, args, Path(scratch), found.call)  # now with the values
        return again or found


def _compared(
    fn: Callable[..., Any], args: tuple[Any, ...], scratch: Path, keep: int | None
) -> Divergence | None:
    from multiprocessing import get_context

    paths = [scratch / f"{seed}.trace" for seed in _SEEDS]
    for seed, path in zip(_SEEDS, paths, strict=True):
        process = get_context("spawn").Process(target=_traced, args=(fn, args, str(path), keep))
        with _hash_seed(seed):
            process.start()
        process.join()
        trouble = path.with_suffix(".error")
        if trouble.exists():
            raise ReproError(f"check: fn raised in a new process: {trouble.read_text()}")
        if process.exitcode:
            raise ReproError(f"check: the new process for fn ended with {process.exitcode}")
    return compare(*paths)


def _traced(fn: Callable[..., Any], args: tuple[Any, ...], path: str, keep: int | None) -> None:
    try:
        with isolated(0), record(path, keep=keep) as trace:
            result = fn(*args)
            trace.note("result", result)
    except Exception as error:  # noqa: BLE001 - told by the process that asked
        Path(path).with_suffix(".error").write_text(f"{type(error).__name__}: {error}"[:2000])


@contextmanager
def _hash_seed(seed: str) -> Iterator[None]:
    """Let processes that start in the block have a hash seed."""
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = seed
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = before
