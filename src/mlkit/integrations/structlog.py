"""Events as structured log lines. Needs structlog: `pip install 'mlkit-blocks[structlog]'`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit import telemetry
from mlkit._optional import require

if TYPE_CHECKING:
    from mlkit.telemetry import Event, Subscription

__all__ = ["listen"]

# The last word of a kind says what happened. These are news that somebody should look into.
_BAD = frozenset({
    "dead_lettered", "failed", "found", "incomplete", "lost", "opened", "quarantined", "refused", "rejected", "rolled_back", "skipped",
    "split", "stopped", "storage_failed", "unavailable", "unusable",
})  # fmt: skip
# Keys that mean something to structlog or its usual processors.
_TAKEN = frozenset({
    "event", "exc_info", "exception", "level", "logger", "name", "positional_args", "stack", "stack_info", "timestamp",
})  # fmt: skip


def listen(logger: Any = None, *, scope: str = "process") -> Subscription:
    """Write every event as one log line: its kind as the message, its name as `name`, its fields as they are.

    Bad news (a breaker opened, a flag was quarantined, a record was lost) is a warning, the rest is info. A field whose
    name means something to structlog gets `field_` in front. No line ever holds arguments, rows or results, for no
    event does.

    Args:
        logger: A structlog logger; default `structlog.get_logger("mlkit")`.
        scope: `"process"` or `"context"`, see `mlkit.telemetry.listen`.

    Returns:
        The subscription: close it, or use it as a context manager.

    Raises:
        MissingDependencyError: If structlog is not installed.
        ConfigurationError: If *scope* is neither.

    Examples:
        >>> from structlog.testing import capture_logs
        >>> from mlkit.telemetry import emit
        >>> with capture_logs() as lines, listen(scope="context"):
        ...     emit("resilience.breaker.opened", "ranker", failures=5)
        >>> lines[0]["log_level"], lines[0]["event"], lines[0]["name"], lines[0]["failures"]
        ('warning', 'resilience.breaker.opened', 'ranker', 5)
    """
    structlog = require("structlog", extra="structlog", feature="the structlog listener")
    log = structlog.get_logger("mlkit") if logger is None else logger

    def write(event: Event) -> None:
        fields = {
            f"field_{key}" if key in _TAKEN else key: value for key, value in event.fields.items()
        }
        method = log.warning if event.kind.rpartition(".")[2] in _BAD else log.info
        method(event.kind, name=event.name, **fields)

    return telemetry.listen(write, scope=scope)
