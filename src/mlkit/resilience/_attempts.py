"""What happens around the attempts of one call: shared by `def`, `async def` and streams; it calls and awaits nothing."""

from __future__ import annotations

import sys
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._suggest import clip, said
from mlkit.errors import (
    ConfigurationError,
    DeadlineExceededError,
    MlkitError,
    RejectedError,
    ResultRejectedError,
)
from mlkit.resilience._ambient import AMBIENT, Ambient, inherited
from mlkit.resilience._backoff import pause_after
from mlkit.resilience._layout import laid_out
from mlkit.resilience._machine import OK
from mlkit.resilience._plan import RESOLUTION
from mlkit.resilience._verdict import FALL, RAISE, RETRY, Verdict, pushback

if TYPE_CHECKING:
    from contextvars import Token
    from types import FrameType, TracebackType

    from mlkit.resilience._plan import Plan

__all__ = ["SPENT", "Attempts", "Spent", "Trial", "first_failed", "forget_frames", "is_final"]

_MARK = "_mlkit_retried_by"
_FINAL = "_mlkit_final"
_SPENT = "the retry budget is spent"
_RESUMABLE = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR


@final
class Spent:
    """How many times any policy of this process has given up on an error that it had retried.

    A call notes the number when it begins. The mark that a policy leaves on an error holds the number of that moment:
    a mark of before the call began is of another call, however often the same error object is raised.
    """

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


SPENT = Spent()


@final
@laid_out
class Attempts:
    """The attempts of one call after the first has failed: how many, until when, and what is said about them.

    Attributes:
        plan: What to do around each.
        since: `SPENT.number` when the call began.
        until: The monotonic time at which the call must have ended, and the seconds that were allowed.
        retrying: Whether a policy around this one is at its second or a later attempt.
        began: The monotonic time at which the call began, if anybody needs it.
        made: How many there were.
    """

    plan: Plan
    since: int
    until: tuple[float, float] = (inf, inf)
    retrying: bool = False
    began: float = 0.0
    _notes: tuple[tuple[int, str, str], ...] = ()
    made: int = 1

    def pause(self, error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt, or None if *error* is to be raised."""
        retry = self.plan.retry
        verdict = FALL if retry is None and not self.plan.decides else self._verdict(error)
        if retry is None or (verdict is not RETRY and not verdict.again):
            if verdict == RAISE:
                with suppress(Exception):  # a frozen error: the next tier is asked
                    setattr(error, _FINAL, True)
            return self._give_up(error, None, retried=False)
        if self.retrying:
            return self._give_up(error, None, retried=False)  # the policy around it goes on
        if self.made >= retry.attempts:
            return self._give_up(error, None)
        pause = pause_after(retry.backoff, self.made, error)
        asked = verdict.pause if verdict.pause is not None else pushback(error)
        if asked is not None:
            if asked > retry.max_wait:
                return self._give_up(error, f"asked to wait {asked:.3g} s, more than max_wait")
            pause = max(pause, asked)
        why = self._forbidden(pause)
        if why is not None:
            return self._give_up(error, why, counts=why is _SPENT)
        self.plan.retried()
        # The text now, the note only if it is needed; the error itself would keep the batch alive.
        text = said(error)
        note = self.made, type(error).__name__, text if len(text) <= 160 else clip(text, 160)
        self._notes = (*self._notes, note)
        return pause

    def _forbidden(self, pause: float) -> str | None:
        """Return why there is no other attempt after *pause* seconds, or None; the last to be asked is the budget."""
        plan = self.plan
        retry, breaker = plan.retry, plan.breaker
        assert retry is not None  # noqa: S101 - for the type checker
        if retry.stop is not None or self.until[0] != inf:
            now = current().monotonic()
            if now + pause >= self.until[0]:
                return "no time left for another attempt"
            if retry.stop is not None and retry.stop(self.made, now - self.began, pause):
                return "told to stop"
        if breaker is not None and plan.machine.ring is None and breaker.blocked() is not None:
            return f"breaker {breaker.name!r} is open"
        if not plan.spend():
            return _SPENT
        return None

    def _verdict(self, error: Exception) -> Verdict:
        ours = isinstance(error, MlkitError)
        if ours and isinstance(error, (RejectedError, ConfigurationError)):  # whatever `on` says
            return FALL
        if self.since != SPENT.number and self._tried_inside(error):
            return FALL
        if ours and isinstance(error, ResultRejectedError) and isinstance(error.verdict, Verdict):
            return error.verdict
        answer = self.plan.retryable(error)
        if answer is True:
            return RETRY
        if isinstance(answer, Verdict):
            return answer
        return RETRY if answer else FALL

    def _tried_inside(self, error: BaseException | None) -> bool:
        """Whether another policy has, during this call, spent its attempts on *error* or on what caused it."""
        own, raised = self.plan.policy._identity, error  # noqa: SLF001 - one object in two files
        for _ in range(8):
            if error is None:
                return False
            identity, number = getattr(error, _MARK, (own, 0))
            if identity != own and number > self.since:
                return error is raised or not _handled_above(error)
            error = error.__cause__ or error.__context__
        return False

    def _give_up(
        self, error: Exception, why: str | None, *, retried: bool = True, counts: bool = False
    ) -> float | None:
        """Write on *error* what led to it; None, so that it is raised.

        Args:
            error: What the last attempt raised.
            why: Why there is no other one, if there might be.
            retried: Whether this policy has made all of its attempts.
            counts: Whether policies around this one are to take it for retried in any case: what one cannot pay for,
                they shall not either.
        """
        name = self.plan.name
        notes = [f"{name}: attempt {made}: {kind}: {text}" for made, kind, text in self._notes]
        if why is not None:
            notes.append(f"{name}: {why}")
        with suppress(Exception):  # a frozen one takes no notes; it comes out all the same
            if notes:
                known = getattr(error, "__notes__", ())  # a shared error must not grow for ever
                for note in notes:
                    if note not in known:
                        error.add_note(note)
            if counts or (retried and self.made > 1):
                SPENT.number += 1
                setattr(error, _MARK, (self.plan.policy._identity, SPENT.number))  # noqa: SLF001
        return None


def first_failed(
    plan: Plan, since: int, ring: Any, error: Exception, began: float = 0.0
) -> tuple[Attempts, float | None]:
    """Judge the first attempt of a call, which nothing surrounds; return what comes next."""
    if plan.breaker is not None:
        duration = current().monotonic() - began if began else 0.0
        plan.breaker.failed(ring, error, duration=duration)
    attempts = Attempts()
    attempts.plan, attempts.since = plan, since
    if plan.deadline is not None:
        attempts.until = began + plan.deadline, plan.deadline
    attempts.began = began
    return attempts, attempts.pause(error)


@final
class Trial:
    """One attempt, as a context manager: admitted by the breaker, within its time, judged on every way out.

    Args:
        plan: What to do around it.
        attempts: The attempts of the call, or None for its first.

    Raises:
        DeadlineExceededError: On entry, if no time is left.
        BreakerOpenError: On entry, if the breaker refuses.
    """

    __slots__ = (
        "_first",
        "_inside",
        "_plan",
        "_retrying",
        "_since",
        "_ticket",
        "_token",
        "_until",
        "_verdict",
        "began",
        "limit",
    )

    began: float
    """When it began, on the monotonic clock; 0.0 if nobody needs to know."""
    limit: float | None
    """Seconds this attempt may take, or None."""

    def __init__(self, plan: Plan, attempts: Attempts | None = None) -> None:
        self._plan = plan
        self._ticket: object | None = None
        self._token: Token[Ambient | None] | None = None
        self._inside: Ambient | None = None
        self._verdict: bool | None = None
        self.began = 0.0
        self.limit = None
        if attempts is None:
            self._first, self._retrying = True, False
            self._since, self._until = SPENT.number, (inf, inf)
        else:
            self._first, self._retrying = False, True
            self._since, self._until = attempts.since, attempts.until

    def beside(self) -> Trial:
        """Return another attempt of the same call, to run at the same time as this one."""
        other = Trial(self._plan)
        other._first, other._retrying = False, self._retrying
        other._since, other._until = self._since, self._until
        return other

    def __enter__(self) -> Trial:
        plan, head = self._plan, AMBIENT.get()
        if head is not None and self._first:
            when, allowed, self._retrying = inherited(head)
            self._until = when, allowed
        if plan.clocked or self._until[0] != inf:
            self._time()
        ticket = plan.machine.ring
        self._ticket = plan.admitted() if ticket is None or plan.watched else ticket
        limit = self.limit
        budget = plan.budget
        if limit is not None or head is not None or self._retrying or budget.level < budget.full:
            if head is not None and head.attempts is not None:
                head.attempts[0] += 1
            self._inside = inside = Ambient()
            if limit is not None:
                inside.when, inside.allowed = self.began + limit, limit
            inside.retrying, inside.around, inside.budget = self._retrying, head, budget
            self._token = AMBIENT.set(self._inside)
        return self

    def _time(self) -> None:
        """Read the clock, and say how long this attempt may take; raise if no time is left."""
        plan = self._plan
        when = self._until[0]
        self.began = now = current().monotonic()
        if self._first and plan.deadline is not None and now + plan.deadline < when:
            when = now + plan.deadline
            self._until = when, plan.deadline
        if now >= when:
            raise DeadlineExceededError(plan.name, self._until[1])
        if plan.timeout is not None and now + plan.timeout <= when:
            self.limit = plan.timeout
        elif when != inf:
            self.limit = when - now

    def check(self, answer: object) -> None:
        """Take the answer of the attempt; raise `ResultRejectedError` if the policy does not accept it."""
        if self._plan.judges:
            self._plan.judge(answer)
        self._verdict = True

    def failed(self) -> Attempts:
        """Return the attempts of the call, of which this one is the first and has failed."""
        attempts = Attempts()
        attempts.plan, attempts.since, attempts.until = self._plan, self._since, self._until
        attempts.retrying, attempts.began = self._retrying, self.began
        return attempts

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._inside is not None and self._token is not None:
            self._inside.over = True
            try:  # noqa: SIM105 - `suppress` costs 0.3 us
                AMBIENT.reset(self._token)
            except ValueError:  # of a task that is thrown away with its loop, in another context
                pass
        plan, ticket = self._plan, self._ticket
        breaker = plan.breaker
        if breaker is None or ticket is None:
            return
        ring = plan.machine.ring
        quick = self._verdict and error is None and self.limit is None and plan.simple
        if quick and ring is not None and ring is ticket:
            ring.append(OK)  # nearly always; `settle` would come to the same
            return
        duration = current().monotonic() - self.began if self.began else 0.0
        if isinstance(error, Exception):
            breaker.failed(ticket, error, duration=duration)
            return
        verdict = self._verdict if error is None else None
        if self.limit is not None and (
            duration > self.limit if verdict else duration + RESOLUTION >= self.limit
        ):
            # Late. An answer is given out all the same; a call that is cancelled now is one that hung until the
            # timeout or deadline of a policy around it, whose timer fires first.
            verdict = False
        breaker.settle(ticket, verdict, duration=duration)


def _handled_above(error: BaseException) -> bool:
    """Whether a caller of the policy is handling *error*: then it is in the context of every error raised meanwhile."""
    trace = error.__traceback__
    frame: FrameType | None = sys._getframe() if trace is not None else None  # noqa: SLF001
    while frame is not None and trace is not None:
        if frame is trace.tb_frame:
            return True
        frame = frame.f_back
    return False


def is_final(error: Exception) -> bool:
    """Return whether no other tier is asked after *error*: a wrong call, or one on which a policy's verdict was `RAISE`."""
    return isinstance(error, ConfigurationError) or getattr(error, _FINAL, False)


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
