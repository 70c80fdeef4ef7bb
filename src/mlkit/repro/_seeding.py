"""Seed what a user cannot avoid, and leave it as it was found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar, cast, final

from mlkit.errors import ConfigurationError
from mlkit.repro._determinism import Finding, make_deterministic
from mlkit.repro._generators import Snapshot, loaded_torch, prepare, take
from mlkit.repro._seeds import Seeds, as_rank, as_seeds, words_of
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

__all__ = ["SeedReport", "isolated", "seed_all", "seed_everything"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class SeedReport(NamedTuple):
    """What `seed_all` did.

    Attributes:
        seeds: The seeds that the generators now follow, with the rank in their path.
        bits: How many bits of seed each global generator got, by name.
        skipped: Which were left alone, and why.
        findings: What could not be made deterministic, if that was asked for.
    """

    seeds: Seeds
    bits: Mapping[str, int]
    skipped: Mapping[str, str]
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        lines = [f"seeded from {self.seeds!r}:"]
        lines += [f"  {name}: {bits} bits" for name, bits in self.bits.items()]
        lines += [f"  {name}: left alone, {reason}" for name, reason in self.skipped.items()]
        return "\n".join([*lines, *(f"  {finding}" for finding in self.findings)])


def seed_all(
    seeds: Seeds | int,
    *,
    rank: int | None = None,
    deterministic: bool | Literal["warn"] = False,
) -> SeedReport:
    """Seed the global generators of Python, NumPy and torch, each with words of its own.

    Either all are seeded or, if an argument is wrong, none. torch is seeded only if it is imported already (importing
    it costs seconds), so call this after `import torch`; the report says what was left alone.

    Args:
        seeds: The seeds, or the root of some.
        rank: Number of this process among many, `>= 0`: each rank gets streams of its own. None for one process; that
            is not rank 0.
        deterministic: Also switch torch to deterministic algorithms, for good; `"warn"` lets operations that have
            none run with a warning. Use `deterministic` for a part of the program.

    Returns:
        What was seeded, with how many bits, and what was not.

    Raises:
        ConfigurationError: If an argument is wrong.
        ReproError: If NumPy's global generator was replaced by one that cannot be seeded.

    Examples:
        >>> import random
        >>> report = seed_all(Seeds(7))
        >>> first = random.random()
        >>> report = seed_all(Seeds(7), rank=1)
        >>> random.random() == first
        False
        >>> report.bits["numpy"]
        128

    Note:
        Other libraries' seed functions give NumPy and torch the same Mersenne Twister state, so that
        `numpy.random.randint(0, 256, n)` and `torch.randint(0, 256, (n,))` agree in every draw. These do not.
        Not for use while other threads draw.
    """
    base = as_seeds(seeds, "seed_all(seeds)")
    if (number := as_rank("seed_all(rank=...)", rank)) is not None:
        base = base / "rank" / number
    if deterministic not in (True, False, "warn") or not isinstance(deterministic, (bool, str)):
        expected = "True, False or 'warn'"
        raise ConfigurationError("seed_all(deterministic=...)", deterministic, expected)
    steps = prepare(words_of(base))
    for _, step in steps.values():
        step()
    skipped = {}
    if loaded_torch() is None:
        skipped["torch"] = "it is not imported; import it before seed_all"
    findings: tuple[Finding, ...] = ()
    if deterministic:
        findings = make_deterministic(warn_only=deterministic == "warn")
    emit("repro.generators.seeded", "seed_all", rank=rank, generators=", ".join(steps))
    return SeedReport(base, {name: bits for name, (bits, _) in steps.items()}, skipped, findings)


seed_everything = seed_all


@final
class isolated:  # noqa: N801 - reads as the statement it is: `with isolated(7):`
    """Leave every global generator as it was found, on any exit; inside, draw from *seeds* if given.

    A context manager, and a decorator for functions and coroutine functions. Python, NumPy and torch are put back
    exactly, with the Gaussian that each keeps for later; CUDA generators too if CUDA had been started before, and
    nothing here starts it. Exceptions, `KeyboardInterrupt` and `GeneratorExit` restore as well. May be nested and
    entered again. Generators are global to the process: other threads and tasks that draw meanwhile are not separated.

    torch is put back if it was imported before the block was entered; MPS and XPU devices are not.

    Args:
        seeds: What to seed the generators with inside; None lets them go on from where they are.

    Raises:
        ConfigurationError: If *seeds* is no seed, or what is decorated is a generator function, whose body would run
            outside of it.

    Examples:
        >>> import random
        >>> _ = seed_all(1)
        >>> expected = random.Random(); expected.setstate(random.getstate())
        >>> with isolated(7):
        ...     noise = random.random()
        >>> random.random() == expected.random()
        True
    """

    __slots__ = ("_seeds", "_taken")

    def __init__(self, seeds: Seeds | int | None = None) -> None:
        self._seeds = None if seeds is None else as_seeds(seeds, "isolated(seeds)")
        self._taken: list[Snapshot] = []

    def __enter__(self) -> None:
        before = take(copy=True)
        if self._seeds is not None:
            try:
                seed_all(self._seeds)
            except BaseException:
                before.restore()
                raise
        self._taken.append(before)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        before = self._taken.pop()
        try:
            before.restore()
        except BaseException:  # interrupted half-way: what is left is put back first
            before.restore()
            raise

    def __call__(self, function: Callable[_P, _T], /) -> Callable[_P, _T]:
        """Return *function* such that each call runs isolated.

        Args:
            function: A function or a coroutine function, or an object that is called like one.
        """
        import inspect
        from functools import wraps

        if not callable(function):
            raise ConfigurationError("@isolated(...)", function, "a function")
        # Of an object, what it does when it is called.
        kind = function if inspect.isroutine(function) else type(function).__call__
        if any(map(inspect.isgeneratorfunction, (function, kind))) or any(
            map(inspect.isasyncgenfunction, (function, kind))
        ):
            hint = "use `with isolated(...):` inside, around code that does not yield"
            raise ConfigurationError("@isolated(...)", function, "no generator function", hint=hint)
        seeds = self._seeds
        if any(map(inspect.iscoroutinefunction, (function, kind))):

            @wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with isolated(seeds):
                    return await cast("Any", function)(*args, **kwargs)

            return awaited  # type: ignore[return-value]

        @wraps(function)
        def called(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with isolated(seeds):
                return function(*args, **kwargs)

        return called
