"""Run something more than once, and name the first place where it differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import whole
from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError
from mlkit.repro._divergence import Divergence
from mlkit.repro._generators import loaded_torch
from mlkit.repro._seeding import isolated
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.repro._steps import Steps
    from mlkit.repro._trace import Mismatch, Trace
    from mlkit.repro._vary import Change

__all__ = ["check"]

_VARIATIONS = ("threads", "order", "workers", "hashseed")
_TRIES = 3


def check(
    fn: Callable[..., Any], *args: Any, runs: int = 2, vary: Iterable[str] = ()
) -> Divergence | None:
    """Run `fn(*args)` several times and return the first difference, or None if every bit is the same.

    Each run starts with the same state of the global generators, which are put back afterwards, and with its own deep
    copy of *args*. `fn` must build the rest of its state itself: a training step that goes on with the weights of the
    step before differs by right. If torch is imported, every operation is compared, so that the first one that
    differs is named and not only its late effects.

    Args:
        fn: What to run. Results are compared bit by bit: mappings (with their order), sequences, dataclasses, arrays,
            tensors, pandas tables, numbers (NaN equals NaN of the same bits, 0.0 is not -0.0), and anything else with
            `==`.
        *args: Its arguments.
        runs: How often to run it under equal conditions, at least 2.
        vary: What to change besides, one at a time:

            - `"threads"`: torch's number of threads.
            - `"order"`: folders are listed the other way round (`os.listdir`, `os.scandir`, and what uses them).
            - `"workers"`: torch's data loaders have 0 and 2 worker processes; each batch counts as an operation.
            - `"hashseed"`: two new processes with another `PYTHONHASHSEED`, for what depends on the order of sets. `fn`
              must be a function of a module, and a script that calls `check` must guard it with `if __name__ ==
              "__main__"`, as for `multiprocessing`.

    Returns:
        The first difference, or None.

    Raises:
        ConfigurationError: If an argument is wrong or cannot be copied (a tensor in the middle of an autograd graph), the
            results cannot be compared, `"threads"` or `"workers"` is asked for without torch, or `"hashseed"` for a function
            that a new process cannot import.
        ReproError: If *fn* raises in a new process.
        Exception: What *fn* raises.

    Examples:
        >>> check(lambda values: sum(values), [0.1, 0.2, 0.3]) is None
        True
        >>> from itertools import count
        >>> ticks = count()
        >>> print(check(lambda: {"tick": next(ticks)}))
        the result at $['tick']: 0 became 1

    Note:
        One digest is kept for each operation of the first run; `record` and `compare` keep them in files. Operations
        in the backward pass have no module name. What `torch.compile` compiles runs as it is written.
    """
    if not callable(fn):
        raise ConfigurationError("check(fn)", fn, "a callable")
    count = whole("check(runs=...)", runs, low=2, high=1000)
    variations = _variations(vary)
    found = _found(fn, args, count, variations)
    if found is not None:
        emit("repro.divergence.found", getattr(fn, "__qualname__", "fn"), op=found.op)
    return found


def _found(
    fn: Callable[..., Any], args: Any, count: int, variations: list[str]
) -> Divergence | None:
    from mlkit.repro._vary import listed_backwards, other_threads, unchanged, workers

    changes: list[Change] = [unchanged] * (count - 1)
    changes += [
        listed_backwards if name == "order" else other_threads
        for name in variations
        if name in _HERE
    ]
    found = _first_difference(fn, args, unchanged, changes)
    if found is None and "workers" in variations:
        found = _first_difference(fn, args, workers(0), [workers(2)])
    if found is None and "hashseed" in variations:
        from mlkit.repro._apart import hash_seeds_differ

        found = hash_seeds_differ(fn, args)
    return found


_HERE = ("threads", "order")  # can be changed for a run that is compared with the first


def _first_difference(
    fn: Callable[..., Any], args: Any, change: Change, others: Iterable[Change]
) -> Divergence | None:
    """Run it once with one change, and return where a run with one of the others first differs."""
    from contextlib import closing

    from mlkit.repro._steps import Steps

    with closing(Steps()) as steps:
        reference = _Reference.of(fn, args, change, steps)
        differences = (reference.differs(other, run) for run, other in enumerate(others, 1))
        return next((found for found in differences if found is not None), None)


def _variations(vary: Iterable[str]) -> list[str]:
    names = [vary] if isinstance(vary, str) else list(vary)
    for name in names:
        if name not in _VARIATIONS:
            near = did_you_mean(str(name), _VARIATIONS).removeprefix("; ")
            raise ConfigurationError(
                "check(vary=...)", name, f"names among {_VARIATIONS}", hint=near
            )
        if name in {"threads", "workers"} and loaded_torch() is None:
            hint = "import torch first"
            raise ConfigurationError("check(vary=...)", name, "what this process has", hint=hint)
    return names


class _Reference(NamedTuple):
    """The run that others are compared with."""

    fn: Callable[..., Any]
    args: Any
    change: Change
    steps: Steps
    result: Any

    @classmethod
    def of(cls, fn: Callable[..., Any], args: Any, change: Change, steps: Steps) -> _Reference:
        from mlkit.repro._compare import frozen
        from mlkit.repro._trace import Trace

        result, _ = _run(fn, args, Trace(steps), change)
        return cls(fn, args, change, steps, frozen(result))

    def differs(self, change: Change, run: int) -> Divergence | None:
        """Run it once more, with something changed, and return the first difference."""
        from mlkit.repro._compare import results_differ
        from mlkit.repro._trace import Trace

        trace = Trace(reference=self.steps)
        result, setting = _run(self.fn, self.args, trace, change)
        if trace.mismatch is not None:
            return self._of_operation(trace.mismatch, run, setting)
        difference = results_differ(self.result, result)
        if difference is None:
            return None
        return Divergence(run, setting, "", "", None, "", *difference)

    def _of_operation(self, mismatch: Mismatch, run: int, setting: str) -> Divergence:
        """Describe the operation that differs, with the values of a run like the first if it can be had."""
        from mlkit.repro._compare import Difference, results_differ
        from mlkit.repro._trace import Trace

        expected, got = mismatch.expected, mismatch.got
        step = got or expected
        assert step is not None  # noqa: S101 - a mismatch has one of them
        difference: Difference | None = None
        if expected is None or got is None:
            there = (
                "only the later run runs it" if expected is None else "only the first run runs it"
            )
            difference = Difference("$", there)
        elif expected.op != got.op or expected.module != got.module:
            was = f"{expected.op} in {expected.module}" if expected.module else expected.op
            difference = Difference("$", f"the first run runs {was} here")
        elif expected.kind != got.kind:
            difference = Difference("$", f"{expected.kind} became {got.kind}")
        for _ in range(_TRIES if difference is None else 0):
            # Only digests of the first run were kept; one more run has the values, if it behaves like the first.
            again = Trace(keep=mismatch.call)
            _run(self.fn, self.args, again, self.change)
            difference = results_differ(again.kept, mismatch.values)
            if difference is not None:
                break
        if difference is None:
            difference = Difference("$", "its output differs; no later run repeats the first run's")
        call, line = mismatch.call, mismatch.line
        return Divergence(run, setting, step.op, step.module, call, line, *difference)


def _run(fn: Callable[..., Any], args: Any, trace: Trace, change: Change) -> tuple[Any, str]:
    """Return the result of one run, and what was changed for it."""
    from mlkit.repro._trace import tracing

    own = _copied(args)
    with isolated(), change(trace) as setting, tracing(trace):
        return fn(*own), setting


def _copied(args: Any) -> Any:
    import copy

    try:
        return copy.deepcopy(args)
    except Exception as error:
        hint = "make it inside of fn"
        expected = "arguments that copy.deepcopy can copy, one for each run"
        raise ConfigurationError("check(*args)", args, expected, hint=hint) from error
