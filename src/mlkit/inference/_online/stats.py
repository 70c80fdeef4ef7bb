"""What a batcher has done: the counts it keeps, their snapshot, and samples for telemetry."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, final

from mlkit.telemetry import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlkit.inference._online.groups import Group

__all__ = ["BatcherStats", "Quantiles", "Tally", "as_samples", "with_quantiles"]

_RECENT = 4096  # rows whose latency is kept


class Quantiles(NamedTuple):
    """How some durations were spread, in seconds; all 0.0 if there are none.

    Attributes:
        n: How many durations.
        p50: Half of them were at most this long.
        p90: Nine of ten.
        p99: 99 of a hundred.
        longest: All of them.
    """

    n: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    longest: float = 0.0


class BatcherStats(NamedTuple):
    """What a `Batcher` has done so far, at one moment.

    Every accepted row is counted once: `n_accepted == n_done + n_failed + n_expired + n_cancelled + n_waiting +
    n_running`.

    Attributes:
        n_accepted: Rows that entered the queue.
        n_done: Rows that ran and have a result, whether or not their caller still wanted it.
        n_failed: Rows that ran and have an error.
        n_expired: Rows whose deadline passed before they ran; they never ran.
        n_cancelled: Rows whose caller left, or that `close` dropped, before they ran; they never ran.
        n_rejected: Rows refused on arrival; not accepted.
        n_waiting: Rows in the queue now.
        n_running: Rows in the batch that runs now.
        n_batches: Batches that ran.
        n_calls: Calls of the model: more than batches where bad rows were isolated, memory ran out or rows did
            not fit together, or after `warm_up`; fewer where none could be collated.
        batch_sizes: How many batches had how many rows, `{rows: batches}`, in ascending order.
        n_joined: Callers that shared the run of an accepted row of the same key; not accepted rows themselves.
        rejects: The rejected rows by reason, `{"queue full": ..., "deadline": ...}`.
        latency: From the arrival of a row to its outcome, over the last 4,096 to 8,192 rows that ran. Rows that were
            submitted in one turn of an event loop count as having come with the first of them.
        waited: The part of it before the row's batch left.
        batch_limit: The most rows that a batch takes now: *max_batch_size*, or less if memory or the latency objective
            ask for it.
        wait_limit: The longest that a free device holds back a row now, in seconds: *max_wait*, or less if the
            latency objective asks for it.
    """

    n_accepted: int
    n_done: int
    n_failed: int
    n_expired: int
    n_cancelled: int
    n_rejected: int
    n_waiting: int
    n_running: int
    n_batches: int
    n_calls: int
    batch_sizes: Mapping[int, int]
    n_joined: int
    rejects: Mapping[str, int]
    latency: Quantiles
    waited: Quantiles
    batch_limit: int
    wait_limit: float

    @property
    def mean_batch_size(self) -> float:
        """Rows per batch; 0.0 before the first one."""
        rows = sum(size * batches for size, batches in self.batch_sizes.items())
        return rows / self.n_batches if self.n_batches else 0.0


# Of a batch when its rows came and how many at a time, when it left and when it was done.
_Ran = tuple[list[tuple[float, int]], float, float]


@final
class Tally:
    """The counts of a batcher. Whoever changes them holds the queue's lock."""

    __slots__ = (
        "_n_recent",
        "_recent",
        "cancelled",
        "done",
        "expired",
        "failed",
        "joined",
        "rejects",
        "sizes",
    )

    def __init__(self) -> None:
        self.done = self.failed = self.expired = self.cancelled = self.joined = 0
        self.rejects: dict[str, int] = {}
        self.sizes: dict[int, int] = {}
        self._recent: deque[_Ran] = deque()
        self._n_recent = 0

    def left(self, *, expired: bool) -> None:
        """Count a row that will not run, because its time is up or its caller gone."""
        if expired:
            self.expired += 1
        else:
            self.cancelled += 1

    def reject(self, reason: str) -> None:
        """Count a row that was refused."""
        self.rejects[reason] = self.rejects.get(reason, 0) + 1

    def ran(
        self, batch: list[Group], n_rows: int, n_failed: int, sealed_at: float, now: float
    ) -> None:
        """Count a batch that is done."""
        self.failed += n_failed
        self.done += n_rows - n_failed
        self.sizes[n_rows] = self.sizes.get(n_rows, 0) + 1
        came = [(group.since, len(group.signals)) for group in batch]
        self._recent.append((came, sealed_at, now))
        self._n_recent += n_rows
        if self._n_recent >= 2 * _RECENT:
            while (left := self._n_recent - sum([n for _, n in self._recent[0][0]])) >= _RECENT:
                self._recent.popleft()
                self._n_recent = left

    def stats(
        self, *, n_waiting: int, n_running: int, n_calls: int, limit: int, max_wait: float
    ) -> tuple[BatcherStats, list[_Ran]]:
        """Return a snapshot without quantiles, and what `with_quantiles` makes them of, which may take its time."""
        sizes = dict(sorted(self.sizes.copy().items()))
        settled = self.done + self.failed + self.expired + self.cancelled
        stats = BatcherStats(
            n_accepted=settled + n_waiting + n_running,
            n_done=self.done,
            n_failed=self.failed,
            n_expired=self.expired,
            n_cancelled=self.cancelled,
            n_rejected=sum(self.rejects.values()),
            n_waiting=n_waiting,
            n_running=n_running,
            n_batches=sum(sizes.values()),
            n_calls=n_calls,
            batch_sizes=sizes,
            n_joined=self.joined,
            rejects=self.rejects.copy(),
            latency=Quantiles(),
            waited=Quantiles(),
            batch_limit=limit,
            wait_limit=max_wait,
        )
        return stats, list(self._recent)


def with_quantiles(stats: BatcherStats, recent: list[_Ran]) -> BatcherStats:
    """Return *stats* with the quantiles of the *recent* batches."""
    return stats._replace(
        latency=_quantiles(
            [done - at for came, _, done in recent for at, n in came for _ in range(n)]
        ),
        waited=_quantiles(
            [left - at for came, left, _ in recent for at, n in came for _ in range(n)]
        ),
    )


def _quantiles(values: list[float]) -> Quantiles:
    if not values:
        return Quantiles()
    values.sort()
    n = len(values)
    p50, p90, p99 = (values[-(-n * share // 100) - 1] for share in (50, 90, 99))
    return Quantiles(n, p50, p90, p99, values[-1])


def as_samples(stats: BatcherStats, name: str) -> list[Sample]:
    """Return *stats* as samples that carry the batcher's *name*."""
    label = ("batcher", name)
    rows = {
        "done": stats.n_done,
        "failed": stats.n_failed,
        "expired": stats.n_expired,
        "cancelled": stats.n_cancelled,
        "rejected": stats.n_rejected,
    }
    return [
        *[
            Sample("inference_rows_total", (label, ("outcome", outcome)), value)
            for outcome, value in rows.items()
        ],
        *[
            Sample("inference_batches_total", (label, ("rows", str(size))), batches)
            for size, batches in stats.batch_sizes.items()
        ],
        *[
            Sample("inference_rejections_total", (label, ("reason", reason)), rejected)
            for reason, rejected in stats.rejects.items()
        ],
        *[
            Sample("inference_latency_seconds", (label, ("quantile", quantile)), value)
            for quantile, value in (("0.5", stats.latency.p50), ("0.99", stats.latency.p99))
        ],
        Sample("inference_calls_total", (label,), stats.n_calls),
        Sample("inference_joined_total", (label,), stats.n_joined),
        Sample("inference_waiting_rows", (label,), stats.n_waiting),
        Sample("inference_running_rows", (label,), stats.n_running),
    ]
