"""What a call inherits from the calls around it: the time that is left, and whether it is already being retried."""

from __future__ import annotations

from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, NamedTuple, final

from mlkit._arguments import seconds
from mlkit._clock import current
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

__all__ = ["AMBIENT", "Ambient", "deadline", "remaining"]


class Ambient(NamedTuple):
    """What surrounds a call.

    Attributes:
        when: The monotonic time at which it must have ended, or infinity.
        allowed: The seconds that were allowed when the deadline was set.
        retrying: Whether an outer policy is at its second or a later attempt.
        attempts: Where to count the attempts of the next policy, or None.
    """

    when: float = inf
    allowed: float = inf
    retrying: bool = False
    attempts: list[int] | None = None


NOTHING = Ambient()
AMBIENT: ContextVar[Ambient | None] = ContextVar("mlkit.resilience", default=None)


@final
class deadline:  # noqa: N801 - reads as the statement it is: `with deadline(2.0):`
    """Context manager: what runs inside has so many seconds left, in this context and the tasks started in it.

    A task that goes on after the block keeps its deadline; a thread has it only if it runs in a
    `contextvars.copy_context()`, as under `asyncio.to_thread`.

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

    __slots__ = ("_allowed", "_token")

    def __init__(self, allowed: float) -> None:
        self._allowed = seconds("deadline(allowed)", allowed, zero=True)
        self._token: Token[Ambient | None] | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            raise ConfigurationError(
                "with deadline(...)",
                self,
                "one that is not in use",
                hint="make one for each `with`",
            )
        around = AMBIENT.get() or NOTHING
        when = current().monotonic() + self._allowed
        if when < around.when:
            around = around._replace(when=when, allowed=self._allowed)
        self._token = AMBIENT.set(around)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._token is not None:
            AMBIENT.reset(self._token)
            self._token = None


def remaining() -> float | None:
    """Return the seconds left until the surrounding deadline, at least 0, or None if there is none.

    A policy's `timeout` and `deadline` count too.

    Examples:
        >>> remaining() is None
        True
    """
    around = AMBIENT.get()
    if around is None or around.when == inf:
        return None
    return max(0.0, around.when - current().monotonic())
