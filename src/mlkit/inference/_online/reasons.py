"""What a caller of a `Batcher` is told in place of a result."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from mlkit.errors import BatcherClosedError, DeadlineExceededError, InferenceError

if TYPE_CHECKING:
    from mlkit.inference._batch.runner import Failure

__all__ = ["echo", "error_for", "refusal", "still_runs", "too_late"]


def error_for(name: str, failure: Failure, seen: set[int]) -> BaseException:
    """Return the error for one caller: its row's own, or one of its own about the shared one.

    *seen* holds the ids of the errors of this batch that have been given out.
    """
    error = failure.error
    alone = failure.n_rows == 1 and id(error) not in seen
    seen.add(id(error))
    if failure.of_the_program:
        from copy import copy

        with suppress(Exception):  # a user's own subclass may not allow it
            return copy(error)
    # StopIteration means something else to whoever awaits; what is no Exception would end their task or loop.
    if alone and isinstance(error, Exception) and not isinstance(error, StopIteration):
        if failure.hint and failure.hint not in getattr(error, "__notes__", ()):
            with suppress(Exception):  # as above
                error.add_note(failure.hint)
        return error
    try:
        words = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - an error that cannot be shown must not end this thread
        words = type(error).__name__
    if failure.hint:
        words = f"{words}; {failure.hint}"
    fresh = InferenceError(
        f"{name} failed on a batch of {failure.n_rows} row{'s'[: failure.n_rows != 1]}: {words}"
    )
    fresh.__cause__ = error
    return fresh


def echo(name: str, error: BaseException) -> BaseException:
    """Return the error that *error* is for one more caller of the same run: a copy, or one from it."""
    from copy import copy

    try:
        fresh = copy(error)
        if type(fresh) is type(error) and fresh is not error:
            fresh.__cause__ = error.__cause__
            return fresh.with_traceback(error.__traceback__)
    except BaseException:  # noqa: BLE001, S110 - whatever a user's own error does, its callers wait for one
        pass
    wrapped = InferenceError(
        f"{name} failed on a row that several callers share: {type(error).__name__}"
    )
    wrapped.__cause__ = error
    return wrapped


def refusal(name: str, process: int | None, *, closed: bool) -> InferenceError:
    """Return why a Batcher that was started in *process*, if at all, takes no row from here."""
    if process is None and not closed:
        return BatcherClosedError(
            f"Batcher {name!r} is not started: use it with `with` or `async with`, or call start()"
        )
    if process is not None and process != os.getpid():
        return BatcherClosedError(
            f"Batcher {name!r} was started in process {process}, and its thread does not exist in the "
            f"forked process {os.getpid()}; make and start one here"
        )
    if not closed:
        return InferenceError(
            f"Batcher {name!r} was called from inside its own model function, which would wait for itself"
        )
    return BatcherClosedError(f"Batcher {name!r} is closed; it takes no more rows")


def too_late(name: str, allowed: float) -> DeadlineExceededError:
    """Return the error for a row that had *allowed* seconds."""
    return DeadlineExceededError(f"a row of Batcher {name!r}", allowed)


def still_runs(name: str, timeout: float) -> BatcherClosedError:
    """Return the error for a row that the model did not finish within the *timeout* of `close`."""
    return BatcherClosedError(
        f"Batcher {name!r} was closed with a timeout of {timeout:g} s, and the model still runs this row; its result will "
        f"be dropped"
    )
