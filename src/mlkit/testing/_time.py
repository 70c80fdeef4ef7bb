"""Virtual time: sleeps and timeouts that take as long as the code between them."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from contextvars import copy_context
from math import inf
from typing import TYPE_CHECKING, ParamSpec, TypeVar, final

from mlkit._clock import replaced
from mlkit.errors import ConfigurationError

if TYPE_CHECKING:
    import selectors
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

__all__ = ["VirtualTime", "virtual_time"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@final
class VirtualTime:
    """A clock that moves only when told to, or when everybody who uses it waits.

    With *autojump*, a sleep or an expired wait moves the time on at once: to the earliest moment
    that anybody waits for, so that several threads wake in the right order. Without it, only
    `advance` moves the time.

    Thread-safe. Made by `virtual_time`.

    Args:
        start: First value of `monotonic()`, in seconds.
        epoch: First value of `time()`, in seconds since the Unix epoch.
        autojump: Whether waiting moves the time.
        grace: Real seconds given to other threads before an expired wait moves the time. Raise it
            if a thread computes for longer between two waits.
    """

    def __init__(
        self,
        *,
        start: float = 1_000.0,
        epoch: float = 1_700_000_000.0,
        autojump: bool = True,
        grace: float = 0.002,
    ) -> None:
        self._now = start
        self._offset = epoch - start
        self._autojump = autojump
        self._grace = grace
        self._lock = threading.Lock()
        self._deadlines: list[float] = []
        self.sleeps: list[float] = []
        """The seconds of every `sleep` and `asleep`, in the order of the calls."""

    def time(self) -> float:
        """Return the virtual wall-clock time, in seconds since the Unix epoch."""
        return self._now + self._offset

    def monotonic(self) -> float:
        """Return the virtual monotonic time, in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the time forward; threads whose moment has come wake up on their own.

        Args:
            seconds: By how much, at least 0.
        """
        if not 0 <= seconds < inf:
            raise ConfigurationError(
                "advance(seconds)", seconds, "a finite number of at least 0: time does not go back"
            )
        with self._lock:
            self._now += seconds

    def sleep(self, seconds: float) -> None:
        """Block until *seconds* of virtual time have passed."""
        self.sleeps.append(_ends("sleep(seconds)", seconds))
        with self._waiting(self._now + seconds) as deadline:
            while self._now < deadline:
                alone = self._autojump and len(self._deadlines) == 1
                if not alone:
                    time.sleep(self._grace)  # noqa: TID251 - real time, for real threads
                self._jump()

    async def asleep(self, seconds: float) -> None:
        """Suspend the task until *seconds* of virtual time have passed.

        In a loop started by `run`, all tasks wake in the right order. In another loop, time jumps
        at once.
        """
        import asyncio

        self.sleeps.append(_ends("asleep(seconds)", seconds))
        if isinstance(getattr(asyncio.get_running_loop(), "_selector", None), _VirtualSelector):
            await asyncio.sleep(seconds)
            return
        self.advance(max(seconds, 0.0))
        await asyncio.sleep(0)

    def wait(self, condition: threading.Condition, timeout: float | None) -> bool:
        """Wait on *condition*, which the caller holds, for at most *timeout* virtual seconds.

        When the time is over, everybody who waits on *condition* is notified and looks again.

        Returns:
            False if the time ran out.
        """
        if timeout is None or timeout <= 0:
            return condition.wait(timeout)
        rang, over = threading.Event(), threading.Event()
        with self._waiting(self._now + _ends("wait(timeout)", timeout)) as deadline:
            alarm = (condition, deadline, rang, over)
            threading.Thread(target=self._ring, args=alarm, daemon=True).start()
            try:
                condition.wait()
            finally:
                over.set()
        return not rang.is_set()

    def _ring(
        self,
        condition: threading.Condition,
        deadline: float,
        rang: threading.Event,
        over: threading.Event,
    ) -> None:
        """Notify *condition* at its *deadline*, if the wait is not *over* before.

        The thread that waits cannot look at the time itself: a notification that comes while it is
        between two short waits would find nobody waiting, and be lost.
        """
        while self._now < deadline:
            if over.wait(self._grace):
                return
            self._jump()
        with condition:
            if not over.is_set():
                rang.set()
                condition.notify_all()

    def run(self, main: Coroutine[Any, Any, _R]) -> _R:
        """Run a coroutine to its end in an event loop whose timers follow this clock.

        Args:
            main: The coroutine.

        Returns:
            What it returns; its error is raised.
        """
        import asyncio
        import selectors

        selector = _VirtualSelector(selectors.DefaultSelector(), self)

        def make_loop() -> asyncio.AbstractEventLoop:
            loop = asyncio.SelectorEventLoop(selector)  # type: ignore[arg-type]
            loop.time = self.monotonic  # type: ignore[method-assign]
            return loop

        with asyncio.Runner(loop_factory=make_loop) as runner:
            return runner.run(main, context=copy_context())

    def thread(
        self, target: Callable[_P, object], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> threading.Thread:
        """Start a thread that lives in this virtual time.

        Args:
            target: What it runs.
            *args: Passed to *target*.
            **kwargs: Passed to *target*.

        Returns:
            The started thread, to be joined. A thread started in another way has the system's
            clock.
        """
        context = copy_context()
        thread = threading.Thread(target=lambda: context.run(target, *args, **kwargs), daemon=True)
        thread.start()
        return thread

    @contextmanager
    def _waiting(self, deadline: float) -> Iterator[float]:
        with self._lock:
            self._deadlines.append(deadline)
        try:
            yield deadline
        finally:
            with self._lock:
                self._deadlines.remove(deadline)

    def _jump(self) -> None:
        with self._lock:
            if self._autojump and self._deadlines:
                self._now = max(self._now, min(self._deadlines))

    def _select(self, real: selectors.BaseSelector, timeout: float | None) -> list[Any]:
        if timeout is None or timeout <= 0:
            return real.select(timeout)
        with self._waiting(self._now + timeout) as deadline:
            while self._now < deadline:
                if ready := real.select(self._grace if threading.active_count() > 1 else 0):
                    return ready
                if not self._autojump:
                    time.sleep(self._grace)  # noqa: TID251 - real time, for real threads
                self._jump()
        return real.select(0)

    def __repr__(self) -> str:
        return f"<VirtualTime {self._now:.6g} s>"


def _ends(where: str, seconds: float) -> float:
    """Return *seconds*; raise if they never end: the time would jump there, and never come back."""
    if not seconds < inf:  # NaN as well
        raise ConfigurationError(where, seconds, "a finite number of seconds")
    return seconds


@final
class _VirtualSelector:
    """A selector that lets virtual time pass where the real one would sleep."""

    def __init__(self, real: selectors.BaseSelector, clock: VirtualTime) -> None:
        self._real = real
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        return self._clock._select(self._real, timeout)  # noqa: SLF001 - two halves of one thing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextmanager
def virtual_time(
    *, start: float = 1_000.0, autojump: bool = True, grace: float = 0.002
) -> Iterator[VirtualTime]:
    """Let every block of mlkit live in virtual time while the block runs.

    It is local to this context, so that tests may run in parallel. Threads that mlkit starts
    follow; for your own use `VirtualTime.thread`, and `VirtualTime.run` for coroutines.

    Args:
        start: First value of the monotonic clock, in seconds.
        autojump: Whether waiting moves the time; otherwise only `advance` does.
        grace: Real seconds given to other threads before an expired wait moves the time.

    Yields:
        The clock.

    Examples:
        >>> from mlkit import _clock
        >>> with virtual_time() as clock:
        ...     _clock.current().sleep(3600)
        ...     clock.monotonic()
        4600.0
    """
    clock = VirtualTime(start=start, autojump=autojump, grace=grace)
    with replaced(clock):
        yield clock
