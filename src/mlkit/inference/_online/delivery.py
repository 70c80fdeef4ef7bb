"""From outcomes back to callers: each event loop is woken once, however many of its callers are answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Collection, Sequence

    from mlkit.inference._online.groups import Group

__all__ = ["deliver"]


def deliver(
    groups: Sequence[Group],
    outcomes: Sequence[Any],
    loops: Collection[AbstractEventLoop | None],
    settle: Callable[[AbstractEventLoop], None] | None,
    forget: Callable[[AbstractEventLoop], None],
) -> None:
    """Give the callers of *groups* their *outcomes*.

    Args:
        groups: Callers of any loops and threads.
        outcomes: A result or `Failed` for each of their rows.
        loops: The loops of *groups*, with None for those without.
        settle: Called in each loop when all its callers have their answers.
        forget: Called for each loop that turns out to be closed.
    """
    loop = next(iter(loops))
    if loop is not None and len(loops) == 1:  # as nearly always
        _wake(loop, groups, outcomes, settle, forget)
        return
    theirs: dict[AbstractEventLoop, tuple[list[Group], list[Any]]] = {}
    place = 0
    for group in groups:
        first, place = place, place + len(group.signals)
        if group.loop is None:
            group.answer_thread(outcomes[first])
        else:
            some, of_them = theirs.setdefault(group.loop, ([], []))
            some.append(group)
            of_them += outcomes[first:place]
    for each, (some, of_them) in theirs.items():
        _wake(each, some, of_them, settle, forget)


def _wake(
    loop: AbstractEventLoop,
    groups: Sequence[Group],
    outcomes: Sequence[Any],
    settle: Callable[[AbstractEventLoop], None] | None,
    forget: Callable[[AbstractEventLoop], None],
) -> None:
    try:
        loop.call_soon_threadsafe(_answer, loop, groups, outcomes, settle)
    except RuntimeError:  # the loop is closed, and its callers are gone with it
        forget(loop)


def _answer(
    loop: AbstractEventLoop,
    groups: Sequence[Group],
    outcomes: Sequence[Any],
    settle: Callable[[AbstractEventLoop], None] | None,
) -> None:
    """Give the tasks of one loop their outcomes. Runs in that loop."""
    # The device thread has not touched the futures: it runs on another core, which would have to fetch each of them.
    rest = iter(outcomes)
    for group in groups:
        for signal, outcome in zip(group.signals, rest, strict=False):
            if not signal.done():  # a caller that was cancelled, or whose time is up
                signal.set_result(outcome)
    if settle is not None:
        settle(loop)
