"""Time. Nothing else in mlkit reads a clock or sleeps, so that a test can replace it.

A block that needs time takes `clock: Clock | None = None` and calls `current(clock)` when it *uses*
time, not when it is
built: a policy made at import then obeys a `virtual_time()` that a test enters later. The override
is local to the context (contextvars); a block that starts a thread runs it in a copy of the
starter's context.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from contextvars import Token
    from threading import Condition
    from types import TracebackType

__all__ = ["SYSTEM", "Clock", "current", "replaced", "replacement"]


class Clock(Protocol):
    """A source of time and the ways to wait on it.

    Laws: `monotonic()` never decreases; after `sleep(s)` or a timed-out `wait(..., s)` it has grown
    by at least `s` less the resolution of the platform. All methods are safe to call from any
    thread.
    """

    def time(self) -> float:
        """Return the wall-clock time in seconds since the Unix epoch; it may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an arbitrary point; it never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for *seconds*."""
        ...

    async def asleep(self, seconds: float) -> None:
        """Suspend the calling task for *seconds*."""
        ...

    def wait(self, condition: Condition, timeout: float | None) -> bool:
        """Wait on *condition*, held by the caller, until notified or *timeout* seconds are over.

        Returns:
            False if the time ran out first. As with every condition, check the predicate again.
        """
        ...


@final
class _SystemClock:
    """The clocks of the operating system."""

    def time(self) -> float:
        return time.time()  # noqa: TID251 - here is where it comes from

    def monotonic(self) -> float:
        return time.monotonic()  # noqa: TID251 - as above

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)  # noqa: TID251 - as above

    async def asleep(self, seconds: float) -> None:
        import asyncio  # 37 ms of CPU that a synchronous program need not pay

        await asyncio.sleep(seconds)

    def wait(self, condition: Condition, timeout: float | None) -> bool:
        return condition.wait(timeout)

    def __repr__(self) -> str:
        return "SYSTEM"

    def __reduce__(self) -> str:
        return "SYSTEM"


SYSTEM: Clock = _SystemClock()
_override: ContextVar[Clock | None] = ContextVar("mlkit.clock", default=None)
replacement = _override.get
"""The clock that `replaced` has put in the place of the system's, or None: for paths on which two calls are too many."""


def current(clock: Clock | None = None) -> Clock:
    """Return the clock to use now: *clock*, else the context's override, else the system's."""
    return clock or _override.get() or SYSTEM


@final
class replaced:  # noqa: N801 - reads as the statement it is: `with replaced(clock):`
    """Context manager: `current()` returns *clock* inside it, in this context alone.

    Args:
        clock: What `current()` shall return.
    """

    __slots__ = ("_clock", "_token")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._token: Token[Clock | None] | None = None

    def __enter__(self) -> Clock:
        self._token = _override.set(self._clock)
        return self._clock

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._token is not None:
            _override.reset(self._token)
            self._token = None
