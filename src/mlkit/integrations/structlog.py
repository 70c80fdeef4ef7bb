"""Events as structured log lines. Needs structlog: `pip install 'mlkit-blocks[structlog]'`."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from mlkit import telemetry
from mlkit._optional import require

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    from mlkit.telemetry import Event, Subscription
    from mlkit.tracking import Run

__all__ = ["add_run", "listen", "run_context"]

_current: ContextVar[Run | None] = ContextVar("mlkit_run", default=None)

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


@contextmanager
def run_context(run: Run) -> Iterator[Run]:
    """Let log lines say which run they belong to, in this thread or task and in the tasks it starts.

    The run's id is bound as `run_id` to structlog's context variables, which its default configuration writes. The step
    changes with the training, so it needs the processor `add_run`.

    Args:
        run: The run.

    Yields:
        The run.

    Raises:
        MissingDependencyError: If structlog is not installed.

    Examples:
        >>> import tempfile, structlog
        >>> from mlkit.tracking import start_run
        >>> with start_run("digits", root=tempfile.mkdtemp()) as run, run_context(run):
        ...     structlog.contextvars.get_contextvars() == {"run_id": run.id}
        True
    """
    variables = require("structlog.contextvars", extra="structlog", feature="run_context")
    token = _current.set(run)
    try:
        with variables.bound_contextvars(run_id=run.id):
            yield run
    finally:
        _current.reset(token)


def add_run(
    logger: Any, method_name: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add `run_id` and `step` of the run of the context: a processor for `structlog.configure`.

    The step is the one that the run has logged last in this process. What an event says itself stays, and outside of
    `run_context` nothing is added.

    Args:
        logger: Not used.
        method_name: Not used.
        event_dict: The event.

    Returns:
        The event.

    Examples:
        >>> import tempfile
        >>> from mlkit.tracking import start_run
        >>> with start_run("digits", root=tempfile.mkdtemp()) as run, run_context(run):
        ...     run.log_metric("loss", 0.5, step=7)
        ...     add_run(None, "info", {"event": "evaluated"})["step"]
        7
    """
    del logger, method_name
    run = _current.get()
    if run is not None:
        event_dict.setdefault("run_id", run.id)
        step = run.step
        if step is not None:
            event_dict.setdefault("step", step)
    return event_dict
