"""What a batch costs, learned from the batches that ran."""

from __future__ import annotations

from collections import deque
from itertools import product
from typing import Any, NamedTuple, final
from weakref import WeakKeyDictionary

__all__ = ["Cost", "Learned", "learned_for"]

_GUESS_START = 64.0  # before anything ran: starting a batch costs as much as this many entries
_KEPT = 256  # measurements; older ones make room, since machines change their pace
_ROUNDS = 4  # of weighing measurements anew by how far off they are
# A measurement that is this far above the fit counts less: the machine did something else.
_TRUSTED = 0.1
# How much rows and squares must explain to be taken for costs; never 0, so that no equation is singular.
_PLAIN = (1e-9, 0.01, 1e-9, 0.01)
_FIRST = 4096  # entries in a batch before anything ran
_STEP = 4  # how much larger than any batch that ran a batch may be
_ENOUGH = 4  # batches of about one size, for a word about that size
_SLOWER = 0.92  # sizes whose best takes more than this part of their time per work are as good
_PATIENCE = 16  # batches near a limit that memory set, before a larger one is tried


class Cost(NamedTuple):
    """Seconds of a batch of `n` rows as long as the longest, `l`: `start + n * (row + entry * l + square * l**2)`.

    Attributes:
        start: Seconds per batch.
        row: Seconds per row.
        entry: Seconds per entry of a row, filling included.
        square: Seconds per row and squared length, as attention has.
    """

    start: float = _GUESS_START
    row: float = 0.0
    entry: float = 1.0
    square: float = 0.0

    def per_row(self, length: int) -> float:
        """Return the seconds that one more row of *length* adds."""
        return self.row + length * (self.entry + length * self.square)


@final
class Learned:
    """The cost of batches and the largest one that memory allows, as known so far. One thread at a time.

    Attributes:
        cost: The fit; a guess with no unit before the first one.
        n_seen: How many measurements there were.
        cap: The most entries, filling included, in one batch.
    """

    __slots__ = (
        "_best",
        "_largest",
        "_limit",
        "_patience",
        "_probing",
        "_seen",
        "_streak",
        "cost",
        "n_seen",
    )

    def __init__(self) -> None:
        self.cost = Cost()
        self.n_seen = 0
        self._seen: deque[tuple[int, int, float]] = deque(maxlen=_KEPT)
        self._largest = _FIRST // _STEP
        self._limit: int | None = None  # what memory allows, once it ran out
        self._best: int | None = None  # beyond it batches have turned out slower
        self._streak, self._patience, self._probing = 0, _PATIENCE, False

    @property
    def cap(self) -> int:
        bounds = (_STEP * self._largest, self._limit, self._best)
        return min(bound for bound in bounds if bound is not None)

    def observe(self, n_rows: int, length: int, seconds: float) -> bool:
        """Take in how long a batch took, and return whether the fit was renewed."""
        self.n_seen += 1
        if self.n_seen == 1:
            return False  # the first call of a model also pays for what is done once
        if seconds > 0:
            self._seen.append((n_rows, length, seconds))
        n = len(self._seen)
        due = n >= 3 and (_round(n) if self.n_seen < _KEPT else self.n_seen % 32 == 0)
        if due:
            self._renew(list(self._seen))
        return due

    def _renew(self, seen: list[tuple[int, int, float]]) -> None:
        """Fit anew: caches make large batches slower than any line says, so look for the size up to which one holds."""
        self.cost = fit(seen) or self.cost
        self._best = best_size(seen, self.cost)
        if self._best is not None:
            small = [one for one in seen if one[0] * one[1] <= self._best]
            self.cost = fit(small) or self.cost

    def fitted(self, n_rows: int, length: int) -> None:
        """Note that memory sufficed for a batch."""
        entries = n_rows * length
        self._largest = max(self._largest, entries)
        if self._limit is None or 2 * entries < self._limit:
            return
        self._probing = False
        self._streak += 1
        if self._streak >= self._patience:
            self._limit, self._streak, self._probing = 2 * self._limit, 0, True

    def ran_out(self, entries: int) -> None:
        """Note that memory ran out, and that a batch of *entries* fitted afterwards."""
        if self._probing:
            self._patience *= 2
        self._limit, self._streak, self._probing = max(entries, 1), 0, False


# Per function and device. An entry goes with its function.
_known: WeakKeyDictionary[Any, dict[tuple[str, str], Learned]] = WeakKeyDictionary()


def learned_for(owner: object, key: tuple[str, str]) -> Learned:
    """Return what is known about *owner* in this process, or a beginning."""
    try:
        known = _known.setdefault(owner, {})
    except TypeError:  # it cannot be referred to weakly
        return Learned()
    # Two jobs at once learn apart; the one that began last is remembered.
    old, new = known.get(key), Learned()
    if old is not None:
        new.cost, new.n_seen = old.cost, old.n_seen
        new._seen.extend(old._seen)  # noqa: SLF001 - its own class
        new._largest, new._limit, new._best = old._largest, old._limit, old._best  # noqa: SLF001
    known[key] = new
    return new


def _round(n: int) -> bool:
    """Return whether *n* is a power of two or one and a half times one."""
    n //= n & -n
    return n in (1, 3)


def best_size(seen: list[tuple[int, int, float]], cost: Cost) -> int | None:
    """Return the most entries in a batch beyond which work takes longer; None if there is no such size.

    Args:
        seen: Rows, length and seconds of batches.
        cost: What makes batches of different lengths comparable.
    """
    sizes: dict[int, list[float]] = {}
    for n_rows, length, seconds in seen:
        work = n_rows * cost.per_row(length)
        if work > 0:
            sizes.setdefault((n_rows * length).bit_length(), []).append(seconds / work)
    # Other work on the machine only ever slows down: the lower quartile is the machine's own.
    paces = {
        size: sorted(some)[len(some) // 4] for size, some in sizes.items() if len(some) >= _ENOUGH
    }
    if not paces:
        return None
    good = max(size for size, pace in paces.items() if pace * _SLOWER <= min(paces.values()))
    return None if good == max(paces) else (1 << good) - 1


def fit(seen: list[tuple[int, int, float]]) -> Cost | None:
    """Return the cost that explains *seen* best: relative errors, no negative part, and little heed to slow outliers.

    Args:
        seen: Rows, length and seconds of batches.
    """
    import numpy as np

    n, length, seconds = (np.array(column, float) for column in zip(*seen, strict=True))
    parts = np.stack([np.ones_like(n), n, n * length, n * length * length], axis=1)
    parts /= seconds[:, None]
    scale = parts.max(axis=0)
    scale[scale == 0] = 1.0
    parts /= scale
    weights = np.ones_like(n)
    best = None
    for _ in range(_ROUNDS):
        best = _not_negative(parts * weights[:, None], weights)
        if best is None:
            return None
        # Below 0: slower than predicted. Other work on the machine only ever slows down.
        off = parts @ best - 1
        weights = np.sqrt(_TRUSTED / np.maximum(-off, _TRUSTED))
    return Cost(*(best / scale).tolist()) if best is not None else None


def _not_negative(parts: Any, target: Any) -> Any:
    """Solve least squares with no negative unknown, by trying which of the four unknowns are zero."""
    import numpy as np

    gram, right = parts.T @ parts, parts.T @ target
    gram += np.diag(_PLAIN) * len(parts)
    # One equation for each choice, solved in one go: an unknown that is not chosen is alone in a row, and 0.
    chosen = np.array(list(product((0.0, 1.0), repeat=4)))[1:]
    grams = gram * chosen[:, :, None] * chosen[:, None, :]
    grams[:, range(4), range(4)] += 1 - chosen
    try:
        every = np.linalg.solve(grams, (right * chosen)[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        return None
    every = every[np.isfinite(every).all(axis=1) & (every >= 0).all(axis=1)]
    if not len(every):
        return None
    errors = ((every @ gram - 2 * right) * every).sum(axis=1)
    return every[errors.argmin()]
