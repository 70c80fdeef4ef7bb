"""A policy made ready for one function: what every call needs, looked up once."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit.errors import BreakerOpenError, ConfigurationError, ResultRejectedError
from mlkit.resilience._ambient import AMBIENT
from mlkit.resilience._budget import Budget
from mlkit.resilience._machine import Machine, Rules
from mlkit.resilience._threads import Threaded
from mlkit.resilience._verdict import Verdict, transient

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.resilience._breaker import Breaker
    from mlkit.resilience._policy import Policy, Retry

__all__ = ["ALWAYS_CLOSED", "RESOLUTION", "Plan"]

ALWAYS_CLOSED = Machine(Rules(1.0, 1.0, 1, 1, 0.0, 1.0, 1, 1.0))
RESOLUTION = 1e-6
"""Seconds by which a timer may fire early."""
_NO_BUDGET = Budget(burst=0)


@final
class Plan:
    """A policy, and the name of what it guards.

    Attributes:
        policy: The policy.
        name: What errors and telemetry call the guarded function.
        retry: As in the policy.
        breaker: As in the policy.
        blocked: From nothing to the seconds until the breaker may admit a call, or None if it may now.
        timeout: Seconds an attempt may take, or None.
        deadline: As in the policy.
        machine: The breaker's state, or that of one which never opens.
        watched: Whether another process may change that state.
        budget: What retries and hedges are paid from; `unbounded` says if there is none.
        unbounded: Whether retries are free.
        decides: Whether the user said what is to be done about errors, or answers.
        clocked: Whether an attempt needs to know the time.
        limit: Seconds the first attempt may take if nothing surrounds the call, or infinity.
        simple: Whether an attempt needs neither the time nor a look at the answer or at a storage.
        quick: Seconds below which an answer is a plain success.
        judges: Whether answers are looked at.
        retryable: From an error to a bool or `Verdict`.
    """

    __slots__ = (
        "_count_refusal",
        "_count_retry",
        "_refuses",
        "blocked",
        "breaker",
        "budget",
        "clocked",
        "deadline",
        "decides",
        "judges",
        "limit",
        "machine",
        "name",
        "policy",
        "quick",
        "retry",
        "retryable",
        "simple",
        "slow",
        "timeout",
        "unbounded",
        "watched",
    )

    def __init__(self, policy: Policy, name: str) -> None:
        self.policy, self.name = policy, name
        self.retry: Retry | None = policy.retry
        self.breaker: Breaker | None = policy.breaker
        timeout = policy.timeout
        self.timeout = timeout.limit if isinstance(timeout, Threaded) else timeout
        self.deadline = policy.deadline
        self.machine = ALWAYS_CLOSED if self.breaker is None else self.breaker._machine  # noqa: SLF001
        self.watched = self.breaker is not None and self.breaker.shared
        budget = policy._budget  # noqa: SLF001 - one object in two files
        self.unbounded = budget is None
        if budget is not None:
            budget._adopt(name)  # noqa: SLF001 - one room
        self.budget = budget or _NO_BUDGET
        self._refuses = name if self.breaker is None else self.breaker.name
        self.blocked: Callable[[], float | None] = (
            _never if self.breaker is None else self.breaker.blocked
        )
        self.slow: float | None = None if self.breaker is None else self.breaker.slow
        self.clocked = (
            self.timeout is not None
            or self.deadline is not None
            or self.slow is not None
            or (self.retry is not None and self.retry.stop is not None)
        )
        self.limit = min(self.timeout or inf, self.deadline or inf)
        self.quick = inf if self.breaker is None else min(self.slow or inf, self.limit)
        self.judges = policy.accept is not None or policy.verdict is not None
        self.simple = not (self.clocked or self.judges or self.watched)
        self.decides = policy.on is not transient or policy.verdict is not None
        self.retryable: Callable[[Exception], Any] = policy._retryable  # noqa: SLF001
        # Not there before the first: a series of a policy that never failed would be noise.
        self._count_retry: Callable[[], int] | None = None
        self._count_refusal: Callable[[], int] | None = None

    def retried(self) -> None:
        """Count one retry."""
        count = self._count_retry
        if count is None:
            count = self._count_retry = self.policy._limits.count_of("retries", self.name)  # noqa: SLF001 - one object in two files
        count()

    def refused(self, wait: float | None) -> BreakerOpenError:
        """Count a call that the breaker does not admit for *wait* seconds, and return its error."""
        count = self._count_refusal
        if count is None:
            count = self._count_refusal = self.policy._limits.count_of("rejections", self.name)  # noqa: SLF001 - as above
        count()
        return BreakerOpenError(self._refuses, "the breaker is open", retry_after=wait)

    def succeeded(self, ticket: object, duration: float) -> None:
        """Tell the breaker of an answer that was slow, or late: that is given out, and counts as a failure."""
        if self.breaker is not None:
            self.breaker.settle(ticket, duration <= self.limit, duration=duration)

    def cancelled(self, ticket: object, began: float) -> None:
        """Tell the breaker of a cancelled call if its time was over: the timer of a policy around it fires first."""
        if self.breaker is not None and self.limit != inf:
            duration = current().monotonic() - began
            if duration + RESOLUTION >= self.limit:
                self.breaker.settle(ticket, False, duration=duration)  # noqa: FBT003 - the verdict itself

    def admitted(self) -> object:
        """Return the breaker's ticket; raise `BreakerOpenError` if it gives none."""
        if self.breaker is None:
            return self.machine.ring
        ticket = self.breaker.acquire()
        if ticket is None:
            raise self.refused(self.breaker.blocked())
        return ticket

    def judge(self, answer: object) -> None:
        """Raise `ResultRejectedError` if the policy does not take *answer*."""
        policy = self.policy
        if policy.accept is not None and not policy.accept(answer):
            raise ResultRejectedError(repr(policy.accept), self.name)
        if policy.verdict is not None:
            told = policy.verdict(answer)
            if isinstance(told, Verdict):
                raise _rejected(told, self.name)
            if told is not None:
                raise ConfigurationError(
                    f"Policy(verdict=...) of {self.name}",
                    told,
                    "None from it, RETRY, RETRY.after(seconds), FALL or RAISE",
                    hint="None takes the answer; a bool says nothing here: accept=... takes one",
                )

    def broke_off(self, error: Exception) -> None:
        """Tell the breaker that a stream failed after its opening, which was counted as a success."""
        if self.breaker is not None and (ring := self.machine.ring) is not None:
            self.breaker.failed(ring, error)

    def spend(self) -> bool:
        """Pay for one more attempt; False if that is not possible."""
        return self.unbounded or self.budget.spend()

    def earn(self) -> None:
        """Put in what one success earns, unless a policy around this one does so for the same call."""
        budget = self.budget
        if budget.level >= budget.full:
            return
        link = AMBIENT.get()
        while link is not None:
            if link.budget is budget and not link.over:
                return
            link = link.around
        budget.earn()


def _never() -> None:
    return None


def _rejected(verdict: Verdict, name: str) -> ResultRejectedError:
    error = ResultRejectedError(repr(verdict), name)
    error.verdict = verdict
    return error
