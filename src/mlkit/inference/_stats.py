"""What a batcher has done, as a snapshot and as samples for telemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mlkit.telemetry import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BatcherStats", "as_samples"]


class BatcherStats(NamedTuple):
    """What a `Batcher` has done so far, at one moment.

    Every accepted row is counted once: `n_accepted == n_done + n_failed + n_expired + n_cancelled + n_waiting +
    n_running`.

    Attributes:
        n_accepted: Rows that entered the queue.
        n_done: Rows that ran and have a result, whether or not their caller still wanted it.
        n_failed: Rows that ran and have an error.
        n_expired: Rows whose deadline passed before they ran; they never ran.
        n_cancelled: Rows whose caller left, or that `close(drain=False)` dropped, before they ran; they never ran.
        n_rejected: Rows refused because the queue was full; not accepted.
        n_waiting: Rows in the queue now.
        n_running: Rows in the batch that runs now.
        n_batches: Batches that ran.
        n_calls: Calls of the model: more than batches where bad rows were isolated, memory ran out or rows did
            not fit together; fewer where none could be collated.
        batch_sizes: How many batches had how many rows, `{rows: batches}`, in ascending order.
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

    @property
    def mean_batch_size(self) -> float:
        """Rows per batch; 0.0 before the first one."""
        rows = sum(size * batches for size, batches in self.batch_sizes.items())
        return rows / self.n_batches if self.n_batches else 0.0


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
        Sample("inference_calls_total", (label,), stats.n_calls),
        Sample("inference_waiting_rows", (label,), stats.n_waiting),
        Sample("inference_running_rows", (label,), stats.n_running),
    ]
