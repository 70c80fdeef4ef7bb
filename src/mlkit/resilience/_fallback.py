"""The fallback: the first tier that gives a good answer, for the whole of it or row by row."""

from __future__ import annotations

from itertools import count
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeVar,
    cast,
    final,
    overload,
)

from mlkit._arguments import one_of
from mlkit.errors import ConfigurationError
from mlkit.resilience._ambient import AMBIENT, NOTHING, Ambient
from mlkit.resilience._asked import AskedRows, AskedWhole, RowArguments
from mlkit.resilience._attempts import forget_frames
from mlkit.resilience._breaker import checked_name
from mlkit.resilience._plan import ALWAYS_CLOSED
from mlkit.resilience._provenance import LISTENING, Answer, Provenance, Trace
from mlkit.resilience._relay import AskedStream, async_opener, opener
from mlkit.resilience._streams import MODES, relay, relay_async
from mlkit.resilience._tiers import Tier, tier
from mlkit.resilience._walk import OFF, REJECTED, Miss, Walk, exhausted
from mlkit.telemetry import Counter, Sample, register

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextvars import Token
    from types import TracebackType
    from typing import Self

    from mlkit.resilience._asked import Asked
    from mlkit.resilience._store import Store

__all__ = ["BoundFallback", "Fallback", "fallback"]

_P = ParamSpec("_P")
_Q = ParamSpec("_Q")
_R = TypeVar("_R")
_T = TypeVar("_T")
_R_co = TypeVar("_R_co", covariant=True)
_listener = LISTENING.get
_Miss = tuple[Tier[..., Any], Any]  # what a `Miss` is made of; that is dearer


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
        "_names",
        "_run",
        "_rungs",
        "_stores",
        "_straight",
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
        for counter in self._counters:
            register(counter)
        self._names = tuple(one.name for one in tiers)
        self._chained = tuple(
            one.name for one in tiers if isinstance(one.fn, (Fallback, BoundFallback))
        )
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
        self._rungs: list[tuple[Tier[..., Any], Ticks]] = []
        first = tiers[0]
        if not (self._stores or stream or self._batches) and first.is_async == self.is_async:
            ticks = [Ticks(counter) for counter in self._counters]
            self._rungs = list(zip(tiers, ticks, strict=True))
            straight = (
                first.run,
                _state_of(first),
                None if first.accept is None else first.accept._whole,  # noqa: SLF001 - one room
                ticks[0].tick,
            )
            if self.is_async:
                self._awaited = straight
            else:
                self._straight = straight

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co:
        """Return the first good answer.

        Raises:
            AllTiersFailedError: If no tier has one; it holds one error per tier.
        """
        straight = self._straight
        if straight is None or _listener() is not None:
            return self._called(args, kwargs)  # type: ignore[no-any-return]
        run, machine, judge, tick = straight
        if machine.ring is None:  # the breaker of the first tier is not closed
            return self._climb_down(self._rungs, [], args, kwargs)  # type: ignore[no-any-return]
        try:
            answer: _R_co = run(*args, **kwargs)
            if judge is None or judge(answer, args, kwargs) is True:
                tick()
                return answer
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - what comes next is the point of a fallback
            forget_frames(error)
            misses: list[_Miss] = [(self.tiers[0], error)]
        else:
            misses = [(self.tiers[0], REJECTED)]
        return self._climb_down(self._rungs[1:], misses, args, kwargs)  # type: ignore[no-any-return]

    def _climb_down(
        self,
        rungs: list[tuple[Tier[..., Any], Ticks]],
        misses: list[_Miss],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Ask the tiers of *rungs* in turn, where nothing but the tiers has a say; see `Walk` for the others."""
        try:
            for one, ticks in rungs:
                if one.breaker is not None and (wait := one.breaker.blocked()) is not None:
                    misses.append((one, wait))
                    continue
                try:
                    if one.when is not None and not one.when(args, kwargs):
                        misses.append((one, OFF))
                        continue
                    answer = one.run(*args, **kwargs)  # type: ignore[misc]  # only a stale tier has none
                    if one.accept is None or one.accept(answer, *args, **kwargs):
                        ticks.tick()
                        return answer
                except ConfigurationError:
                    raise
                except Exception as error:  # noqa: BLE001 - as above
                    forget_frames(error)
                    misses.append((one, error))
                else:
                    misses.append((one, REJECTED))
            raise exhausted(self.name, [Miss(*miss) for miss in misses])
        finally:
            misses.clear()  # the frames of these errors lead back to this one

    def _called(self, args: tuple[Any, ...], kwargs: dict[str, Any], skip: int = 0) -> Any:
        if self.stream is not None:  # made for each call: kept, it would hold what holds it
            return (relay_async(self._opened_async) if self.is_async else relay(self._opened))(
                *args, **kwargs
            )
        if self._awaited is not None:
            return self._straight_async(self._awaited, args, kwargs)
        if self._straight is not None and self._straight[1].ring is not None:
            return self._straight_traced(self._straight, args, kwargs)
        asked = self._asked(args, kwargs, skip)
        return self._answer_async(asked) if self.is_async else self._answer(asked)

    def _straight_traced(
        self, straight: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        run, _, judge, tick = straight
        with _Traced(self, LISTENING.get()) as traced:
            traced.asks(self._names[0])
            try:
                answer = run(*args, **kwargs)
                if judge is None or judge(answer, args, kwargs) is True:
                    tick()
                    traced.answered_first()
                    return answer
            except ConfigurationError:
                traced.ended(self._begun(args, kwargs))
                raise
            except Exception as error:  # noqa: BLE001 - what comes next is the point of it
                walk = self._begun(args, kwargs)
                walk.failed(error)
            else:
                walk = self._begun(args, kwargs)
                walk.rejected()
            return self._descend(walk, traced)

    def _begun(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Walk:
        """Return the walk of a call whose first tier was asked already."""
        return Walk(self.tiers, self._stores, AskedWhole(args, kwargs), at=0)

    async def _straight_async(
        self, straight: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        run, machine, judge, tick = straight
        if machine.ring is None or LISTENING.get() is not None:
            return await self._answer_async(AskedWhole(args, kwargs))
        try:
            answer = await run(*args, **kwargs)
            if judge is None or judge(answer, args, kwargs) is True:
                tick()
                return answer
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - what comes next is the point of it
            walk = self._begun(args, kwargs)
            walk.failed(error)
        else:
            walk = self._begun(args, kwargs)
            walk.rejected()
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
            ConfigurationError: If it is a generator function.

        Examples:
            >>> from mlkit.resilience import constant
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
        with _Traced(self, listener) as traced:
            answer = self._descend(walk, traced)
        return Answer(answer, traced.trace) if explain else answer

    def _descend(self, walk: Walk, traced: _Traced | None = None) -> Any:
        try:
            while (asking := walk.advance()) is not None:
                if traced is not None:
                    traced.asks(walk.tier.name)
                one, args, kwargs = asking
                try:
                    answer = self._run[one](*args, **kwargs)
                except ConfigurationError:
                    raise
                except Exception as error:  # noqa: BLE001 - what comes next is the point of it
                    walk.failed(error)
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
        with _Traced(self, listener) as traced:
            answer = await self._descend_async(walk, traced)
        return Answer(answer, traced.trace) if explain else answer

    async def _descend_async(self, walk: Walk, traced: _Traced | None = None) -> Any:
        try:
            while (asking := walk.advance()) is not None:
                if traced is not None:
                    traced.asks(walk.tier.name)
                one, args, kwargs = asking
                try:
                    answer = self._run[one](*args, **kwargs)
                    if one.is_async or self.stream is not None:
                        answer = await answer
                except ConfigurationError:
                    raise
                except Exception as error:  # noqa: BLE001 - what comes next is the point of it
                    walk.failed(error)
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
class BoundFallback(Generic[_Q, _T]):
    """A fallback as a method of an object: it is handed on to every tier as the first argument."""

    __slots__ = ("__func__", "__self__")

    def __init__(self, function: Fallback[..., _T], instance: object) -> None:
        self.__func__, self.__self__ = function, instance

    @property
    def __name__(self) -> str:
        """The name of the fallback."""
        return self.__func__.name

    def __call__(self, *args: _Q.args, **kwargs: _Q.kwargs) -> _T:
        """Return the first good answer, see `Fallback`."""
        function, given = self.__func__, (self.__self__, *args)
        if function.per_row:
            return cast("_T", function._called(given, kwargs, 1))  # noqa: SLF001 - one room
        return function(*given, **kwargs)

    @overload
    def explain(  # type: ignore[overload-overlap]  # as in `Fallback`
        self: BoundFallback[_Q, Coroutine[Any, Any, _R]], *args: _Q.args, **kwargs: _Q.kwargs
    ) -> Coroutine[Any, Any, Answer[_R]]: ...
    @overload
    def explain(self, *args: _Q.args, **kwargs: _Q.kwargs) -> Answer[_T]: ...
    def explain(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first good answer together with where it came from, see `Fallback.explain`."""
        return self.__func__._explained((self.__self__, *args), kwargs, 1)  # noqa: SLF001 - one room

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BoundFallback)
            and other.__func__ is self.__func__
            and other.__self__ is self.__self__
        )

    def __hash__(self) -> int:
        return hash((id(self.__func__), id(self.__self__)))

    def __reduce__(self) -> tuple[Any, ...]:
        return BoundFallback, (self.__func__, self.__self__)

    def __repr__(self) -> str:
        return f"<bound {self.__func__!r} of {type(self.__self__).__qualname__}>"


@final
class _Traced:
    """Context manager around one call of a fallback that somebody wants explained."""

    __slots__ = ("_attempts", "_fallback", "_inner", "_listener", "_tokens", "trace")

    trace: Trace

    def __init__(self, owner: Fallback[..., Any], listener: Provenance | None) -> None:
        self._fallback, self._listener = owner, listener
        self._attempts = [0]
        self._inner = Provenance()  # hears of the fallbacks inside the tiers

    def __enter__(self) -> _Traced:
        self._tokens: tuple[Token[Ambient | None], Token[Provenance | None]]
        around = AMBIENT.get() or NOTHING
        self._tokens = (
            AMBIENT.set(around._replace(attempts=self._attempts)),
            LISTENING.set(self._inner),
        )
        return self

    def asks(self, tier: str) -> None:
        """Take note of the tier that is asked now."""
        self._inner._within = tier  # noqa: SLF001 - one room

    def answered_first(self) -> None:
        """Take note that the first tier gave all of it."""
        self._note([0], {})

    def ended(self, walk: Walk) -> None:
        """Take note of how it went."""
        self._note(walk.where(), walk.reasons())

    def _note(self, where: Sequence[int], reasons: dict[str, str]) -> None:
        self.trace = Trace(
            self._fallback.name,
            self._fallback._names,  # noqa: SLF001 - its own
            where,
            reasons=reasons,
            attempts=self._attempts[0],
            inner=self._inner._by_tier(),  # noqa: SLF001 - one room
            chained=self._fallback._chained,  # noqa: SLF001 - its own
        )

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
            self._listener._add(self.trace)  # noqa: SLF001 - one room


@final
class _NotStraight:
    """The state of a tier that cannot be asked without more ado."""

    ring = None


def _state_of(first: Tier[..., Any]) -> Any:
    """Return what says, by its `ring`, that the first tier can be asked straight away."""
    if first.when is not None:
        return _NotStraight
    return ALWAYS_CLOSED if first.breaker is None else first.breaker._machine  # noqa: SLF001 - one room


@final
class Ticks:
    """How often a tier answered, counted by one call of C, which is atomic and a third of the price of `Counter.add`."""

    __slots__ = ("__weakref__", "_count", "_counter", "tick")

    def __init__(self, counter: Counter) -> None:
        self._count, self._counter = count(), counter
        self.tick = self._count.__next__
        register(self)

    def samples(self) -> tuple[Sample]:
        """Return the count as one sample, of the same series as the counter."""
        return (Sample(self._counter.name, self._counter.labels, self._value()),)

    def _value(self) -> int:
        return int(repr(self._count)[6:-1])  # "count(3)": there is no other way to read one

    def __del__(self) -> None:
        # The totals of a `Counter` outlive it.
        self._counter.add(self._value())


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


def fallback(
    first: Callable[_P, _R] | Tier[_P, _R],
    /,
    *tiers: Callable[..., Any] | Tier[..., Any],
    per_row: bool | Sequence[str] = False,
    stream: str | None = None,
    name: str | None = None,
) -> Fallback[_P, _R]:
    """Return a callable that asks tiers from the first to the last until one gives a good answer.

    Args:
        first: The best tier; a bare function stands for `tier(function)`.
        *tiers: The next best, down to what cannot fail: `stale(...)`, `constant(...)`.
        per_row: Whether the first argument is a batch of which only the rows without a good answer go down a tier; or the
            names of the arguments that are, if there are several. A batch is a NumPy array, torch tensor, list or tuple
            of rows, or pandas table, rows first, or a dict, dataclass, named tuple or tuple of batches. Answers must be
            batches with one row for each. They come back in place: kind, dtype and device are those of the first tier that
            returned, unless none of its rows is used and the others do not fit. What is no batch inside an answer (None,
            a text, a number) must be equal in all tiers of which a row is used. The identical object is returned if one
            tier answers every row; no answer or argument is changed in place.
        stream: For generator functions, whether the tier is decided before the first item (`"open"`, the default) or
            after the last one (`"buffer"`). A gate judges the first item, or the list of all items.
        name: Name in errors and telemetry; default the first tier's.

    Returns:
        The callable, with the signature of *first*.

    Raises:
        ConfigurationError: If a tier is not callable, two have the same name, a `stale` is first, or an argument is not
            what it must be.

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
    rows = _checked_rows(per_row)
    return Fallback(steps, per_row=rows, name=label, stream=_checked_stream(steps, stream, rows))


def _checked_rows(per_row: bool | Sequence[str]) -> bool | tuple[str, ...]:  # noqa: FBT001 - the argument itself
    if isinstance(per_row, bool):
        return per_row
    names = tuple(per_row) if isinstance(per_row, (list, tuple)) else ()
    if not names or not all(isinstance(one, str) for one in names):
        raise ConfigurationError(
            "fallback(per_row=...)", per_row, "True, False, or the names of arguments"
        )
    return names


def _checked_stream(
    steps: tuple[Tier[..., Any], ...],
    stream: str | None,
    per_row: bool | tuple[str, ...],  # noqa: FBT001 - as above
) -> str | None:
    mode = None if stream is None else one_of("fallback(stream=...)", stream, MODES)
    if not any(one.kind == "stream" for one in steps):
        if mode is not None:
            raise ConfigurationError(
                "fallback(stream=...)", mode, "at least one tier that is a generator function"
            )
        return None
    if per_row:
        raise ConfigurationError(
            "fallback(per_row=...)", per_row, "False for generators: a stream has no rows"
        )
    if any(one.kind == "stale" for one in steps):
        raise ConfigurationError(
            "fallback(*tiers)", "stale", "no stale tier among generators: a stream is not kept"
        )
    return mode or "open"
