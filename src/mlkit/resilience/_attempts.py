"""What happens around the attempts of one call: shared by `def`, `async def` and streams; it calls and awaits nothing."""

from __future__ import annotations

import sys
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._clock import current
from mlkit._suggest import clip
from mlkit.errors import (
    BreakerOpenError,
    DeadlineExceededError,
    RejectedError,
    ResultRejectedError,
)
from mlkit.resilience._ambient import AMBIENT, NOTHING, Ambient
from mlkit.resilience._backoff import pause_after

if TYPE_CHECKING:
    from contextvars import Token
    from types import FrameType, TracebackType

    from mlkit.resilience._policy import Policy

__all__ = ["Attempts", "Plan", "Trial", "forget_frames"]

_MARK = "_mlkit_retried_by"
_RESOLUTION = 1e-6
_RESUMABLE = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR


class Plan(NamedTuple):
    """A policy, and the name of what it guards."""

    policy: Policy
    name: str


@final
class Attempts:
    """The attempts of one call: how many, until when, and what is said about those that failed."""

    __slots__ = ("_notes", "_plan", "around", "made", "until")

    def __init__(self, plan: Plan, *, made: int = 0) -> None:
        self._plan = plan
        self._notes: list[str] = []
        self.made = made
        self.around = AMBIENT.get() or NOTHING
        self.until = self.around.when, self.around.allowed
        allowed = plan.policy.deadline
        if allowed is not None:
            when = current().monotonic() + allowed
            if when < self.until[0]:
                self.until = when, allowed

    def pause(self, error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt, or None if *error* is to be raised."""
        policy, retry = self._plan.policy, self._plan.policy.retry
        if retry is None or not self._worth_retrying(error):
            return self._give_up(error, None, retried=False)
        if self.around.retrying:
            return self._give_up(error, None, retried=False)  # the policy around it goes on
        if self.made >= retry.attempts:
            return self._give_up(error, None)
        pause = pause_after(retry.backoff, self.made)
        if current().monotonic() + pause >= self.until[0]:
            return self._give_up(error, "no time left for another attempt")
        if policy.breaker is not None and policy.breaker.blocked() is not None:
            return self._give_up(error, f"breaker {policy.breaker.name!r} is open")
        if retry.budget is not None and not retry.budget.spend():
            return self._give_up(error, "the retry budget is spent")
        policy._limits.count("retries", self._plan.name)  # noqa: SLF001 - one object in two files
        self._notes.append(
            f"{self._plan.name}: attempt {self.made}: {type(error).__name__}: {clip(str(error), 160)}"
        )
        return pause

    def _worth_retrying(self, error: Exception) -> bool:
        if isinstance(error, RejectedError) or self._tried_inside(error):
            return False
        return bool(self._plan.policy._retryable(error))  # noqa: SLF001 - one object in two files

    def _tried_inside(self, error: BaseException | None) -> bool:
        """Whether another policy has already spent its attempts on *error* or on what caused it."""
        own = self._plan.policy._identity  # noqa: SLF001 - one object in two files
        raised = error
        for _ in range(8):
            if error is None:
                return False
            if getattr(error, _MARK, own) != own:
                return error is raised or not _handled_above(error)
            error = error.__cause__ or error.__context__
        return False

    def _give_up(self, error: Exception, why: str | None, *, retried: bool = True) -> float | None:
        """Write on *error* what led to it; None, so that it is raised."""
        notes = self._notes if why is None else [*self._notes, f"{self._plan.name}: {why}"]
        known = getattr(error, "__notes__", ())  # a shared error object must not grow for ever
        with suppress(AttributeError):  # a frozen one takes no notes; it comes out all the same
            for note in notes:
                if note not in known:
                    error.add_note(note)
            if retried and self.made > 1:
                setattr(error, _MARK, self._plan.policy._identity)  # noqa: SLF001
        return None


@final
class Trial:
    """One attempt, as a context manager: admitted by the breaker, within its time, judged on every way out.

    Raises:
        DeadlineExceededError: On entry, if no time is left.
        BreakerOpenError: On entry, if the breaker refuses.
    """

    __slots__ = ("_attempts", "_began", "_plan", "_ticket", "_token", "_verdict", "limit")

    def __init__(self, plan: Plan, attempts: Attempts) -> None:
        self._plan = plan
        self._attempts = attempts
        self._ticket: object | None = None
        self._token: Token[Ambient | None] | None = None
        self._verdict: bool | None = None
        self._began = 0.0
        self.limit: float | None = None
        """Seconds this attempt may take, or None."""

    def __enter__(self) -> Trial:
        policy, name = self._plan
        when, allowed = self._attempts.until
        breaker, timeout = policy.breaker, policy.timeout
        if when != inf or timeout is not None or (breaker is not None and breaker.slow is not None):
            self._began = now = current().monotonic()
            if now >= when:
                raise DeadlineExceededError(name, allowed)
            if timeout is not None and now + timeout < when:
                when, allowed = now + timeout, timeout
            if when != inf:
                self.limit = when - now
        if breaker is not None:
            self._ticket = breaker.acquire()
            if self._ticket is None:
                policy._limits.count("rejections", name)  # noqa: SLF001 - one object in two files
                raise BreakerOpenError(
                    breaker.name, "the breaker is open", retry_after=breaker.blocked()
                )
        around = self._attempts.around
        if around.attempts is not None:
            around.attempts[0] += 1
        retrying = around.retrying or self._attempts.made > 1
        if when != inf or retrying:
            self._token = AMBIENT.set(Ambient(when, allowed, retrying))
        elif around.attempts is not None:
            self._token = AMBIENT.set(None)
        return self

    def check(self, answer: object) -> None:
        """Take the answer of the attempt; raise `ResultRejectedError` if the policy does not accept it."""
        policy, name = self._plan
        if policy.accept is not None and not policy.accept(answer):
            raise ResultRejectedError(repr(policy.accept), name)
        self._verdict = True

    def late(self) -> DeadlineExceededError:
        """Return the error that says that the time of this attempt is over."""
        return DeadlineExceededError(self._plan.name, self.limit or 0.0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._token is not None:
            AMBIENT.reset(self._token)
        breaker = self._plan.policy.breaker
        if breaker is None or self._ticket is None:
            return
        if isinstance(error, Exception):
            breaker.failed(self._ticket, error)
            return
        duration, verdict = 0.0, self._verdict if error is None else None
        if self._began:
            duration = current().monotonic() - self._began
            if self.limit is not None and (
                duration > self.limit if verdict else duration + _RESOLUTION >= self.limit
            ):
                # Late. An answer is given out all the same; a call that is cancelled now is one that hung until the
                # timeout or deadline of a policy around it, whose timer fires first.
                verdict = False
        breaker.settle(self._ticket, verdict, duration=duration)


def _handled_above(error: BaseException) -> bool:
    """Whether a caller of the policy is handling *error*: then it is in the context of every error raised meanwhile."""
    trace = error.__traceback__
    frame: FrameType | None = sys._getframe() if trace is not None else None  # noqa: SLF001
    while frame is not None and trace is not None:
        if frame is trace.tb_frame:
            return True
        frame = frame.f_back
    return False


def forget_frames(error: BaseException) -> None:
    """Clear the locals of the functions that *error* went through, so that it keeps no batch alive.

    Coroutines and generators keep theirs: one that was suspended since would be closed by it.
    """
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        pending += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
        trace = one.__traceback__
        while trace is not None:
            if not trace.tb_frame.f_code.co_flags & _RESUMABLE:
                with suppress(RuntimeError):  # still running
                    trace.tb_frame.clear()
            trace = trace.tb_next
