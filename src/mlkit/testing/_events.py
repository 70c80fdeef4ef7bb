"""Telemetry events of a piece of code, kept for a test to look at."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlkit.telemetry import listen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlkit.telemetry import Event

__all__ = ["record_events"]


@contextmanager
def record_events(prefix: str = "") -> Iterator[list[Event]]:
    """Collect the events that this context emits while the block runs.

    Only events of this context and of the tasks and threads of mlkit started from it are seen, so
    that tests may run in parallel.

    Args:
        prefix: Keep only kinds that begin with it, e.g. `"resilience."`.

    Yields:
        A list that grows as events come.

    Examples:
        >>> from mlkit.telemetry import emit
        >>> with record_events("flags.") as events:
        ...     emit("flags.changed", "ranker", variant="v2")
        ...     emit("inference.batch.split", "ranker")
        >>> [event.kind for event in events]
        ['flags.changed']
    """
    events: list[Event] = []

    def keep(event: Event) -> None:
        if event.kind.startswith(prefix):
            events.append(event)

    with listen(keep, scope="context"):
        yield events
