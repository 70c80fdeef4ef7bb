"""The fallback: the first tier that gives a good answer, for the whole of it or row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, final, overload

from mlkit.errors import ConfigurationError
from mlkit.resilience._ambient import AMBIENT, NOTHING, Ambient
from mlkit.resilience._bind import ALWAYS_CLOSED
from mlkit.resilience._breaker import checked_name
from mlkit.resilience._provenance import LISTENING, Answer
from mlkit.resilience._tiers import Store, Tier, tier
from mlkit.resilience._walk import RowWalk, Walk
from mlkit.telemetry import Counter, register

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Token
    from types import TracebackType

    from mlkit.resilience._provenance import Provenance

__all__ = ["Fallback", "fallback"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")
_R_co = TypeVar("_R_co", covariant=True)


@final
class Fallback(Generic[_P, _R_co]):
    """Tiers, asked from the first to the last until one gives a good answer. Made by `fallback`.

    Call it like its first tier. If any tier is an `async def` it is awaited (`is_async`); tiers that are a plain `def`
    then run in the event loop's thread, where a retry that waits blocks the others. Any `Exception` of a tier leads to the next one, except `ConfigurationError`: a
    wrong call is no outage. Cancellation and other `BaseException` go straight out.

    Counts `resilience_answers_total{fallback, tier}`, in rows with `per_row`. Thread-safe; no lock is held while a tier
    runs. Its breakers and kept answers are per process.

    Attributes:
        tiers: From the first to the last.
        per_row: Whether rows go down one by one.
        name: Its name in errors and telemetry.
        is_async: Whether it is awaited.
    """

    __slots__ = (
        "__weakref__",
        "_accept",
        "_counters",
        "_machine",
        "_run",
        "_stores",
        "is_async",
        "name",
        "per_row",
        "tiers",
    )

    tiers: tuple[Tier[..., Any], ...]
    per_row: bool
    name: str
    is_async: bool

    def __init__(self, tiers: tuple[Tier[..., Any], ...], *, per_row: bool, name: str) -> None:
        self.tiers = tiers
        self.per_row = per_row
        self.name = name
        self.is_async = any(one.is_async for one in tiers)
        self._stores: list[tuple[int, Store]] = [
            (at, one.make()) for at, one in enumerate(tiers) if one.make is not None
        ]
        self._counters = [
            Counter("resilience_answers_total", fallback=name, tier=one.name) for one in tiers
        ]
        for counter in self._counters:
            register(counter)
        # The straight line of a call that the first tier answers.
        first = tiers[0]
        self._run = None if per_row or self._stores or first.run is None else first.run
        self._accept = first.accept
        self._machine = ALWAYS_CLOSED if first.breaker is None else first.breaker._machine  # noqa: SLF001

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co:
        """Return the first good answer.

        Raises:
            AllTiersFailedError: If no tier has one; it holds one error per tier.
        """
        if self.is_async:
            return cast("_R_co", self._called_async(args, kwargs))
        run = self._run
        if run is None or self._machine.ring is None or LISTENING.get() is not None:
            return cast("_R_co", self._answer(args, kwargs))
        try:
            answer = run(*args, **kwargs)
            if self._accept is None or self._accept(answer):
                self._counters[0].add()
                return cast("_R_co", answer)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - what comes next is the point of a fallback
            walk = Walk(self.tiers, self._stores, args, kwargs).begun()
            walk.failed(error)
        else:
            walk = Walk(self.tiers, self._stores, args, kwargs).begun()
            walk.ledger.rejected(self.tiers[0])
        return cast("_R_co", self._descend(walk))

    async def _called_async(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._run
        if (
            run is None
            or not self.tiers[0].is_async
            or self._machine.ring is None
            or LISTENING.get() is not None
        ):
            return await self._answer_async(args, kwargs)
        try:
            answer = await run(*args, **kwargs)
            if self._accept is None or self._accept(answer):
                self._counters[0].add()
                return answer
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - what comes next is the point of a fallback
            walk = Walk(self.tiers, self._stores, args, kwargs).begun()
            walk.failed(error)
        else:
            walk = Walk(self.tiers, self._stores, args, kwargs).begun()
            walk.ledger.rejected(self.tiers[0])
        return await self._descend_async(walk)

    @overload
    def explain(  # type: ignore[overload-overlap]  # a coroutine is an R as well; the first fits better
        self: Fallback[_P, Coroutine[Any, Any, _T]], *args: _P.args, **kwargs: _P.kwargs
    ) -> Coroutine[Any, Any, Answer[_T]]: ...
    @overload
    def explain(self, *args: _P.args, **kwargs: _P.kwargs) -> Answer[_R_co]: ...
    def explain(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first good answer together with where it came from; await it if the fallback is async.

        Raises:
            AllTiersFailedError: If no tier has one.

        Examples:
            >>> from mlkit.resilience import constant
            >>> def broken(x: float) -> float:
            ...     raise ConnectionError
            >>> answer = fallback(tier(broken, name="big"), constant(0.5)).explain(1.0)
            >>> answer.value, answer.tier, answer.reason
            (0.5, 'constant', 'big: ConnectionError')
        """
        if self.is_async:
            return self._answer_async(args, kwargs, explain=True)
        return self._answer(args, kwargs, explain=True)

    def _walk(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Walk | RowWalk:
        return (RowWalk if self.per_row else Walk)(self.tiers, self._stores, args, kwargs)

    def _answer(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, explain: bool = False
    ) -> Any:
        walk = self._walk(args, kwargs)
        listener = LISTENING.get()
        if listener is None and not explain:
            return self._descend(walk)
        with _Traced(self, walk, listener) as trace:
            answer = self._descend(walk, trace)
        return trace.answer(answer) if explain else answer

    def _descend(self, walk: Walk | RowWalk, trace: _Traced | None = None) -> Any:
        try:
            while (one := walk.advance()) is not None:
                try:
                    answer = one.run(*walk.args, **walk.kwargs)  # type: ignore[misc]
                except ConfigurationError:
                    raise
                except Exception as error:  # noqa: BLE001 - what comes next is the point of it
                    walk.failed(error)
                else:
                    walk.answered(answer)
            return self._finished(walk, trace)
        finally:
            walk.ledger.drop()

    async def _answer_async(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, explain: bool = False
    ) -> Any:
        walk = self._walk(args, kwargs)
        listener = LISTENING.get()
        if listener is None and not explain:
            return await self._descend_async(walk)
        with _Traced(self, walk, listener) as trace:
            answer = await self._descend_async(walk, trace)
        return trace.answer(answer) if explain else answer

    async def _descend_async(self, walk: Walk | RowWalk, trace: _Traced | None = None) -> Any:
        try:
            while (one := walk.advance()) is not None:
                try:
                    answer = one.run(*walk.args, **walk.kwargs)  # type: ignore[misc]
                    if one.is_async:
                        answer = await answer
                except ConfigurationError:
                    raise
                except Exception as error:  # noqa: BLE001 - what comes next is the point of it
                    walk.failed(error)
                else:
                    walk.answered(answer)
            return self._finished(walk, trace)
        finally:
            walk.ledger.drop()

    def _finished(self, walk: Walk | RowWalk, trace: _Traced | None) -> Any:
        answer, counts = walk.finish(self.name)
        for at, n in counts.items():
            if n:
                self._counters[at].add(n)
        if trace is not None:
            trace.counts = counts
        return answer

    def __repr__(self) -> str:
        mode = ", per_row" if self.per_row else ""
        return f"<Fallback {self.name!r}: {' > '.join(one.name for one in self.tiers)}{mode}>"


@final
class _Traced:
    """Context manager around one call of a fallback that somebody wants explained."""

    __slots__ = ("_attempts", "_fallback", "_listener", "_tokens", "_walk", "counts")

    def __init__(
        self, owner: Fallback[..., Any], walk: Walk | RowWalk, listener: Provenance | None
    ) -> None:
        self._fallback, self._walk, self._listener = owner, walk, listener
        self._attempts = [0]
        self.counts: dict[int, int] | None = None

    def __enter__(self) -> _Traced:
        self._tokens: tuple[Token[Ambient | None], Token[Provenance | None]]
        around = AMBIENT.get() or NOTHING
        self._tokens = (
            AMBIENT.set(around._replace(attempts=self._attempts)),
            LISTENING.set(None),  # fallbacks inside a tier are that tier's business
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        AMBIENT.reset(self._tokens[0])
        LISTENING.reset(self._tokens[1])
        if self._listener is not None and (error is None or isinstance(error, Exception)):
            self._listener._add(*self._facts())  # noqa: SLF001 - one room

    def answer(self, value: Any) -> Answer[Any]:
        """Return *value* with what is known about it."""
        tier, reason, attempts, counts, rows = self._facts()
        return Answer(
            value, tier or "", reason=reason, attempts=attempts, tier_counts=counts, rows=rows
        )

    def _facts(self) -> tuple[str | None, str, int, dict[str, int], tuple[str, ...]]:
        reason = "; ".join(self._walk.ledger.reasons)
        if self.counts is None:
            return None, reason, self._attempts[0], {}, ()
        tiers = self._fallback.tiers
        counts = {tiers[at].name: n for at, n in self.counts.items() if n}
        lowest = next(reversed(counts), tiers[0].name)
        return lowest, reason, self._attempts[0], counts, self._walk.names()


def fallback(
    first: Callable[_P, _R] | Tier[_P, _R],
    /,
    *tiers: Callable[..., Any] | Tier[..., Any],
    per_row: bool = False,
    name: str | None = None,
) -> Fallback[_P, _R]:
    """Return a callable that asks tiers from the first to the last until one gives a good answer.

    Args:
        first: The best tier; a bare function stands for `tier(function)`.
        *tiers: The next best, down to what cannot fail: `stale(...)`, `constant(...)`.
        per_row: Whether the first positional argument is a batch (NumPy array, torch tensor or list, rows first) of which
            only the rows without a good answer go down a tier. Answers must have one row for each. They come back in
            place: kind, dtype and device are those of the first tier that returned. The identical object is returned if
            the first tier answers every row; no answer of a tier is changed in place.
        name: Name in errors and telemetry; default the first tier's.

    Returns:
        The callable, with the signature of *first*.

    Raises:
        ConfigurationError: If a tier is not callable, two have the same name, or a `stale` is first or has no tier above.

    Examples:
        >>> import numpy as np
        >>> from mlkit.resilience import constant, finite
        >>> def big(x: np.ndarray) -> np.ndarray:
        ...     return np.log(x)
        >>> score = fallback(tier(big, accept=finite), constant(-1.0), per_row=True)
        >>> with np.errstate(divide="ignore"):
        ...     score(np.array([1.0, 0.0]))
        array([ 0., -1.])
    """
    if not isinstance(per_row, bool):
        raise ConfigurationError("fallback(per_row=...)", per_row, "True or False")
    given: tuple[Any, ...] = (first, *tiers)
    steps = tuple(one if isinstance(one, Tier) else tier(one) for one in given)
    if steps[0].kind == "stale":
        raise ConfigurationError(
            "fallback(first)", steps[0], "a tier that gives answers to keep, before a stale one"
        )
    names = [one.name for one in steps]
    for one in names:
        if names.count(one) > 1:
            raise ConfigurationError(
                "fallback(*tiers)", one, "tiers of different names", hint="give tier(name=...)"
            )
    label = checked_name("fallback(name=...)", name) or names[0]
    return Fallback(steps, per_row=per_row, name=label)
