"""From outcomes back to callers: each event loop is woken once, however many of its callers are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Collection, Sequence

    from mlkit.inference._online.requests import Request

__all__ = ["deliver"]


def deliver(
    requests: Sequence[Request],
    outcomes: Sequence[Any],
    loops: Collection[AbstractEventLoop | None],
    settle: Callable[[AbstractEventLoop], None] | None,
    forget: Callable[[AbstractEventLoop], None],
) -> None:
    """Give *requests* their *outcomes*.

    Args:
        requests: Callers of any loops and threads.
        loops: The loops of *requests*, with None for those without.
        outcomes: A result or `Failed` for each.
        settle: Called in each loop when all its callers have their answers.
        forget: Called for each loop that turns out to be closed.
    """
    if len(loops) == 1:  # as nearly always
        (loop,) = loops
        if loop is not None:
            _wake(loop, requests, outcomes, settle, forget)
            return
    theirs: dict[AbstractEventLoop, tuple[list[Request], list[Any]]] = {}
    for request, outcome in zip(requests, outcomes, strict=True):
        if request.loop is None:
            request.answer_thread(outcome)
        else:
            some, of_them = theirs.setdefault(request.loop, ([], []))
            some.append(request)
            of_them.append(outcome)
    for each, (some, of_them) in theirs.items():
        _wake(each, some, of_them, settle, forget)


def _wake(
    loop: AbstractEventLoop,
    requests: Sequence[Request],
    outcomes: Sequence[Any],
    settle: Callable[[AbstractEventLoop], None] | None,
    forget: Callable[[AbstractEventLoop], None],
) -> None:
    try:
        loop.call_soon_threadsafe(_answer, loop, requests, outcomes, settle)
    except RuntimeError:  # the loop is closed, and its callers are gone with it
        forget(loop)


def _answer(
    loop: AbstractEventLoop,
    requests: Sequence[Request],
    outcomes: Sequence[Any],
    settle: Callable[[AbstractEventLoop], None] | None,
) -> None:
    """Give the tasks of one loop their outcomes. Runs in that loop."""
    for request, outcome in zip(requests, outcomes, strict=True):
        signal = request.signal
        if not signal.done():  # a caller that was cancelled, or whose time is up
            signal.set_result(outcome)
    if settle is not None:
        settle(loop)
