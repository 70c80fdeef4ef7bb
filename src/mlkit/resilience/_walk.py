"""The way down the tiers. It is told what each one answered and says who is next; it calls and awaits nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.errors import (
    AllTiersFailedError,
    BreakerOpenError,
    RejectedError,
    ResultRejectedError,
)
from mlkit.resilience._attempts import forget_frames, is_final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlkit.resilience._asked import Asked
    from mlkit.resilience._store import Store
    from mlkit.resilience._tiers import Tier

__all__ = ["OFF", "REJECTED", "Miss", "Walk", "exhausted"]

OFF, REJECTED = "off", "rejected"


class Miss(NamedTuple):
    """Why a tier did not answer; the errors of those that raised nothing are made only if all tiers fail.

    Attributes:
        tier: Which one.
        what: What it raised, `REJECTED` by its gate, `OFF` by its switch, or the seconds for which its breaker is open.
        share: Of how many rows, if not of all; ready to be printed.
    """

    tier: Tier[..., Any]
    what: Exception | str | float
    share: str = ""

    def reason(self) -> str:
        """Return why, without data."""
        if isinstance(self.what, Exception):
            return type(self.what).__name__ + self.share
        if self.what == REJECTED:
            return f"did not pass {self.tier.accept!r}{self.share}"
        return self._switched_off() if self.what == OFF else "BreakerOpenError"

    def error(self) -> Exception:
        """Return it as an error."""
        tier, what = self.tier, self.what
        if isinstance(what, Exception):
            return what
        if what == REJECTED:
            return ResultRejectedError(repr(tier.accept), tier.name)
        if what == OFF:
            return RejectedError(tier.name, self._switched_off())
        name = tier.name if tier.breaker is None else tier.breaker.name
        return BreakerOpenError(name, "the breaker is open", retry_after=float(what))

    def _switched_off(self) -> str:
        switch = self.tier.when
        return f"switched off by {switch.name if switch is not None else 'nobody'}"


def exhausted(
    name: str, misses: Sequence[Miss], rows: tuple[int, ...] = (), n: int = 0
) -> AllTiersFailedError:
    """Return the error that holds those of all tiers."""
    left = f" {len(rows)} of {n} rows" if rows else ""
    return AllTiersFailedError(
        f"fallback {name!r}: no tier answered{left}",
        [miss.error() for miss in misses],
        tiers=[miss.tier.name for miss in misses],
        rows=rows,
    )


@final
class Walk:
    """One call of a fallback on its way down.

    Args:
        tiers: Of the fallback.
        stores: Those of its stale tiers, by position.
        asked: What is still to be answered.
        at: The position of the tier that was asked last; -1 if none was.
    """

    __slots__ = ("_asked", "_stores", "_tiers", "at", "misses", "tier")

    def __init__(
        self,
        tiers: Sequence[Tier[..., Any]],
        stores: dict[int, Store],
        asked: Asked,
        *,
        at: int = -1,
    ) -> None:
        self._tiers, self._stores, self._asked = tiers, stores, asked
        self.misses: list[Miss] = []
        self.tier: Tier[..., Any] = tiers[0]
        """The tier that is asked now."""
        self.at = at

    def where(self) -> Sequence[int]:
        """Return the position of the tier of each row; nothing if some have none."""
        return () if self._asked.open else self._asked.where

    def counts(self) -> dict[int, int]:
        """Return how many rows each tier gave, by its position."""
        return self._asked.counts()

    def advance(self) -> tuple[Tier[..., Any], tuple[Any, ...], dict[str, Any]] | None:
        """Return the tier to call next, with its arguments, or None once there is an answer or nobody left to ask."""
        while self._asked.open and self.at + 1 < len(self._tiers):
            self.at += 1
            self.tier = tier = self._tiers[self.at]
            if (store := self._stores.get(self.at)) is not None:
                self._recall(store)
            elif tier.breaker is not None and (wait := tier.breaker.blocked()) is not None:
                self.misses.append(Miss(tier, wait))
            else:
                args, kwargs = self._asked.call()
                if self._switched_on(args, kwargs):
                    return tier, args, kwargs
        return None

    def failed(self, error: Exception) -> bool:
        """Take the error of the tier that was called; return whether it is to be raised, and no other tier asked."""
        self.misses.append(Miss(self.tier, error))
        if is_final(error):
            return True
        forget_frames(error)
        return False

    def rejected(self, share: str = "") -> None:
        """Note that the gate of the tier that was called did not take its answer, or not all of it."""
        self.misses.append(Miss(self.tier, REJECTED, share))

    def answered(self, answer: Any) -> None:
        """Take the answer of the tier that was called."""
        try:
            rejected = self._asked.take(self.at, self.tier, answer)
        except Exception as error:  # a gate that breaks, or rows that do not fit: no answer
            if self.failed(error):
                raise
        else:
            if rejected is not None:
                self.rejected(rejected)

    def finish(self, name: str) -> Any:
        """Return the answer, kept where it is to be; raise if there is none."""
        if self._asked.open:
            raise exhausted(name, self.misses, self._asked.left(), len(self._asked.where))
        for position, store in self._stores.items():
            self._asked.keep(position, store)
        return self._asked.result()

    def reasons(self) -> dict[str, str]:
        """Return why each tier that was asked did not give all of it, without data."""
        reasons: dict[str, str] = {}
        for miss in self.misses:
            known = reasons.get(miss.tier.name)
            reason = miss.reason()
            reasons[miss.tier.name] = reason if known is None else f"{known}, {reason}"
        return reasons

    def drop(self) -> None:
        """Let go of the errors: their frames lead back to those that hold this walk."""
        self.misses.clear()

    def _switched_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        switch = self.tier.when
        if switch is None:
            return True
        try:
            on = switch(args, kwargs)
        except Exception as error:  # a switch that breaks must not take the service down
            if self.failed(error):
                raise
            return False
        if not on:
            self.misses.append(Miss(self.tier, OFF))
        return on

    def _recall(self, store: Store) -> None:
        try:
            missing = self._asked.recall(self.at, store)
        except Exception as error:  # rows that do not fit are no answer
            if self.failed(error):
                raise
        else:
            if missing is not None:
                self.misses.append(Miss(self.tier, store.missing(), missing))
