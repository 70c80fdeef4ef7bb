"""One call of a fallback that somebody listens to."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from mlkit.resilience._ambient import AMBIENT, Ambient
from mlkit.resilience._provenance import LISTENING, Facts, Provenance, Trace

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
        "_facts",
        "_inner",
        "_inside",
        "_listener",
        "_name",
        "_tiers",
        "_tokens",
    )

    _facts: Facts

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
        self._inside = inside = Ambient()
        inside.attempts, inside.around = self._attempts, AMBIENT.get()
        self._tokens = AMBIENT.set(self._inside), LISTENING.set(self._inner)
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
        inner = self._inner._by_tier()  # noqa: SLF001 - one room
        attempts = self._attempts[0]
        self._facts = self._name, self._tiers, where, reasons, attempts, inner, self._chained

    @property
    def trace(self) -> Trace:
        """How it went."""
        return Trace(*self._facts)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._inside.over = True
        AMBIENT.reset(self._tokens[0])
        LISTENING.reset(self._tokens[1])
        if self._listener is not None and (error is None or isinstance(error, Exception)):
            self._listener._add(self._facts)  # noqa: SLF001 - one room
