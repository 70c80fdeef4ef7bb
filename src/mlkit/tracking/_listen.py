"""What the other blocks say about themselves, recorded into a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from mlkit import telemetry
from mlkit.errors import RunClosedError
from mlkit.tracking import _frames

if TYPE_CHECKING:
    from types import TracebackType

    from mlkit.telemetry import Event, Subscription
    from mlkit.tracking._journal import Journal

__all__ = ["Listening"]

_MAX_NAMES = 1000
_OTHER = "(other)"


@final
class Listening:
    """Records telemetry into a run until it is closed. Made by `Run.listen`.

    Thread-safe; an event is recorded by the thread that caused it. A forked child records into its own
    file. Not picklable.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._reader = telemetry.Reader(max_series=_MAX_NAMES)
        self._told: dict[str, float] = dict(self._totals())
        self._counts: dict[tuple[str, str], int] = {}
        self._subscription: Subscription | None = telemetry.listen(self._note)

    def record(self, step: int = 0) -> None:
        """Record the counters that have changed since this was called last.

        Args:
            step: When, in the training's own count.

        Raises:
            ConfigurationError: If the step is no integer.
            RunClosedError: If the run is closed.
        """
        now = self._totals()
        changed = {key: value for key, value in now.items() if value != self._told.get(key)}
        self._told = now
        if changed:
            self._journal.metrics(changed, step)

    def close(self) -> None:
        """Stop listening, and record the counters for the last time. Calling it again does nothing."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        subscription.close()
        if not self._journal.closed:
            self.record()

    def __enter__(self) -> Listening:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.close()

    def _totals(self) -> dict[str, float]:
        return {
            f"telemetry/{name}" + "".join(f"/{key}={label}" for key, label in labels): value
            for name, labels, value in self._reader.read()
            if not name.startswith("tracking_")  # recording would change them
        }

    def _note(self, event: Event) -> None:
        kind, name, at, fields = event
        if kind.startswith("tracking.") or self._journal.closed:
            return  # what the journal says of itself must not go round and round
        if (kind, name) not in self._counts and len(self._counts) >= _MAX_NAMES:
            name = _OTHER
        # Two threads may give one number twice; the points are both there.
        count = self._counts[kind, name] = self._counts.get((kind, name), 0) + 1
        key = f"telemetry/{kind}/{name}"[:900]
        metrics: dict[str, float] = {key: count}
        texts: dict[str, str | None] = {}
        for field, value in fields.items():
            if isinstance(value, (int, float)):
                metrics[f"{key}/{field}"[:1000]] = value
            else:
                texts[field] = value
        try:
            self._journal.metrics(metrics, count)
            if texts:
                self._journal.add(_frames.TAGS, {f"mlkit.event.{kind}.{name}"[:1000]: _said(at, texts)}, 1)  # fmt: skip
        except RunClosedError:
            return  # by another thread, since we looked


def _said(at: float, texts: dict[str, str | None]) -> str:
    import json

    return json.dumps({"time": at, **texts})
