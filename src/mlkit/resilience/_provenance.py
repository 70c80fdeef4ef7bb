"""Which tier answered, and why the ones before it did not."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from mlkit.errors import ConfigurationError
from mlkit.resilience._settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextvars import Token
    from types import TracebackType

__all__ = ["LISTENING", "Answer", "Facts", "Provenance", "Trace", "provenance"]

Facts = tuple[str, tuple[str, ...], Any, Any, int, Any, tuple[str, ...]]
"""The arguments of a `Trace`, in order: made for each call that somebody listens to, where a trace would cost 1 us."""

_R = TypeVar("_R")


@final
class Trace(Frozen):
    """How one call of a fallback went. Frozen; names and types of errors, never data.

    Attributes:
        fallback: Its name.
        tiers: The tiers that it has, from the first to the last.
        reasons: Of each tier that was asked and did not give all that it was asked for, why; or that was not asked.
        attempts: Attempts of all its tiers together.
        inner: The traces of fallbacks that ran inside a tier, by tier, in the order in which they ended.
    """

    __slots__ = ("_chained", "_where", "attempts", "fallback", "inner", "reasons", "tiers")

    fallback: str
    tiers: tuple[str, ...]
    reasons: Mapping[str, str]
    attempts: int
    inner: Mapping[str, tuple[Trace, ...]]
    _where: Sequence[int]
    _chained: tuple[str, ...]

    def __init__(  # noqa: PLR0917 - made from `Facts`
        self,
        fallback: str,
        tiers: tuple[str, ...],
        where: Sequence[int],
        reasons: Mapping[str, str],
        attempts: int,
        inner: Mapping[str, tuple[Trace, ...]],
        chained: tuple[str, ...] = (),
    ) -> None:
        self._set(
            fallback=fallback,
            tiers=tiers,
            _where=where,
            reasons=reasons,
            attempts=attempts,
            inner=inner,
            _chained=chained,
        )

    @property
    def tier(self) -> str | None:
        """The tier that answered; of rows, the lowest one that gave some of it; None if all tiers failed."""
        return self.tiers[max(self._where)] if len(self._where) else None

    @property
    def reason(self) -> str:
        """Why the tiers above did not give all of it; empty if the first one did."""
        return "; ".join(f"{tier}: {why}" for tier, why in self.reasons.items())

    @property
    def tier_counts(self) -> dict[str, int]:
        """Rows answered by each tier; an answer to a whole call is one row."""
        from collections import Counter

        counts = Counter(self._positions())
        return {self.tiers[at]: counts[at] for at in sorted(counts)}

    @property
    def rows(self) -> tuple[str, ...]:
        """The tier of each row; of a whole answer, of the one answer; empty if all tiers failed."""
        return tuple(self.tiers[at] for at in self._positions())

    def why(self, row: int = 0) -> str:
        """Return why the tiers above the one that answered *row* did not.

        Args:
            row: Its number, from 0.
        """
        above = self.tiers[: self._where[row]]
        return "; ".join(f"{tier}: {why}" for tier, why in self.reasons.items() if tier in above)

    def path(self, row: int = 0) -> tuple[str, ...]:
        """Return the tier that answered *row*; if that tier is itself a fallback, then the tier inside it, and so on.

        Args:
            row: Its number, from 0.
        """
        at = int(self._where[row])
        tier = self.tiers[at]
        inner = self.inner.get(tier, ())
        if tier not in self._chained or not inner or inner[-1].tier is None:
            return (tier,)
        # The inner fallback was asked for the rows that the tiers above had left, in their order.
        asked = sum(1 for where in self._positions()[:row] if where >= at)
        last = inner[-1]
        return (tier, *last.path(asked if len(last.rows) > asked else 0))

    def _positions(self) -> list[int]:
        where = self._where
        return where if isinstance(where, list) else [int(at) for at in where]

    def _fields(self) -> dict[str, Any]:
        return {
            "fallback": self.fallback,
            "tiers": self.tiers,
            "where": self._positions(),
            "reasons": self.reasons,
            "attempts": self.attempts,
            "inner": self.inner,
            "chained": self._chained,
        }

    def __hash__(self) -> int:
        return hash((self.fallback, self.tiers, self.attempts))

    def __repr__(self) -> str:
        inner = f", inner={dict(self.inner)!r}" if self.inner else ""
        return (
            f"Trace({self.fallback!r}, tier={self.tier!r}, reason={self.reason!r}, "
            f"attempts={self.attempts}, tier_counts={self.tier_counts!r}{inner})"
        )


@final
class Answer(Frozen, Generic[_R]):
    """An answer and where it came from, as `Fallback.explain` returns it. Frozen.

    Attributes:
        value: The answer itself.
        trace: Where it came from; its facts can be read from here too.
    """

    __slots__ = ("trace", "value")

    value: _R
    trace: Trace

    def __init__(self, value: _R, trace: Trace) -> None:
        self._set(value=value, trace=trace)

    @property
    def tier(self) -> str | None:
        """The tier that gave it; with `per_row`, the lowest one that gave some of it; None if it has no rows."""
        return self.trace.tier

    @property
    def reason(self) -> str:
        """Why the tiers above did not give all of it; empty if the first one did."""
        return self.trace.reason

    @property
    def attempts(self) -> int:
        """Attempts of all tiers together."""
        return self.trace.attempts

    @property
    def tier_counts(self) -> dict[str, int]:
        """Rows answered by each tier; without `per_row`, an answer is one row."""
        return self.trace.tier_counts

    @property
    def rows(self) -> tuple[str, ...]:
        """The tier of each row; without `per_row`, of the one answer."""
        return self.trace.rows

    @property
    def inner(self) -> Mapping[str, tuple[Trace, ...]]:
        """The traces of fallbacks that ran inside a tier, by tier."""
        return self.trace.inner

    def why(self, row: int = 0) -> str:
        """Return why the tiers above the one that answered *row* did not.

        Args:
            row: Its number, from 0.
        """
        return self.trace.why(row)

    def path(self, row: int = 0) -> tuple[str, ...]:
        """Return the tier that answered *row*, and the tiers inside it if it is itself a fallback.

        Args:
            row: Its number, from 0.
        """
        return self.trace.path(row)

    def __repr__(self) -> str:
        return (
            f"Answer({self.value!r}, tier={self.tier!r}, reason={self.reason!r}, "
            f"attempts={self.attempts}, tier_counts={self.tier_counts!r})"
        )


@final
class Provenance:
    """Where the answers of a `with provenance()` block came from; filled in as they come.

    Of several answers, as under `asyncio.gather`, `tier`, `reason`, `rows`, `why` and `path` speak of the last that came,
    `attempts` and `tier_counts` of all. Fallbacks that run inside a tier are in the `inner` of its trace, and not counted
    again here. Thread-safe.
    """

    __slots__ = ("_traces", "_within")

    def __init__(self) -> None:
        self._traces: list[tuple[str, Trace | Facts]] = []
        self._within = ""  # the tier that is asked now, where this listens inside a fallback

    @property
    def traces(self) -> tuple[Trace, ...]:
        """One trace for each call of a fallback, failed ones included, in the order in which they ended."""
        return tuple(self._at(place) for place in range(len(self._traces)))

    @property
    def answers(self) -> int:
        """How many calls of fallbacks have ended, failed ones included."""
        return len(self._traces)

    @property
    def tier(self) -> str | None:
        """The tier that gave the last answer; None if there is none, or if all tiers failed."""
        return self._at(-1).tier if self._traces else None

    @property
    def reason(self) -> str:
        """Why the tiers above it did not; empty if the first one answered."""
        return self._at(-1).reason if self._traces else ""

    @property
    def attempts(self) -> int:
        """Attempts of all tiers, of all answers together."""
        return sum(trace.attempts for trace in self.traces)

    @property
    def tier_counts(self) -> dict[str, int]:
        """Rows answered by each tier, of all answers together."""
        counts: dict[str, int] = {}
        for trace in self.traces:
            for tier, rows in trace.tier_counts.items():
                counts[tier] = counts.get(tier, 0) + rows
        return counts

    @property
    def rows(self) -> tuple[str, ...]:
        """The tier of each row of the last answer."""
        return self._at(-1).rows if self._traces else ()

    def why(self, row: int = 0) -> str:
        """Return why the tiers above the one that gave *row* of the last answer did not.

        Args:
            row: Its number, from 0.

        Raises:
            IndexError: If there is no such row.
        """
        return self._at(-1).why(row)

    def path(self, row: int = 0) -> tuple[str, ...]:
        """Return the tier that gave *row* of the last answer, and the tiers inside it if it is itself a fallback.

        Args:
            row: Its number, from 0.

        Raises:
            IndexError: If there is no such row.
        """
        return self._at(-1).path(row)

    def _add(self, facts: Facts) -> None:
        self._traces.append((self._within, facts))

    def _at(self, place: int) -> Trace:
        within, one = self._traces[place]
        if not isinstance(one, Trace):
            one = Trace(*one)
            if place >= 0:  # others may be added meanwhile: -1 is not the same for long
                self._traces[place] = within, one
        return one

    def _by_tier(self) -> dict[str, tuple[Trace, ...]]:
        found: dict[str, tuple[Trace, ...]] = {}
        for place, (tier, _) in enumerate(self._traces):
            found[tier] = (*found.get(tier, ()), self._at(place))
        return found

    def __repr__(self) -> str:
        return (
            f"<Provenance tier={self.tier!r} attempts={self.attempts} reason={self.reason!r} "
            f"tier_counts={self.tier_counts!r}>"
        )


LISTENING: ContextVar[Provenance | None] = ContextVar("mlkit.provenance", default=None)


@final
class provenance:  # noqa: N801 - reads as the statement it is: `with provenance() as p:`
    """Context manager: record where the answers of fallbacks inside come from.

    It sees the calls of this context and of the tasks started in it; a thread of your own sees it if it runs in a
    `contextvars.copy_context()`. An inner block takes its answers from the outer one.

    Examples:
        >>> from mlkit.resilience import constant, fallback, tier
        >>> def broken(x: float) -> float:
        ...     raise ConnectionError
        >>> score = fallback(tier(broken, name="big"), constant(0.5))
        >>> with provenance() as p:
        ...     y = score(1.0)
        >>> y, p.tier, p.reason
        (0.5, 'constant', 'big: ConnectionError')
    """

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token: Token[Any] | None = None

    def __enter__(self) -> Provenance:
        if self._token is not None:
            raise ConfigurationError(
                "with provenance()", self, "one that is not in use", hint="make one for each `with`"
            )
        record = Provenance()
        self._token = LISTENING.set(record)
        return record

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        if self._token is not None:
            with suppress(ValueError):  # left in another context, as in `deadline`
                LISTENING.reset(self._token)
            self._token = None
