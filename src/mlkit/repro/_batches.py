"""A function run on many batches of the same rows: the bits that each row got, and what each batch cost."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._clock import current
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlkit.repro._seeds import Seeds

__all__ = ["Batch", "Batches", "Placed", "at_size", "row_of"]

_POOL = 32  # how many rows are followed


class Batch(NamedTuple):
    """Which rows of the sample a batch holds, in order."""

    rows: tuple[int, ...]

    def taken(self, sample: Any) -> Any:
        """Return the batch itself."""
        import numpy as np

        index = np.array(self.rows)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(sample, torch.Tensor):
            return sample[torch.from_numpy(index).to(sample.device)]
        return sample[index]


class Placed(NamedTuple):
    """One row at one place of one batch."""

    batch: Batch
    place: int


class Batches(NamedTuple):
    """What was seen at one size.

    Attributes:
        seen: For each row, the different results that it had, and where each was seen first.
        seconds: What the fastest batch cost.
    """

    seen: dict[int, dict[bytes, Placed]]
    seconds: float

    @property
    def unstable(self) -> tuple[Placed, Placed] | None:
        """Two places of one row at which its bits differ, or None."""
        for found in self.seen.values():
            if len(found) > 1:
                first, second, *_ = found.values()
                return first, second
        return None

    def differs_from(self, other: Batches) -> tuple[Placed, Placed] | None:
        """A place here and one in batches of another size at which a row's bits differ, or None."""
        for row, found in self.seen.items():
            ours, theirs = next(iter(found.items())), next(iter(other.seen[row].items()))
            if ours[0] != theirs[0]:
                return ours[1], theirs[1]
        return None


def at_size(fn: Callable[[Any], Any], sample: Any, size: int, trials: int, seeds: Seeds) -> Batches:
    """Run *fn* on at least *trials* batches of *size* rows, and follow each row of a pool through them."""
    pool = min(_POOL, int(sample.shape[0]))
    seen: dict[int, dict[bytes, Placed]] = {row: {} for row in range(pool)}
    seconds = float("inf")
    finish = _finisher(sample)
    clock = current()
    for batch in _arranged(pool, size, trials, seeds):
        rows = batch.taken(sample)
        begin = clock.monotonic()
        result = fn(rows)
        finish()
        seconds = min(seconds, clock.monotonic() - begin)
        outputs = list(_outputs(result, size))
        for place, row in enumerate(batch.rows):
            bits = b"|".join([output[place].tobytes() for output in outputs])
            seen[row].setdefault(bits, Placed(batch, place))
    return Batches(seen, max(seconds, 1e-9))  # a coarse clock may say zero


def _arranged(pool: int, size: int, trials: int, seeds: Seeds) -> Iterator[Batch]:
    """Return batches in which every row of the pool comes to every place, each time among other rows.

    A place whose rows start at a random one and move on by one row a batch has had all of them after *pool* batches.
    """
    draw = seeds.numpy()
    rounds = max(-(-trials // pool), 2 if size == 1 else 1)  # each row at least twice
    for _ in range(rounds):
        starts = draw.integers(pool, size=size)
        for number in range(pool):
            yield Batch(tuple(((starts + number) % pool).tolist()))


def _finisher(sample: Any) -> Callable[[], None]:
    """Return what waits until the device of *sample* is done."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(sample, torch.Tensor) or sample.device.type == "cpu":
        return lambda: None
    device: Any = getattr(torch, sample.device.type)
    finish: Callable[[], None] = device.synchronize
    return finish


def _outputs(result: Any, size: int) -> Iterator[Any]:
    """Return every array of a result, checked to have one row for each row of the batch."""
    from collections.abc import Mapping

    import numpy as np

    from mlkit.repro._tensors import as_array

    torch = sys.modules.get("torch")
    if isinstance(result, Mapping):
        for item in result.values():
            yield from _outputs(item, size)
        return
    if isinstance(result, (list, tuple)) and result and not np.isscalar(result[0]):
        for item in result:
            yield from _outputs(item, size)
        return
    if torch is not None and isinstance(result, torch.Tensor):
        array = as_array(torch, result)
    else:
        array = np.asarray(result)
    if array.ndim < 1 or array.shape[0] != size:
        expected = f"a function that returns {size} rows for a batch of {size}"
        raise ConfigurationError("batch_invariance(fn)", f"shape {array.shape}", expected)
    yield array


def row_of(array: Any, size: int, place: int) -> bytes | None:
    """Return the bytes of one row of what an operation made inside, or None if it has no rows.

    Inside a model the rows may lie along another axis (time first), or several to a row (the heads of attention).
    """
    import numpy as np

    if size in array.shape:
        return bytes(np.take(array, place, axis=array.shape.index(size)).tobytes())
    if array.ndim and array.shape[0] and array.shape[0] % size == 0:
        each = array.shape[0] // size
        return bytes(array[place * each : (place + 1) * each].tobytes())
    return None
