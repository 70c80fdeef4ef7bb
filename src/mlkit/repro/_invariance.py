"""Does a row's result depend on the batch it travels in? Measured, for one function and one machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._arguments import whole
from mlkit.errors import ConfigurationError
from mlkit.repro._generators import loaded_torch
from mlkit.repro._seeding import isolated
from mlkit.repro._seeds import Seeds, as_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["InvarianceReport", "batch_invariance"]


class InvarianceReport(NamedTuple):
    """How the bits of a row depend on its batch.

    Attributes:
        stable: For each batch size, whether every row had the same bits at every place among any neighbours.
        size_matters: Whether a row has other bits in a batch of another size, among the stable sizes.
        smallest: The smallest stable size greater than 1: run everything padded to it. If size does not matter, no
            padding is needed at all. None if no such size is stable.
        threads: Torch's number of threads while it was measured; 0 without torch. It holds for this number only.
        trials: How many batches were run at each size.
    """

    stable: Mapping[int, bool]
    size_matters: bool
    smallest: int | None
    threads: int
    trials: int

    def __str__(self) -> str:
        unstable = [size for size, is_stable in self.stable.items() if not is_stable]
        if not self.size_matters and not unstable:
            return f"a row's bits do not depend on its batch, for sizes {list(self.stable)}"
        if self.smallest is None:
            return f"a row's bits depend on its batch at every size: {unstable}"
        text = f"a row's bits do not depend on its batch if every batch has {self.smallest} rows"
        return f"{text}; not so with {unstable}" if unstable else text


def batch_invariance(
    fn: Callable[[Any], Any],
    sample: Any,
    *,
    sizes: Iterable[int] = (1, 2, 4, 8, 16, 32, 64),
    trials: int = 16,
    seeds: Seeds | int = 0,
) -> InvarianceReport:
    """Measure whether a row's result depends on the other rows of its batch, and at which fixed size it does not.

    At each size, some rows are put at the first, the last and random places of batches whose other rows are drawn
    from the sample, and their results are compared bit by bit. Kernels choose their order of summation by the shape
    of the batch, and the last rows may be computed by another code path than the first.

    Args:
        fn: Takes a batch, of shape `(n, ...)`, and returns an array or tensor, or a mapping or sequence of them, each
            with one row for each row of the batch. It must draw nothing (a model in `eval()`).
        sample: Typical rows: a NumPy array or torch tensor of shape `(n, ...)`, at least 2 rows; more are better.
        sizes: The batch sizes to try, each `>= 1`.
        trials: How many batches to run at each size, at least 2.
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
        >>> print(batch_invariance(lambda batch: batch * 2, rows, sizes=[1, 2, 4]))
        a row's bits do not depend on its batch, for sizes [1, 2, 4]

    Note:
        Runs *fn* `len(sizes) * trials` times. See Horace He, "Defeating Nondeterminism in LLM Inference", 2025.
    """
    if not callable(fn):
        raise ConfigurationError("batch_invariance(fn)", fn, "a callable of one batch")
    rows = _rows(sample)
    wanted = sorted(
        {whole("batch_invariance(sizes=...)", size, low=1, high=2**20) for size in sizes}
    )
    if not wanted:
        raise ConfigurationError("batch_invariance(sizes=...)", sizes, "at least one batch size")
    repeats = whole("batch_invariance(trials=...)", trials, low=2, high=10_000)
    base = as_seeds(seeds, "batch_invariance(seeds=...)")
    seen: dict[int, dict[int, set[bytes]]] = {}
    with isolated():
        for size in wanted:
            seen[size] = _measure(fn, sample, rows, size, repeats, seeds=base / size)
    stable = {
        size: all(len(bits) == 1 for bits in probes.values()) for size, probes in seen.items()
    }
    kept = [probes for size, probes in seen.items() if stable[size]]
    matters = any(
        len(set.union(*(probes[row] for probes in kept))) > 1 for row in (kept[0] if kept else ())
    )
    smallest = next((size for size in wanted if size > 1 and stable[size]), None)
    torch = loaded_torch()
    threads = 0 if torch is None else int(torch.get_num_threads())
    return InvarianceReport(stable, matters, smallest, threads, repeats)


_PROBES = 4


def _rows(sample: Any) -> int:
    """Return how many rows the sample has."""
    shape = getattr(sample, "shape", None)
    if shape is None or len(shape) < 1 or shape[0] < 2:
        expected = "an array or tensor of at least 2 rows"
        raise ConfigurationError("batch_invariance(sample)", sample, expected)
    return int(shape[0])


def _measure(
    fn: Callable[[Any], Any], sample: Any, rows: int, size: int, trials: int, *, seeds: Seeds
) -> dict[int, set[bytes]]:
    """Return for each probe the different results that it had in batches of *size*."""
    draw = seeds.numpy()
    probes = list(range(min(_PROBES, rows)))
    seen: dict[int, set[bytes]] = {probe: set() for probe in probes}
    for trial in range(max(trials, 2 * len(probes)) if size == 1 else trials):
        batch = draw.integers(rows, size=size)
        # Each probe visits the first and the last place; the others take places at random.
        first = probes[trial // 2 % len(probes)]
        edge = 0 if trial % 2 == 0 else size - 1
        places = {edge: first}
        others = [probe for probe in probes if probe != first]
        for place, probe in zip(draw.permutation(size).tolist(), others, strict=False):
            places.setdefault(place, probe)
        for place, probe in places.items():
            batch[place] = probe
        outputs = _outputs(fn(_taken(sample, batch)), size)
        for place, probe in places.items():
            seen[probe].add(b"|".join(output[place].tobytes() for output in outputs))
    return {probe: bits for probe, bits in seen.items() if bits}


def _taken(sample: Any, batch: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(sample, torch.Tensor):
        return sample[torch.from_numpy(batch).to(sample.device)]
    return sample[batch]


def _outputs(result: Any, size: int) -> list[Any]:
    """Return every array of a result, checked to have one row for each row of the batch."""
    from collections.abc import Mapping

    import numpy as np

    from mlkit.repro._compare import as_array

    torch = sys.modules.get("torch")
    if isinstance(result, Mapping):
        return [array for key in result for array in _outputs(result[key], size)]
    if isinstance(result, (list, tuple)) and result and not np.isscalar(result[0]):
        return [array for item in result for array in _outputs(item, size)]
    if torch is not None and isinstance(result, torch.Tensor):
        array = as_array(torch, result)
    else:
        array = np.asarray(result)
    if array.ndim < 1 or array.shape[0] != size:
        expected = f"a function that returns {size} rows for a batch of {size}"
        raise ConfigurationError("batch_invariance(fn)", f"shape {array.shape}", expected)
    return [array]
