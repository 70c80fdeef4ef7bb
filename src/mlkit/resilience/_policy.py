"""The policy: what is done around one call, as one frozen value with one order."""

from __future__ import annotations

from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final

from mlkit._arguments import number, seconds, whole
from mlkit.errors import ConfigurationError
from mlkit.resilience._backoff import Backoff, backoff_of, full_jitter
from mlkit.resilience._breaker import Breaker, checked_name
from mlkit.resilience._budget import Budget
from mlkit.resilience._gates import Gate
from mlkit.resilience._limits import Limits
from mlkit.resilience._settings import Frozen
from mlkit.resilience._verdict import predicate, transient

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.resilience._verdict import On

__all__ = ["Hedge", "Policy", "Retry"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_OWN_BUDGET: Any = "one of its own"


@final
class Retry(Frozen):
    """How often a call is tried, and how long to wait in between. Frozen.

    Args:
        attempts: Attempts in total, the first included; at least 1.
        backoff: Seconds, `full_jitter(...)`, a `tenacity.wait_*` object, or a callable from the number of attempts made
            so far to seconds.
        budget: What retries are paid from; default a `Budget()` of its own, None for no bound.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> Retry(4, backoff=full_jitter(0.1, cap=2.0))
        Retry(attempts=4, backoff=full_jitter(0.1, cap=2), budget=Budget(ratio=0.1, burst=10))
    """

    __slots__ = ("attempts", "backoff", "budget")

    attempts: int
    backoff: Backoff
    budget: Budget | None

    def __init__(
        self,
        attempts: int = 3,
        *,
        backoff: Backoff | float | None = None,
        budget: Budget | None = _OWN_BUDGET,
    ) -> None:
        if budget is _OWN_BUDGET:
            budget = Budget()
        elif budget is not None and not isinstance(budget, Budget):
            raise ConfigurationError("Retry(budget=...)", budget, "a Budget, or None")
        self._set(
            attempts=whole("Retry(attempts)", attempts, low=1),
            backoff=full_jitter() if backoff is None else backoff_of("Retry(backoff=...)", backoff),
            budget=budget,
        )


@final
class Hedge(Frozen):
    """When a second attempt is started beside one that is slow. For `async def` only. Frozen.

    The first answer wins; the others are cancelled, and awaited, whichever way the call ends. Each hedge is paid from
    the budget of the policy's retry, if it has one.

    Args:
        after: Seconds without an answer until the next attempt is started.
        extra: How many may be started besides the first, at least 1.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Note:
        Dean and Barroso, "The Tail at Scale" (2013).
    """

    __slots__ = ("after", "extra")

    after: float
    extra: int

    def __init__(self, after: float, *, extra: int = 1) -> None:
        self._set(
            after=seconds("Hedge(after)", after), extra=whole("Hedge(extra=...)", extra, low=1)
        )


@final
class Policy(Frozen):
    """What is done around a call, in one order: deadline, rate, bulkhead, retry, hedge, breaker, timeout.

    Decorates `def`, `async def`, generators and async generators (guarded up to their first item: a bulkhead does not
    count those that are being read), methods and callable objects; the signature stays. `repr` prints the layers from the outermost inwards.

    Frozen, hashable, equal by its settings, picklable if these are. What it counts (calls in flight, rate, the states of
    its breaker and budget) belongs to this object: everything that it decorates shares it. A pickled policy starts
    afresh. Thread-safe; one policy may serve threads and event loops at the same time.

    Args:
        retry: A `Retry`, or a number of attempts in total.
        breaker: A `Breaker`; each attempt passes it.
        timeout: Seconds an attempt may take. An `async def` is cancelled then. A `def` cannot be: it sees the time in
            `remaining()`, policies inside obey it, and an answer that comes late is returned but counts as a failure
            for the breaker.
        deadline: Seconds the whole call may take, waiting included.
        bulkhead: Calls in flight at most; the next one is rejected at once.
        rate: Calls a second, as a token bucket that holds one second's worth, at least one call.
        hedge: A `Hedge`; `async def` only.
        on: What is retried: exception types, or a callable of the exception.
        accept: A gate or callable of the answer; an answer that it refuses is a `ResultRejectedError`, and a failure
            for the breaker.
        name: Name in errors and telemetry; default the function's.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> policy = Policy(retry=3, timeout=0.5, deadline=2.0, on=ConnectionError, name="features")
        >>> policy
        <Policy 'features': deadline(2.0) > retry(3) > timeout(0.5)>
        >>> @policy
        ... def fetch(key: str) -> str:
        ...     return key.upper()
        >>> fetch("ada")
        'ADA'
    """

    __slots__ = (
        "_identity",
        "_limits",
        "_retryable",
        "accept",
        "breaker",
        "bulkhead",
        "deadline",
        "hedge",
        "name",
        "on",
        "rate",
        "retry",
        "timeout",
    )

    retry: Retry | None
    breaker: Breaker | None
    timeout: float | None
    deadline: float | None
    bulkhead: int | None
    rate: float | None
    hedge: Hedge | None
    on: On
    accept: Gate | None
    name: str | None
    _identity: int
    _limits: Limits
    _retryable: Callable[[Exception], bool]

    def __init__(
        self,
        *,
        retry: Retry | int | None = None,
        breaker: Breaker | None = None,
        timeout: float | None = None,
        deadline: float | None = None,
        bulkhead: int | None = None,
        rate: float | None = None,
        hedge: Hedge | None = None,
        on: On = transient,
        accept: Gate | Callable[[Any], Any] | None = None,
        name: str | None = None,
    ) -> None:
        if breaker is not None and not isinstance(breaker, Breaker):
            raise ConfigurationError("Policy(breaker=...)", breaker, "a Breaker, or None")
        if hedge is not None and not isinstance(hedge, Hedge):
            raise ConfigurationError(
                "Policy(hedge=...)", hedge, "a Hedge, or None", hint="write Hedge(after=seconds)"
            )
        bulkhead = None if bulkhead is None else whole("Policy(bulkhead=...)", bulkhead, low=1)
        rate = None if rate is None else _calls_a_second(rate)
        self._set(
            retry=retry
            if retry is None or isinstance(retry, Retry)
            else Retry(whole("Policy(retry=...)", retry, low=1)),
            breaker=breaker,
            timeout=None if timeout is None else seconds("Policy(timeout=...)", timeout),
            deadline=None if deadline is None else seconds("Policy(deadline=...)", deadline),
            bulkhead=bulkhead,
            rate=rate,
            hedge=hedge,
            on=on,
            accept=None if accept is None else Gate.of("Policy(accept=...)", accept),
            name=checked_name("Policy(name=...)", name),
            _identity=next(_identities),
            _limits=Limits(bulkhead, rate),
            _retryable=predicate("Policy(on=...)", on),
        )

    def __call__(self, fn: Callable[_P, _R], /) -> Callable[_P, _R]:
        """Return *fn* with this policy around it; what kind of function it is decides how.

        Args:
            fn: A `def`, `async def`, generator, async generator, method or callable object.

        Returns:
            A function of the same kind and signature.

        Raises:
            ConfigurationError: If *fn* is not callable, is a class, or cannot have this policy.
        """
        from mlkit.resilience._bind import decorated

        return decorated(self, fn)

    def call(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call *fn* once under this policy.

        Args:
            fn: As for decorating.
            *args: Passed to *fn*.
            **kwargs: Passed to *fn*.

        Returns:
            What *fn* returns: a coroutine for an `async def`.

        Examples:
            >>> Policy(retry=2).call(max, 1, 2)
            2
        """
        from mlkit.resilience._bind import bound

        return bound(self, fn)(*args, **kwargs)

    def __repr__(self) -> str:
        layers = [
            f"{field}({value!r})"
            for field in ("deadline", "rate", "bulkhead")
            if (value := getattr(self, field)) is not None
        ]
        if self.retry is not None:
            layers.append(f"retry({self.retry.attempts})")
        if self.hedge is not None:
            layers.append(f"hedge({self.hedge.after!r})")
        if self.breaker is not None:
            layers.append(f"breaker({self.breaker.name!r})")
        if self.timeout is not None:
            layers.append(f"timeout({self.timeout!r})")
        if self.accept is not None:
            layers.append(f"accept({self.accept!r})")
        name = "" if self.name is None else f" {self.name!r}"
        return f"<Policy{name}: {' > '.join(layers) or 'nothing'}>"


_identities = count(1)


def _calls_a_second(rate: object) -> float:
    """Return *rate* as calls a second, or raise."""
    expected = "a number of calls a second > 0"
    result = number("Policy(rate=...)", rate, expected, low=0.0)
    if result in (0.0, inf):
        raise ConfigurationError("Policy(rate=...)", rate, expected)
    return result
