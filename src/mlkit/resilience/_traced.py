"""One call of a fallback that somebody listens to."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from mlkit.resilience._ambient import AMBIENT, NOTHING, Ambient
from mlkit.resilience._provenance import LISTENING, Provenance, Trace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextvars import Token
    from types import TracebackType

    from mlkit.resilience._walk import Walk

__all__ = ["Traced"]


@final
class Traced:
    """Context manager around one call of a fallback that somebody wants explained."""

    __slots__ = (
        "_attempts",
        "_chained",
        "_inner",
        "_listener",
        "_name",
        "_tiers",
        "_tokens",
        "trace",
    )

    trace: Trace

    def __init__(
        self,
        name: str,
        tiers: tuple[str, ...],
        chained: tuple[str, ...],
        listener: Provenance | None,
    ) -> None:
        self._name, self._tiers, self._chained = name, tiers, chained
        self._listener = listener
        self._attempts = [0]
        self._inner = Provenance()  # hears of the fallbacks inside the tiers

    def __enter__(self) -> Traced:
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
            self._name,
            self._tiers,
            where,
            reasons=reasons,
            attempts=self._attempts[0],
            inner=self._inner._by_tier(),  # noqa: SLF001 - one room
            chained=self._chained,
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
