"""What a call inherits from the calls around it: the time that is left, and whether it is already being retried."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, final

from mlkit._arguments import seconds
from mlkit._clock import current
from mlkit.errors import ConfigurationError
from mlkit.resilience._layout import laid_out

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from mlkit.resilience._budget import Budget

__all__ = ["AMBIENT", "NOTHING", "Ambient", "Inherited", "deadline", "inherited", "remaining"]


@final
@laid_out
class Ambient:
    """What one attempt, or one `with deadline(...)`, sets for the code inside; links of a chain, innermost first.

    It holds as long as what set it has not ended. A task that was started inside and goes on afterwards has a copy of
    the context: the link is still there, and `over` says that it no longer counts.

    Attributes:
        when: The monotonic time at which the code inside must have ended, or infinity.
        allowed: The seconds that were allowed when that was set.
        retrying: Whether this is a policy's second or a later attempt.
        attempts: Where to count the attempts of the next policy inside, or None.
        around: The next link, or None.
        budget: What earns for the whole of the call, however many policies with it are inside, or None.
        over: Whether what set it has ended.
    """

    when: float = inf
    allowed: float = inf
    retrying: bool = False
    attempts: list[int] | None = None
    around: Ambient | None = None
    budget: Budget | None = None
    over: bool = False


Inherited = tuple[float, float, bool]
"""What all the links of a chain come to: the earliest of their times, the seconds that belong to it, any `retrying`."""

NOTHING = Ambient()
AMBIENT: ContextVar[Ambient | None] = ContextVar("mlkit.resilience", default=None)


def inherited(innermost: Ambient | None) -> Inherited:
    """Return what the links from *innermost* outwards come to, and take those out that are over."""
    when = allowed = inf
    retrying = False
    link: Ambient | None = innermost
    while link is not None:
        if not link.over:
            retrying = retrying or link.retrying
            if link.when < when:
                when, allowed = link.when, link.allowed
        # Or the chain of a task that starts its own successor would grow for ever.
        while link.around is not None and link.around.over:
            link.around = link.around.around
        link = link.around
    return when, allowed, retrying


@final
class deadline:  # noqa: N801 - reads as the statement it is: `with deadline(2.0):`
    """Context manager: what runs inside has so many seconds left, in this context and the tasks started in it.

    It ends with the block: a task that was started inside and goes on afterwards is free of it. A thread has it only
    if it runs in a `contextvars.copy_context()`, as under `asyncio.to_thread`.

    Policies inside start no attempt and end no sleep after it, and cut the timeout of each attempt to it. Code of your
    own asks `remaining()`. It interrupts nothing by itself. A nested deadline only ever shortens.

    Args:
        allowed: Seconds from entry, at least 0.

    Raises:
        ConfigurationError: If *allowed* is not a number of seconds; on entry, if it is in use already.

    Examples:
        >>> with deadline(2.0), deadline(60.0):
        ...     remaining() <= 2.0
        True
    """

    __slots__ = ("_allowed", "_inside", "_token")

    def __init__(self, allowed: float) -> None:
        self._allowed = seconds("deadline(allowed)", allowed, zero=True)
        self._token: Token[Ambient | None] | None = None
        self._inside = NOTHING

    def __enter__(self) -> None:
        if self._token is not None:
            raise ConfigurationError(
                "with deadline(...)",
                self,
                "one that is not in use",
                hint="make one for each `with`",
            )
        self._inside = inside = Ambient()
        inside.when = current().monotonic() + self._allowed
        inside.allowed, inside.around = self._allowed, AMBIENT.get()
        self._token = AMBIENT.set(self._inside)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._token is not None:
            self._inside.over = True
            # Left in another context, as a generator is by whoever ends it, there is nothing to put back.
            with suppress(ValueError):
                AMBIENT.reset(self._token)
            self._token = None


def remaining() -> float | None:
    """Return the seconds left until the surrounding deadline, at least 0, or None if there is none.

    A policy's `timeout` and `deadline` count too, as long as the attempt or call that they belong to has not ended.

    Examples:
        >>> remaining() is None
        True
    """
    when = inherited(AMBIENT.get())[0]
    return None if when == inf else max(0.0, when - current().monotonic())
