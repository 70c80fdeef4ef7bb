"""The policy: what is done around one call, as one frozen value with one order."""

from __future__ import annotations

from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final

from mlkit._arguments import number, one_of, seconds, whole
from mlkit.errors import ConfigurationError
from mlkit.resilience._backoff import Backoff, Stop, backoff_of, full_jitter, stop_of
from mlkit.resilience._breaker import Breaker
from mlkit.resilience._budget import Budget
from mlkit.resilience._limits import Limits
from mlkit.resilience._settings import MODES, Frozen, checked_name
from mlkit.resilience._threads import Threaded
from mlkit.resilience._verdict import predicate, transient

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlkit.resilience._gates import Gate
    from mlkit.resilience._latencies import Latencies
    from mlkit.resilience._verdict import On, Verdict

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
        stop: When to give up before the attempts are spent: a `tenacity.stop_*` object, or a callable from the attempts
            made so far, the seconds since the first began and the seconds to wait now, to a bool.
        max_wait: The longest that an error may make it wait, in seconds: its `retry_after`, or the `Retry-After` of its
            `response`. The wait is at least what was asked for; if more than *max_wait* is, the error is raised.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> Retry(4, backoff=full_jitter(0.1, cap=2.0)).backoff
        full_jitter(0.1, cap=2)
    """

    __slots__ = ("_own", "attempts", "backoff", "budget", "max_wait", "stop")

    attempts: int
    backoff: Backoff
    budget: Budget | None
    stop: Stop | None
    max_wait: float
    _own: bool

    def __init__(
        self,
        attempts: int = 3,
        *,
        backoff: Backoff | float | None = None,
        budget: Budget | None = _OWN_BUDGET,
        stop: Stop | None = None,
        max_wait: float = 60.0,
    ) -> None:
        own = budget is _OWN_BUDGET
        if own:
            budget = Budget()
        elif budget is not None and not isinstance(budget, Budget):
            raise ConfigurationError("Retry(budget=...)", budget, "a Budget, or None")
        self._set(
            attempts=whole("Retry(attempts)", attempts, low=1),
            backoff=full_jitter() if backoff is None else backoff_of("Retry(backoff=...)", backoff),
            budget=budget,
            stop=None if stop is None else stop_of("Retry(stop=...)", stop),
            max_wait=seconds("Retry(max_wait=...)", max_wait, zero=True),
            _own=own,
        )

    def _fields(self) -> dict[str, Any]:
        fields = super()._fields()
        if self._own:  # a budget of its own is no setting, but what it counts
            del fields["budget"]
        return fields


@final
class Hedge(Frozen):
    """When a second attempt is started beside one that is slow. For `async def` only. Frozen.

    The first answer wins; the others are cancelled, and awaited, whichever way the call ends. Each hedge is paid from
    the budget of the policy's retry, or, without one, from a `Budget()` of the policy's own: so hedges stay a small
    share of the calls even if everything is slow.

    Args:
        after: Seconds without an answer until the next attempt is started, or a quantile of how long the last 256 calls
            of the policy took, such as `"p95"`: then about 5 % of the calls are hedged. As long as fewer than 32 calls
            have been answered, a quantile starts none.
        extra: How many may be started besides the first, at least 1.

    Raises:
        ConfigurationError: If an argument is out of its range.

    Examples:
        >>> Hedge("p95").share
        0.95

    Note:
        Dean and Barroso, "The Tail at Scale" (2013).
    """

    __slots__ = ("_delay", "_share", "after", "extra")

    after: float | str
    extra: int
    _delay: float | None
    _share: float | None

    def __init__(self, after: float | str, *, extra: int = 1) -> None:
        share = _quantile(after) if isinstance(after, str) else None
        delay = seconds("Hedge(after)", after) if share is None else None
        self._set(
            after=delay if isinstance(after, (int, float)) else after,
            extra=whole("Hedge(extra=...)", extra, low=1),
            _delay=delay,
            _share=share,
        )

    @property
    def delay(self) -> float | None:
        """The fixed delay in seconds, or None if it is observed."""
        return self._delay

    @property
    def share(self) -> float | None:
        """The share of the calls that are quicker than the delay, or None if that is fixed."""
        return self._share


@final
class Policy(Frozen):
    """What is done around a call, in one order: deadline, rate, bulkhead, retry, hedge, breaker, timeout.

    Decorates `def`, `async def`, generators, async generators, methods and callable objects; the signature stays. `repr`
    prints the layers from the outermost inwards.

    Of a generator, the opening is one attempt: with `stream="open"` until the first item is there, with `"buffer"` until
    the last is, so that it is all or nothing. Nothing that was handed out is replayed. An error after the opening comes
    out, and is one more failure for the breaker. A bulkhead counts a stream until it is read or closed. `timeout` and
    `deadline` end with the opening.

    Frozen, hashable, equal by its settings, picklable if these are. What it counts (calls in flight, rate, the states of
    its breaker and budget) belongs to this object: everything that it decorates shares it. A pickled policy starts
    afresh, and a forked child with no calls in flight. Thread-safe; one policy may serve threads and event loops at the
    same time.

    Args:
        retry: A `Retry`, or a number of attempts in total.
        breaker: A `Breaker`; each attempt passes it.
        timeout: Seconds an attempt may take. An `async def` is cancelled then. A `def` cannot be: it sees the time in
            `remaining()`, policies inside obey it, and an answer that comes late is returned but counts as a failure
            for the breaker. `Threaded(seconds)` runs it in a thread that is left behind instead.
        deadline: Seconds the whole call may take, waiting included.
        bulkhead: Calls in flight at most; the next one is rejected at once.
        rate: Calls a second, as a token bucket that holds one second's worth, at least one call.
        hedge: A `Hedge`; `async def` only.
        on: What is retried: exception types, or a callable of the exception that returns a bool or one of `RETRY`,
            `RETRY.after(seconds)`, `FALL` and `RAISE`.
        accept: A gate or callable of the answer; an answer that it refuses is a `ResultRejectedError`, and a failure
            for the breaker. A gate that looks at the arguments as well, such as `agrees`, belongs to a tier.
        verdict: A callable of the answer that returns None to take it, or one of `RETRY`, `RETRY.after(seconds)`, `FALL`
            and `RAISE` to refuse it as *accept* does, and to say what next.
        stream: `"open"` or `"buffer"`, see above; default `"open"`. Only generators have a use for it.
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
        "_budget",
        "_identity",
        "_latencies",
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
        "stream",
        "timeout",
        "verdict",
    )

    retry: Retry | None
    breaker: Breaker | None
    timeout: float | Threaded | None
    deadline: float | None
    bulkhead: int | None
    rate: float | None
    hedge: Hedge | None
    on: On
    accept: Gate | None
    verdict: Callable[[Any], Verdict | None] | None
    stream: str | None
    name: str | None
    _budget: Budget | None
    _identity: int
    _latencies: Latencies | None
    _limits: Limits
    _retryable: Callable[[Exception], bool]

    def __init__(
        self,
        *,
        retry: Retry | int | None = None,
        breaker: Breaker | None = None,
        timeout: float | Threaded | None = None,
        deadline: float | None = None,
        bulkhead: int | None = None,
        rate: float | None = None,
        hedge: Hedge | None = None,
        on: On = transient,
        accept: Gate | Callable[[Any], Any] | None = None,
        verdict: Callable[[Any], Verdict | None] | None = None,
        stream: str | None = None,
        name: str | None = None,
    ) -> None:
        if breaker is not None and not isinstance(breaker, Breaker):
            raise ConfigurationError("Policy(breaker=...)", breaker, "a Breaker, or None")
        if hedge is not None and not isinstance(hedge, Hedge):
            raise ConfigurationError(
                "Policy(hedge=...)", hedge, "a Hedge, or None", hint="write Hedge(after=seconds)"
            )
        if verdict is not None and not callable(verdict):
            raise ConfigurationError("Policy(verdict=...)", verdict, "a callable of the answer")
        retry = (
            retry
            if retry is None or isinstance(retry, Retry)
            else Retry(whole("Policy(retry=...)", retry, low=1))
        )
        bulkhead = None if bulkhead is None else whole("Policy(bulkhead=...)", bulkhead, low=1)
        rate = None if rate is None else _calls_a_second(rate)
        self._set(
            retry=retry,
            breaker=breaker,
            timeout=timeout
            if timeout is None or isinstance(timeout, Threaded)
            else seconds("Policy(timeout=...)", timeout),
            deadline=None if deadline is None else seconds("Policy(deadline=...)", deadline),
            bulkhead=bulkhead,
            rate=rate,
            hedge=hedge,
            on=on,
            accept=None if accept is None else _gate(accept),
            verdict=verdict,
            stream=None if stream is None else one_of("Policy(stream=...)", stream, MODES),
            name=checked_name("Policy(name=...)", name),
            _budget=retry.budget if retry is not None else None if hedge is None else Budget(),
            _latencies=None if hedge is None or hedge.share is None else _latencies(hedge.share),
            _identity=next(_identities),
            _limits=Limits(bulkhead, rate),
            _retryable=predicate("Policy(on=...)", on),
        )

    @property
    def limited(self) -> bool:
        """Whether it has a bulkhead or a rate."""
        return self.bulkhead is not None or self.rate is not None

    @property
    def threaded(self) -> Threaded | None:
        """Its timeout, if that leaves threads behind."""
        return self.timeout if isinstance(self.timeout, Threaded) else None

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
        from mlkit.resilience._bind import packed

        answer: _R = packed(self, fn)(args, kwargs)
        return answer

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
        if self.verdict is not None:
            layers.append(f"verdict({getattr(self.verdict, '__name__', 'callable')})")
        if self.stream is not None:
            layers.append(f"stream({self.stream!r})")
        name = "" if self.name is None else f" {self.name!r}"
        return f"<Policy{name}: {' > '.join(layers) or 'nothing'}>"


_identities = count(1)


def _gate(accept: Gate | Callable[[Any], Any]) -> Gate:
    """Return *accept* as a gate, or raise."""
    from mlkit.resilience._gates import Gate  # not before somebody uses one

    gate = Gate.of("Policy(accept=...)", accept)
    if gate.arguments:
        raise ConfigurationError(
            "Policy(accept=...)",
            gate,
            "a gate of the answer alone",
            hint="this one looks at the arguments as well, which only a tier hands on: tier(fn, accept=...)",
        )
    return gate


def _latencies(share: float) -> Latencies:
    from mlkit.resilience._latencies import Latencies  # not before something is hedged

    return Latencies(share)


def _quantile(text: str) -> float:
    """Return the share that "p95" stands for, or raise."""
    expected = "a number of seconds > 0, or a quantile from 'p1' to 'p99.9'"
    if text[:1] == "p" and text[1:].replace(".", "", 1).isdecimal() and 0 < float(text[1:]) < 100:
        return float(text[1:]) / 100
    raise ConfigurationError("Hedge(after)", text, expected)


def _calls_a_second(rate: object) -> float:
    """Return *rate* as calls a second, or raise."""
    expected = "a number of calls a second > 0"
    result = number("Policy(rate=...)", rate, expected, low=0.0)
    if result in (0.0, inf):
        raise ConfigurationError("Policy(rate=...)", rate, expected)
    return result
