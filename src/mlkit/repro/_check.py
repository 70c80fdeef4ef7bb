"""Run something more than once, and name the first place where it differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import whole
from mlkit._suggest import did_you_mean
from mlkit.errors import ConfigurationError
from mlkit.repro._generators import loaded_torch
from mlkit.repro._seeding import isolated
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlkit.repro._trace import Mismatch, Trace

__all__ = ["Divergence", "check"]

_VARIATIONS = ("threads",)
_TRIES = 3


class Divergence(NamedTuple):
    """Where two runs first differ.

    Attributes:
        run: Which run differed from the first, counted from 1.
        setting: What was different about that run, `"2 threads instead of 1"`; empty if nothing was.
        op: The torch operation, `"aten::index_put_"`; empty if the results differ without one.
        module: The module it ran in, `"Net.pool"`; empty outside of a module's forward.
        call: The number of the operation in the run, from 0; None without one.
        line: The user's line it came from, `"train.py:88"`; empty if unknown.
        path: Where in the result, `"$['loss']"`, or which output of the operation.
        reason: What differs: a value, a dtype, a shape, a length, an operation.
        element: The index of the first element that differs.
        differing: How many elements differ.
        total: How many there are.
        max_ulps: The largest distance in units in the last place, for floating-point values.
    """

    run: int
    setting: str
    op: str
    module: str
    call: int | None
    line: str
    path: str
    reason: str
    element: tuple[int, ...] | None
    differing: int
    total: int
    max_ulps: int | None

    def __str__(self) -> str:
        place = f"{self.op} in {self.module}" if self.module else self.op
        place = f"{place} (call {self.call})" if self.op else f"the result at {self.path}"
        text = f"{place}: {self.reason}"
        if self.differing:
            text += f"; {self.differing} of {self.total} elements differ"
        if self.element:
            text += f", the first at {list(self.element)}"
        if self.max_ulps is not None:
            text += f", by at most {self.max_ulps} ulp"
        if self.line:
            text += f"; {self.line}"
        return f"{text}; with {self.setting}" if self.setting else text


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
            tensors, numbers (NaN equals NaN of the same bits, 0.0 is not -0.0), and anything else with `==`.
        *args: Its arguments.
        runs: How often to run it under equal conditions, at least 2.
        vary: What to change in one more run each: `"threads"`, torch's number of threads.

    Returns:
        The first difference, or None.

    Raises:
        ConfigurationError: If an argument is wrong, or `"threads"` is asked for without torch.
        Exception: What *fn* raises.

    Examples:
        >>> check(lambda values: sum(values), [0.1, 0.2, 0.3]) is None
        True
        >>> from itertools import count
        >>> ticks = count()
        >>> print(check(lambda: {"tick": next(ticks)}))
        the result at $['tick']: 0 became 1

    Note:
        One digest is kept for each operation of the first run. Operations in the backward pass have no module name.
    """
    if not callable(fn):
        raise ConfigurationError("check(fn)", fn, "a callable")
    from mlkit.repro._compare import frozen, results_differ
    from mlkit.repro._trace import Trace

    count = whole("check(runs=...)", runs, low=2, high=1000)
    variations = _variations(vary)
    reference = Trace()
    first = frozen(_run(fn, args, reference))
    settings: list[int | None] = [None] * (count - 1)
    settings += [_other_threads() for name in variations if name == "threads"]
    for run, threads in enumerate(settings, 1):
        trace = Trace(reference.steps)
        result = _run(fn, args, trace, threads)
        setting = "" if threads is None else f"{threads} threads instead of {_threads()}"
        found: Divergence | None = None
        if trace.mismatch is not None:
            found = _of_operation(fn, args, trace.mismatch, run, setting)
        elif (difference := results_differ(first, result)) is not None:
            found = Divergence(run, setting, "", "", None, "", *difference)
        if found is not None:
            emit("repro.divergence.found", getattr(fn, "__qualname__", "fn"), op=found.op)
            return found
    return None


def _variations(vary: Iterable[str]) -> list[str]:
    names = [vary] if isinstance(vary, str) else list(vary)
    for name in names:
        if name not in _VARIATIONS:
            near = did_you_mean(str(name), _VARIATIONS).removeprefix("; ")
            raise ConfigurationError(
                "check(vary=...)", name, f"names among {_VARIATIONS}", hint=near
            )
    if "threads" in names and loaded_torch() is None:
        hint = "import torch first"
        raise ConfigurationError("check(vary=...)", "threads", "what this process has", hint=hint)
    return names


def _run(fn: Callable[..., Any], args: Any, trace: Trace, threads: int | None = None) -> Any:
    import copy

    from mlkit.repro._trace import threaded, tracing

    own = copy.deepcopy(args)
    with isolated(), threaded(threads), tracing(trace):
        return fn(*own)


def _of_operation(
    fn: Callable[..., Any], args: Any, mismatch: Mismatch, run: int, setting: str
) -> Divergence:
    """Describe the operation that differs, with the values of a run like the first if it can be had."""
    from mlkit.repro._compare import Difference, results_differ
    from mlkit.repro._trace import Trace

    expected, got = mismatch.expected, mismatch.got
    step = got or expected
    assert step is not None  # noqa: S101 - a mismatch has one of them
    difference: Difference | None = None
    if expected is None or got is None:
        there = "only the later run runs it" if expected is None else "only the first run runs it"
        difference = Difference("$", there)
    elif expected.op != got.op or expected.module != got.module:
        was = f"{expected.op} in {expected.module}" if expected.module else expected.op
        difference = Difference("$", f"the first run runs {was} here")
    elif expected.kind != got.kind:
        difference = Difference("$", f"{expected.kind} became {got.kind}")
    for _ in range(_TRIES if difference is None else 0):
        # Only digests of the first run were kept; one more run has the values, if it behaves like the first.
        again = Trace([], keep=mismatch.call)
        _run(fn, args, again)
        difference = results_differ(again.kept, mismatch.values)
        if difference is not None:
            break
    if difference is None:
        difference = Difference("$", "its output differs; no later run repeats the first run's")
    return Divergence(run, setting, step.op, step.module, mismatch.call, mismatch.line, *difference)


def _threads() -> int:
    torch = loaded_torch()
    return 1 if torch is None else int(torch.get_num_threads())


def _other_threads() -> int:
    import os

    if _threads() > 1:
        return 1
    return min(4, max(2, os.cpu_count() or 2))
