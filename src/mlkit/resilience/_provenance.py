"""Which tier answered, and why the ones before it did not."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from mlkit.errors import ConfigurationError
from mlkit.resilience._settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Token
    from types import TracebackType

__all__ = ["LISTENING", "Answer", "Provenance", "provenance"]

_R = TypeVar("_R")


@final
class Answer(Frozen, Generic[_R]):
    """An answer and where it came from, as `Fallback.explain` returns it. Frozen.

    Attributes:
        value: The answer itself.
        tier: The tier that gave it; with `per_row`, the lowest one that gave some of it.
        reason: Why the tiers above did not give all of it; empty if the first one did. Types of errors and names of
            gates, never data.
        attempts: Attempts of all tiers together.
        tier_counts: Rows answered by each tier; without `per_row`, an answer is one row.
        rows: The tier of each row; without `per_row`, of the one answer.
    """

    __slots__ = ("attempts", "reason", "rows", "tier", "tier_counts", "value")

    value: _R
    tier: str
    reason: str
    attempts: int
    tier_counts: Mapping[str, int]
    rows: tuple[str, ...]

    def __init__(
        self,
        value: _R,
        tier: str,
        *,
        reason: str = "",
        attempts: int = 1,
        tier_counts: Mapping[str, int] | None = None,
        rows: tuple[str, ...] | None = None,
    ) -> None:
        self._set(
            value=value,
            tier=tier,
            reason=reason,
            attempts=attempts,
            tier_counts={tier: 1} if tier_counts is None else tier_counts,
            rows=(tier,) if rows is None else rows,
        )

    def __repr__(self) -> str:
        return (
            f"Answer({self.value!r}, tier={self.tier!r}, reason={self.reason!r}, "
            f"attempts={self.attempts}, tier_counts={self.tier_counts!r})"
        )


@final
class Provenance:
    """Where the answers of a `with provenance()` block came from; filled in as they come.

    Of several answers, as under `asyncio.gather`, `tier`, `reason` and `rows` speak of the last that came, `attempts` and
    `tier_counts` of all. Only what the caller sees is recorded, not fallbacks inside a tier. Thread-safe.
    """

    __slots__ = ("_answers",)

    def __init__(self) -> None:
        self._answers: list[tuple[str | None, str, int, Mapping[str, int], tuple[str, ...]]] = []

    @property
    def answers(self) -> int:
        """How many calls of fallbacks have ended, failed ones included."""
        return len(self._answers)

    @property
    def tier(self) -> str | None:
        """The tier that gave the last answer; None if there is none, or if all tiers failed."""
        return self._answers[-1][0] if self._answers else None

    @property
    def reason(self) -> str:
        """Why the tiers above it did not; empty if the first one answered."""
        return self._answers[-1][1] if self._answers else ""

    @property
    def attempts(self) -> int:
        """Attempts of all tiers, of all answers together."""
        return sum(answer[2] for answer in list(self._answers))

    @property
    def tier_counts(self) -> dict[str, int]:
        """Rows answered by each tier, of all answers together."""
        counts: dict[str, int] = {}
        for answer in list(self._answers):
            for tier, rows in answer[3].items():
                counts[tier] = counts.get(tier, 0) + rows
        return counts

    @property
    def rows(self) -> tuple[str, ...]:
        """The tier of each row of the last answer."""
        return self._answers[-1][4] if self._answers else ()

    def _add(
        self,
        tier: str | None,
        reason: str,
        attempts: int,
        tier_counts: Mapping[str, int],
        rows: tuple[str, ...],
    ) -> None:
        self._answers.append((tier, reason, attempts, tier_counts, rows))

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
            LISTENING.reset(self._token)
            self._token = None
