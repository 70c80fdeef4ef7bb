"""How long to wait before the next attempt."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from os import urandom
from typing import Any, final

from mlkit._arguments import seconds
from mlkit.errors import ConfigurationError
from mlkit.resilience._kinds import of_tenacity
from mlkit.resilience._settings import Frozen

__all__ = ["Backoff", "Stop", "backoff_of", "full_jitter", "stop_of"]

Backoff = Callable[[int], float]
"""From the number of attempts made so far, at least 1, to seconds to wait."""

Stop = Callable[[int, float, float], bool]
"""From the attempts made so far, the seconds since the first began and the seconds to wait now, to whether to give up."""


@final
class _FullJitter(Frozen):
    __slots__ = ("base", "cap", "random")

    base: float
    cap: float
    random: Callable[[], float] | None

    def __init__(
        self, *, base: float, cap: float, random: Callable[[], float] | None = None
    ) -> None:
        self._set(base=base, cap=cap, random=random)

    def __call__(self, attempt: int) -> float:
        # 2.0 ** 1024 overflows; long before that the cap rules
        ceiling = min(self.cap, self.base * 2.0 ** min(attempt - 1, 1000))
        return ceiling * (self.random or _entropy)()

    def __repr__(self) -> str:
        return f"full_jitter({self.base:g}, cap={self.cap:g})"


def full_jitter(
    base: float = 0.05, *, cap: float = 5.0, random: Callable[[], float] | None = None
) -> Backoff:
    """Return a backoff that waits a random time between 0 and an exponentially growing ceiling.

    The jitter is inside the cap: even at the cap, callers do not come back all at once.

    Args:
        base: Ceiling before the second attempt, in seconds; it doubles with each attempt.
        cap: The largest ceiling, in seconds.
        random: Source of numbers in [0, 1), e.g. `random.Random(7).random`; default the operating system's, which
            forked workers do not share.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> from random import Random
        >>> wait = full_jitter(0.1, cap=1.0, random=Random(7).random)
        >>> all(0 <= wait(attempt) <= 1.0 for attempt in range(1, 2000))
        True

    Note:
        Brooker, "Exponential backoff and jitter" (2015).
    """
    if random is not None and not callable(random):
        raise ConfigurationError(
            "full_jitter(random=...)",
            random,
            "a callable returning floats in [0, 1), or None",
            hint="for a seed pass random.Random(seed).random",
        )
    return _FullJitter(
        base=seconds("full_jitter(base)", base),
        cap=seconds("full_jitter(cap=...)", cap),
        random=random,
    )


@final
class _Constant(Frozen):
    __slots__ = ("pause",)

    pause: float

    def __init__(self, *, pause: float) -> None:
        self._set(pause=pause)

    def __call__(self, attempt: int) -> float:  # noqa: ARG002 - a backoff is a function of it
        return self.pause

    def __repr__(self) -> str:
        return f"{self.pause:g}"


@final
class _Tenacity(Frozen):
    """A `tenacity.wait_*` object, given the call state that it expects: the attempt and its error, never the arguments."""

    __slots__ = ("wait",)

    wait: Callable[[Any], float]

    def __init__(self, *, wait: Callable[[Any], float]) -> None:
        self._set(wait=wait)

    def __call__(self, attempt: int) -> float:
        return self.after(attempt, None)

    def after(self, attempt: int, error: Exception | None) -> float:
        """Return the seconds to wait after *attempt*, which ended in *error*."""
        from tenacity import RetryCallState

        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = attempt
        if error is not None:  # `wait_exception` asks for it
            state.set_exception((type(error), error, error.__traceback__))
        return self.wait(state)

    def __repr__(self) -> str:
        return type(self.wait).__name__


def backoff_of(where: str, value: object) -> Backoff:
    """Return *value* as a backoff: seconds, a callable of the attempt, or a `tenacity.wait_*` object."""
    if isinstance(value, (int, float)):
        return _Constant(pause=seconds(where, value, zero=True))
    if of_tenacity(value, "wait"):
        return _Tenacity(wait=value)  # type: ignore[arg-type]
    if callable(value) and not of_tenacity(value, "stop"):
        return value
    raise ConfigurationError(
        where, value, "seconds, full_jitter(...), a tenacity wait_* object or a callable"
    )


@final
class _TenacityStop(Frozen):
    """A `tenacity.stop_*` object, given the call state that it expects; never the user's arguments."""

    __slots__ = ("stop",)

    stop: Callable[[Any], bool]

    def __init__(self, *, stop: Callable[[Any], bool]) -> None:
        self._set(stop=stop)

    def __call__(self, attempt: int, elapsed: float, pause: float) -> bool:
        from tenacity import RetryCallState

        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        state.attempt_number = attempt
        state.start_time, state.outcome_timestamp = 0.0, elapsed
        state.upcoming_sleep = pause
        return bool(self.stop(state))

    def __repr__(self) -> str:
        return type(self.stop).__name__


def stop_of(where: str, value: object) -> Stop:
    """Return *value* as a `Stop`: a callable, or a `tenacity.stop_*` object."""
    if of_tenacity(value, "stop"):
        return _TenacityStop(stop=value)  # type: ignore[arg-type]
    if callable(value) and not of_tenacity(value, "wait"):
        return value
    raise ConfigurationError(
        where, value, "a tenacity stop_* object, or a callable of attempts, elapsed and pause"
    )


def pause_after(backoff: Backoff, attempt: int, error: Exception) -> float:
    """Return the seconds that *backoff* asks for after *error*, checked: it is user code."""
    if type(backoff) is _Constant:
        return backoff.pause
    pause = backoff.after(attempt, error) if type(backoff) is _Tenacity else backoff(attempt)
    if type(pause) is float and 0.0 <= pause < inf:  # nearly always
        return pause
    if not isinstance(pause, (int, float)) or not isfinite(pause) or pause < 0:
        raise ConfigurationError(
            f"Retry(backoff=...)({attempt})", pause, "a finite number of seconds >= 0"
        )
    return float(pause)


def _entropy() -> float:
    return (int.from_bytes(urandom(7), "big") >> 3) * 2.0**-53
