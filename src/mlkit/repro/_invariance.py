"""Does a row's result depend on the batch it travels in? Measured, for one function and one machine."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import whole
from mlkit.errors import ConfigurationError
from mlkit.repro._batches import Batches, at_size
from mlkit.repro._generators import loaded_torch
from mlkit.repro._seeding import isolated
from mlkit.repro._seeds import Seeds, as_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["InvarianceReport", "batch_invariance"]


class InvarianceReport(NamedTuple):
    """How the bits of a row depend on its batch, on one machine and number of threads.

    Attributes:
        stable: For each batch size, whether every row had the same bits at every place among any neighbours.
        size_matters: Whether a row has other bits in a batch of another size, among the stable sizes.
        smallest: The smallest stable size greater than 1: run everything padded to it. If size does not matter, no
            padding is needed at all. None if no such size is stable.
        threads: Torch's number of threads that all of this holds for; 0 without torch.
        trials: How many batches were run at each size, at least.
        costs: For each stable size greater than 1, what running in batches padded to it costs as a multiple of
            running as is, by the size of what comes: `costs[64][8] == 2.4` means that 8 rows padded to 64 take 2.4
            times as long as 8 rows. By the fastest of the batches that were run; padding itself is not counted.
        op: The first torch operation that gives a row other bits in another batch, with its module and your line.
            None if bits do not depend on the batch, or if no operation of torch was seen to do it.
    """

    stable: Mapping[int, bool]
    size_matters: bool
    smallest: int | None
    threads: int
    trials: int
    costs: Mapping[int, Mapping[int, float]]
    op: str | None

    def cheapest(self, size: int) -> int | None:
        """Return the stable size to pad to that costs least for batches of *size* rows; None if there is none.

        Args:
            size: One of the sizes that were measured.

        Raises:
            ConfigurationError: If it was not measured.
        """
        if size not in self.stable:
            expected = f"one of the sizes that were measured, {list(self.stable)}"
            raise ConfigurationError("InvarianceReport.cheapest(size)", size, expected)
        return min(self.costs, key=lambda fixed: self.costs[fixed][size], default=None)

    def __str__(self) -> str:
        unstable = [size for size, is_stable in self.stable.items() if not is_stable]
        on = f", on {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        if not self.size_matters and not unstable:
            return f"a row's bits do not depend on its batch, for sizes {list(self.stable)}{on}"
        because = f"; because of {self.op}" if self.op else ""
        if self.smallest is None:
            return f"a row's bits depend on its batch at every size: {unstable}{on}{because}"
        text = (
            f"a row's bits do not depend on its batch if every batch has {self.smallest} rows{on}"
        )
        if unstable:
            text += f"; not so with {unstable}"
        curve = [f"{cost:.2g}x for {size}" for size, cost in self.costs[self.smallest].items()]
        return f"{text}{because}; it costs {', '.join(curve)}"


def batch_invariance(
    fn: Callable[[Any], Any],
    sample: Any,
    *,
    sizes: Iterable[int] = (1, 2, 4, 8, 16, 32, 64),
    threads: Iterable[int] | None = None,
    trials: int = 16,
    seeds: Seeds | int = 0,
) -> InvarianceReport:
    """Measure whether a row's result depends on the other rows of its batch, and at which fixed size it does not.

    At each size, each of up to 32 rows of the sample travels at each place of a batch, among others each time, and
    its results are compared bit by bit. Kernels choose their order of summation by the shape of the batch and the number of threads,
    and the last rows may be computed by another code path than the first.

    Args:
        fn: Takes a batch, of shape `(n, ...)`, and returns an array or tensor, or a mapping or sequence of them, each
            with one row for each row of the batch. It must draw nothing (a model in `eval()`).
        sample: Typical rows: a NumPy array or torch tensor of shape `(n, ...)`, at least 2 rows. The first 32 are
            followed.
        sizes: The batch sizes to try, each `>= 1`.
        threads: Torch's numbers of threads to try, in order of preference: the report is about the first on which a
            size greater than 1 is stable, or about the first if none is. None tries the present number, then 1.
        trials: How many batches to run at each size at least, 2 or more: as many as followed rows are run anyway.
        seeds: What chooses the places and neighbours.

    Returns:
        The report. It is evidence for this function, machine and number of threads, not a proof.

    Raises:
        ConfigurationError: If an argument is wrong, or *fn* does not return one row for each.

    Examples:
        >>> import numpy as np
        >>> rows = np.arange(12.0).reshape(6, 2)
        >>> report = batch_invariance(lambda batch: batch - batch.mean(axis=0), rows, sizes=[1, 2, 4])
        >>> report.stable
        {1: True, 2: False, 4: False}
        >>> report = batch_invariance(lambda batch: batch * len(batch), rows, sizes=[1, 2, 4])
        >>> report.size_matters, report.smallest
        (True, 2)

    Note:
        Runs *fn* about 250 times with the defaults, for each number of threads that it has to try. Sets torch's number
        of threads meanwhile. See Horace He, "Defeating Nondeterminism in LLM Inference", 2025.
    """
    if not callable(fn):
        raise ConfigurationError("batch_invariance(fn)", fn, "a callable of one batch")
    _check_rows(sample)
    wanted = sorted(
        {whole("batch_invariance(sizes=...)", size, low=1, high=2**20) for size in sizes}
    )
    if not wanted:
        raise ConfigurationError("batch_invariance(sizes=...)", sizes, "at least one batch size")
    repeats = whole("batch_invariance(trials=...)", trials, low=2, high=10_000)
    base = as_seeds(seeds, "batch_invariance(seeds=...)")
    first: InvarianceReport | None = None
    for count in _thread_counts(threads):
        with isolated(), _threads(count):
            found = {size: at_size(fn, sample, size, repeats, base / size) for size in wanted}
            report = _report(fn, sample, found, threads=count, trials=repeats)
        if report.smallest is not None:
            return report
        first = first or report
    assert first is not None  # noqa: S101 - there is at least one number of threads
    return first


def _check_rows(sample: Any) -> None:
    shape = getattr(sample, "shape", None)
    if shape is None or len(shape) < 1 or shape[0] < 2:
        expected = "an array or tensor of at least 2 rows"
        raise ConfigurationError("batch_invariance(sample)", sample, expected)


def _thread_counts(threads: Iterable[int] | None) -> list[int]:
    """Return the numbers of threads to try; 0 stands for a process without torch."""
    torch = loaded_torch()
    argument = "batch_invariance(threads=...)"
    if threads is None:
        return [0] if torch is None else list(dict.fromkeys([torch.get_num_threads(), 1]))
    counts = [whole(argument, count, low=1, high=1024) for count in threads]
    if not counts:
        raise ConfigurationError(argument, threads, "at least one number of threads")
    if torch is None:
        expected = "None, while torch, whose threads they are, is not imported"
        raise ConfigurationError(argument, threads, expected)
    return list(dict.fromkeys(counts))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use *count* threads inside."""
    torch = loaded_torch()
    if torch is None or torch.get_num_threads() == count:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _report(
    fn: Callable[[Any], Any],
    sample: Any,
    found: dict[int, Batches],
    *,
    threads: int,
    trials: int,
) -> InvarianceReport:
    stable = {size: batches.unstable is None for size, batches in found.items()}
    kept = [size for size in found if stable[size]]
    # A single row often takes a path of its own: if two other sizes differ too, they say more.
    pairs = [
        found[base].differs_from(found[size])
        for base in (*kept[1:2], *kept[:1])
        for size in kept
        if size != base
    ]
    other_size = next((pair for pair in pairs if pair), None)
    pair = next((one.unstable for one in found.values() if one.unstable), other_size)
    costs = {
        fixed: {
            size: -(-size // fixed) * found[fixed].seconds / batches.seconds
            for size, batches in found.items()
        }
        for fixed in kept
        if fixed > 1
    }
    # With all that follows operations, for who needs it.
    from mlkit.repro._batch_op import breaking_op

    return InvarianceReport(
        stable,
        size_matters=other_size is not None,
        smallest=next(iter(costs), None),
        threads=threads,
        trials=trials,
        costs=costs,
        op=breaking_op(fn, sample, *pair) if pair else None,
    )
