"""What goes to a worker and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlkit._suggest import clip
from mlkit.errors import InferenceError
from mlkit.inference._engines.packing import unpacked

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.inference._batch.runner import Failure

__all__ = ["Answer", "Sent", "Task", "received", "sent", "unpickled"]

_MAX_TRACE = 4_000  # characters of a traceback that is kept


class Task(NamedTuple):
    """Some rows to run.

    Attributes:
        n_before: How many rows of the input come before them.
        rows: The rows, packed.
        example: Empty, or the pickled row that all others must fit.
    """

    n_before: int
    rows: Any
    example: bytes


class Sent(NamedTuple):
    """An error on its way.

    Attributes:
        kind: Name of its type.
        text: What it says.
        pickled: The error itself, if it can be pickled.
        trace: Its traceback, as text.
    """

    kind: str
    text: str
    pickled: bytes | None
    trace: str


class Answer(NamedTuple):
    """What became of a task.

    Attributes:
        n_rows: How many of its rows were run: all, or those before the *error*.
        results: The results of the good ones, packed.
        failures: For the place of each bad one, its `Failure` and what its `RowError` was raised from.
        error: What ended the work: wrong output, or a model that cannot be loaded.
        doing: What was being done when *error* was raised; empty for running the model.
        example: The place of the row that all others must fit, if it was settled here.
        events: Kind, name and fields of what was emitted meanwhile.
        seconds: How long the rows took, without loading the model.
        worker: Which process ran it.
    """

    n_rows: int
    results: Any
    failures: dict[int, tuple[Failure, Sent]]
    error: Sent | None = None
    doing: str = ""
    example: int | None = None
    events: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    seconds: float = 0.0
    worker: tuple[str, int] = ("", 0)

    def unpacked(self) -> list[Any]:
        """Return for each row its result or its `Failure`, whose `RowError` has its cause again."""
        good = unpacked(self.results)
        if not self.failures:
            return good
        values = iter(good)
        results: list[Any] = []
        for place in range(self.n_rows):
            if place not in self.failures:
                results.append(next(values))
                continue
            failure, cause = self.failures[place]
            failure.error.__cause__ = received(cause, self.worker)
            results.append(failure)
        return results


def unpickled(data: bytes) -> Any:
    """Return what *data* holds: bytes of this job, from its own driver or workers."""
    import pickle

    return pickle.loads(data)  # noqa: S301 - an engine's workers run code of the driver anyway


def sent(error: BaseException, dumps: Callable[[Any], bytes], seen: dict[str, Sent]) -> Sent:
    """Return *error* in a form that can be sent; one like it that is in *seen* is given again."""
    from traceback import format_exception

    kind, text = type(error).__name__, _text(error)
    # A million rows may fail for one reason; their tracebacks would outweigh the rows.
    alike = seen.get(f"{kind}: {text}")
    if alike is not None:
        return alike
    try:
        trace = clip("".join(format_exception(error)), _MAX_TRACE)
    except Exception:  # noqa: BLE001 - an error that cannot be shown is sent without
        trace = ""
    pickled: bytes | None
    try:
        pickled = dumps(error)
        unpickled(pickled)  # many an error pickles and cannot be read back
    except Exception:  # noqa: BLE001 - then its type and text stand for it
        pickled = None
    seen[f"{kind}: {text}"] = one = Sent(kind, text, pickled, trace)
    return one


def received(one: Sent, worker: tuple[str, int]) -> Exception:
    """Return the error that was sent, or what stands for it, with the traceback it had there as a note."""
    error: Exception | None = None
    if one.pickled is not None:
        try:
            error = unpickled(one.pickled)
        except Exception:  # noqa: BLE001 - its class is not known here
            error = None
    if not isinstance(error, Exception):
        error = InferenceError(f"{one.kind}: {one.text}")
    host, process = worker
    if one.trace:
        error.add_note(f"in process {process} on {host}:\n{one.trace}")
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the type alone must do
        return ""
