"""The fallback: the first tier that gives a good answer, for the whole of it, row by row, or as a stream."""

from __future__ import annotations

import sys
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Never,
    ParamSpec,
    TypeVar,
    final,
    overload,
)

from mlkit._arguments import one_of
from mlkit.errors import ConfigurationError
from mlkit.resilience._asked import AskedRows, AskedWhole, RowArguments
from mlkit.resilience._attempts import forget_frames, is_final
from mlkit.resilience._method import BoundFallback
from mlkit.resilience._plan import ALWAYS_CLOSED
from mlkit.resilience._provenance import LISTENING, Answer
from mlkit.resilience._relay import AskedStream, async_opener, opener
from mlkit.resilience._streams import relay, relay_async
from mlkit.resilience._ticks import Ticks
from mlkit.resilience._traced import Traced
from mlkit.resilience._walk import OFF, REJECTED, Miss, Walk, exhausted
from mlkit.telemetry import Counter, register

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Self

    from mlkit.resilience._asked import Asked
    from mlkit.resilience._provenance import Provenance
    from mlkit.resilience._store import Store
    from mlkit.resilience._tiers import Tier

__all__ = ["Fallback"]

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_T = TypeVar("_T")
_R_co = TypeVar("_R_co", covariant=True)
_listener = LISTENING.get
_Rung = tuple[Any, Any, Any, Any, Any]  # of a tier: its breaker, switch, function, gate, tick
_Miss = Exception | str | float  # what a `Miss` says of its tier, and cheaper


@final
class Fallback(Generic[_P, _R_co]):
    """Tiers, asked from the first to the last until one gives a good answer. Made by `fallback`.

    Call it like its first tier; in the body of a class it is a method, as a function would be. If any tier is an
    `async def` it is awaited (`is_async`); tiers that are a plain `def` then run in the event loop's thread, where a retry
    that waits blocks the others. Any `Exception` of a tier leads to the next one, except `ConfigurationError`: a wrong
    call is no outage. Cancellation and other `BaseException` go straight out.

    If any tier is a generator function, it is one, and an async one if any tier is async. In mode `"open"` the tier is
    decided before the first item is handed out, and a failure after that is raised, for what was handed out cannot be
    taken back. In mode `"buffer"` all items are read before the first is handed out, and a failure leads to the next
    tier. A plain `def` among the tiers gives a list or iterator of items, a `constant` one item.

    Counts `resilience_answers_total{fallback, tier}`, in rows with `per_row`. Thread-safe; no lock is held while a tier
    runs. Its breakers and kept answers are per process, and a pickled copy has none of them.

    Attributes:
        tiers: From the first to the last.
        per_row: Whether rows go down one by one, or the arguments whose rows do.
        name: Its name in errors and telemetry.
        is_async: Whether it is awaited, or read by `async for`.
        stream: `"open"` or `"buffer"` if it is a generator function, else None.
    """

    __slots__ = (
        "__weakref__",
        "__wrapped__",
        "_awaited",
        "_batches",
        "_chained",
        "_counters",
        "_is_coroutine",
        "_is_coroutine_marker",
        "_lower",
        "_names",
        "_run",
        "_rungs",
        "_stores",
        "_straight",
        "_ticks",
        "is_async",
        "name",
        "per_row",
        "stream",
        "tiers",
    )

    tiers: tuple[Tier[..., Any], ...]
    per_row: bool | tuple[str, ...]
    name: str
    is_async: bool
    stream: str | None
    __wrapped__: Callable[..., Any]
    _is_coroutine: object
    _is_coroutine_marker: object

    def __init__(
        self,
        tiers: tuple[Tier[..., Any], ...],
        *,
        per_row: bool | tuple[str, ...],
        name: str,
        stream: str | None,
    ) -> None:
        self.tiers, self.per_row, self.name, self.stream = tiers, per_row, name, stream
        self.is_async = any(one.is_async for one in tiers)
        self._stores: dict[int, Store] = {
            at: one.make() for at, one in enumerate(tiers) if one.make is not None
        }
        self._counters = [
            Counter("resilience_answers_total", fallback=name, tier=one.name) for one in tiers
        ]
        self._names = tuple(one.name for one in tiers)
        self._chained = tuple(
            one.name for one in tiers if isinstance(one.fn, (Fallback, BoundFallback))
        )
        if self.is_async and stream is None:
            _mark_awaited(self)
        if tiers[0].fn is not None:
            self.__wrapped__ = tiers[0].fn  # for `inspect.signature`
        self._batches = None if per_row is False else _batches(per_row, tiers[0])
        self._run: dict[Tier[..., Any], Callable[..., Any]] = {
            one: one.run for one in tiers if one.run is not None
        }
        if stream is not None:
            opens = async_opener if self.is_async else opener
            self._run = {one: opens(one, stream) for one in tiers}
        # What a call needs where nothing but the tiers has a say: no rows, no stream, nothing kept.
        self._straight: tuple[Any, ...] | None = None
        self._awaited: tuple[Any, ...] | None = None
        self._rungs: list[_Rung] = []
        self._lower: list[_Rung] = []
        first = tiers[0]
        if not (self._stores or stream or self._batches) and first.is_async == self.is_async:
            self._ticks = [Ticks(counter) for counter in self._counters]
            self._rungs = [_rung(*pair) for pair in zip(tiers, self._ticks, strict=True)]
            self._lower = self._rungs[1:]
            _, _, packed, judge, tick = self._rungs[0]
            if self.is_async:
                self._awaited = _state_of(first), first.run, judge, tick
            else:
                self._straight = _state_of(first), packed, judge, tick
        # After the ticks, which are put into them when they are read.
        for counter in self._counters:
            register(counter)

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co:
        """Return the first good answer.

        Raises:
            AllTiersFailedError: If no tier has one; it holds one error per tier.
        """
        straight = self._straight
        if straight is None and self._awaited is not None:
            return self._straight_async(args, kwargs)  # type: ignore[return-value]
        if straight is None or _listener() is not None:
            return self._called(args, kwargs)  # type: ignore[no-any-return]
        machine, run, judge, tick = straight
        if machine.ring is None:
            return self._climb_down(self._rungs, [], args, kwargs)  # type: ignore[no-any-return]
        try:
            answer: _R_co = run(args, kwargs)
            if judge is None or judge(answer, args, kwargs) is True:
                tick()
                return answer
        except Exception as error:  # what comes next is the point of a fallback
            if is_final(error):
                raise
            forget_frames(error)
            misses: list[_Miss] = [error]
        else:
            misses = [REJECTED]
        return self._climb_down(self._lower, misses, args, kwargs)  # type: ignore[no-any-return]

    def _climb_down(
        self,
        rungs: list[_Rung],
        misses: list[_Miss],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Ask the tiers of *rungs* in turn, where nothing but the tiers has a say; see `Walk` for the others.

        Args:
            rungs: What is left of them.
            misses: Why those above did not answer, from the first on.
            args: What the fallback was called with.
            kwargs: The same, by keyword.
        """
        try:
            for breaker, when, run, judge, tick in rungs:
                if breaker is not None and (wait := breaker.blocked()) is not None:
                    misses.append(wait)
                    continue
                try:
                    if when is not None and not when(args, kwargs):
                        misses.append(OFF)
                        continue
                    answer = run(args, kwargs)
                    if judge is None or judge(answer, args, kwargs) is True:
                        tick()
                        return answer
                except Exception as error:  # as above
                    if is_final(error):
                        raise
                    forget_frames(error)
                    misses.append(error)
                else:
                    misses.append(REJECTED)
            raise exhausted(self.name, list(map(Miss, self.tiers, misses)))
        finally:
            misses.clear()  # the frames of these errors lead back to this one

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any], skip: int = 0) -> Any:
        if self.stream is not None:  # made for each call: kept, it would hold what holds it
            return (relay_async(self._opened_async) if self.is_async else relay(self._opened))(
                *args, **kwargs
            )
        if self._straight is not None and self._straight[0].ring is not None:
            return self._straight_traced(args, kwargs)
        asked = self._asked(args, kwargs, skip)
        return self._answer_async(asked) if self.is_async else self._answer(asked)

    def _straight_traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        _, _, run, judge, tick = self._rungs[0]
        with self._traced(LISTENING.get()) as traced:
            traced.asks(self._names[0])
            try:
                answer = run(args, kwargs)
                if judge is None or judge(answer, args, kwargs) is True:
                    tick()
                    traced.answered_first()
                    return answer
            except Exception as error:  # as above
                walk = self._begun(args, kwargs)
                if walk.failed(error):
                    traced.ended(walk)
                    walk.drop()
                    raise
            else:
                walk = self._begun(args, kwargs)
                walk.rejected()
            return self._descend(walk, traced)

    def _traced(self, listener: Provenance | None) -> Traced:
        return Traced(self.name, self._names, self._chained, listener)

    def _begun(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Walk:
        """Return the walk of a call whose first tier was asked already."""
        return Walk(self.tiers, self._stores, AskedWhole(args, kwargs), at=0)

    async def _straight_async(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._awaited is not None  # noqa: S101 - for the type checker
        machine, run, judge, tick = self._awaited
        if machine.ring is None or _listener() is not None:
            return await self._answer_async(AskedWhole(args, kwargs))
        try:
            answer = await (run(*args, **kwargs) if kwargs else run(*args))  # as in `_bind_sync`
            if judge is None or judge(answer, args, kwargs) is True:
                tick()
                return answer
        except Exception as error:  # as above
            walk = self._begun(args, kwargs)
            if walk.failed(error):
                walk.drop()
                raise
        else:
            walk = self._begun(args, kwargs)
            walk.rejected()
        return await self._descend_async(walk)

    @overload  # Any fits Never: of a function without types nobody knows whether to await it
    def explain(self: Fallback[_P, Never], *args: _P.args, **kwargs: _P.kwargs) -> Any: ...
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
            ConfigurationError: If it is a generator function.

        Examples:
            >>> from mlkit.resilience import constant, fallback, tier
            >>> def broken(x: float) -> float:
            ...     raise ConnectionError
            >>> answer = fallback(tier(broken, name="big"), constant(0.5)).explain(1.0)
            >>> answer.value, answer.tier, answer.reason
            (0.5, 'constant', 'big: ConnectionError')
        """
        return self._explained(args, kwargs)

    def _explained(self, args: tuple[Any, ...], kwargs: dict[str, Any], skip: int = 0) -> Any:
        if self.stream is not None:
            raise ConfigurationError(
                "Fallback.explain",
                self,
                "a fallback that returns its answer",
                hint="read a stream inside of `with provenance()`",
            )
        asked = self._asked(args, kwargs, skip)
        answer = self._answer_async if self.is_async else self._answer
        return answer(asked, explain=True)

    def _asked(self, args: tuple[Any, ...], kwargs: dict[str, Any], skip: int) -> Asked:
        if self._batches is None:
            return AskedWhole(args, kwargs)
        return AskedRows(args, kwargs, self._batches.find(args, kwargs, skip))

    def _answer(self, asked: Asked, *, explain: bool = False) -> Any:
        walk = Walk(self.tiers, self._stores, asked)
        listener = LISTENING.get()
        if listener is None and not explain:
            return self._descend(walk)
        with self._traced(listener) as traced:
            answer = self._descend(walk, traced)
        return Answer(answer, traced.trace) if explain else answer

    def _descend(self, walk: Walk, traced: Traced | None = None) -> Any:
        try:
            while (asking := walk.advance()) is not None:
                if traced is not None:
                    traced.asks(walk.tier.name)
                one, args, kwargs = asking
                try:
                    answer = self._run[one](*args, **kwargs)
                except Exception as error:  # as above
                    if walk.failed(error):
                        raise
                else:
                    walk.answered(answer)
                    del answer
            return self._finished(walk)
        finally:
            if traced is not None:
                traced.ended(walk)
            walk.drop()

    async def _answer_async(self, asked: Asked, *, explain: bool = False) -> Any:
        walk = Walk(self.tiers, self._stores, asked)
        listener = LISTENING.get()
        if listener is None and not explain:
            return await self._descend_async(walk)
        with self._traced(listener) as traced:
            answer = await self._descend_async(walk, traced)
        return Answer(answer, traced.trace) if explain else answer

    async def _descend_async(self, walk: Walk, traced: Traced | None = None) -> Any:
        try:
            while (asking := walk.advance()) is not None:
                if traced is not None:
                    traced.asks(walk.tier.name)
                one, args, kwargs = asking
                try:
                    answer = self._run[one](*args, **kwargs)
                    if one.is_async or self.stream is not None:
                        answer = await answer
                except Exception as error:  # as above
                    if walk.failed(error):
                        raise
                else:
                    walk.answered(answer)
                    del answer
            return self._finished(walk)
        finally:
            if traced is not None:
                traced.ended(walk)
            walk.drop()

    def _opened(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(AskedStream(args, kwargs))

    async def _opened_async(self, *args: Any, **kwargs: Any) -> Any:
        return await self._answer_async(AskedStream(args, kwargs))

    def _finished(self, walk: Walk) -> Any:
        answer = walk.finish(self.name)
        for at, n in walk.counts().items():
            self._counters[at].add(n)
        return answer

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(
        self: Fallback[Concatenate[Any, _Q], _T], instance: object, owner: type | None = None
    ) -> BoundFallback[_Q, _T]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Return it as a method of *instance*, as functions do."""
        return self if instance is None else BoundFallback(self, instance)

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_again, (self.tiers, self.per_row, self.name, self.stream)

    def __repr__(self) -> str:
        rows = f", per_row={self.per_row!r}" if isinstance(self.per_row, tuple) else ", per_row"
        stream = "" if self.stream is None else f", stream({self.stream!r})"
        steps = " > ".join(one.name for one in self.tiers)
        return f"<Fallback {self.name!r}: {steps}{rows if self.per_row else ''}{stream}>"


@final
class _NotStraight:
    """The state of a tier that cannot be asked without more ado."""

    ring = None


def _mark_awaited(chain: Fallback[..., Any]) -> None:
    """Let `inspect` and `asyncio` see that it is awaited: frameworks run what is not in a thread, and await nothing."""
    import asyncio.coroutines  # is there already where something async is guarded
    import inspect

    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(chain)
    chain._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)  # noqa: SLF001 - what asyncio looks for


def _rung(one: Tier[..., Any], ticks: Ticks) -> _Rung:
    judge = None if one.accept is None else one.accept._whole  # noqa: SLF001 - one room
    return one.breaker, one.when, one._packed, judge, ticks.tick  # noqa: SLF001 - as above


def _state_of(first: Tier[..., Any]) -> Any:
    """Return what says, by its `ring`, that the first tier can be asked straight away."""
    if first.when is not None:
        return _NotStraight
    return ALWAYS_CLOSED if first.breaker is None else first.breaker._machine  # noqa: SLF001 - one room


def _batches(per_row: object, first: Tier[..., Any]) -> RowArguments:
    """Return which arguments hold rows; their places are those in the signature of the first tier."""
    from inspect import signature

    names = per_row if isinstance(per_row, tuple) else None
    try:
        parameters = signature(first.fn).parameters.values() if first.fn is not None else ()
    except (TypeError, ValueError):  # a builtin that does not say
        parameters = ()
    known = [one.name for one in parameters if one.kind <= one.POSITIONAL_OR_KEYWORD]
    takes = {one.name for one in parameters}
    open_ended = not takes or any(one.kind == one.VAR_KEYWORD for one in parameters)
    for name in () if open_ended or names is None else names:
        one_of("fallback(per_row=...)", name, sorted(takes))
    return RowArguments(names, known)


def _made_again(
    tiers: tuple[Tier[..., Any], ...],
    per_row: bool | tuple[str, ...],  # noqa: FBT001 - what pickle calls
    name: str,
    stream: str | None,
) -> Fallback[..., Any]:
    return Fallback(tiers, per_row=per_row, name=name, stream=stream)
