"""The way down the tiers. It is told what each one answered and says who is next; it calls and awaits nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit.errors import (
    AllTiersFailedError,
    BreakerOpenError,
    ConfigurationError,
    ResultRejectedError,
)
from mlkit.resilience import _rows as rows
from mlkit.resilience._attempts import forget_frames

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.resilience._tiers import Store, Tier

__all__ = ["RowWalk", "Walk"]


@final
class Ledger:
    """Why tiers did not answer: as words without data, and as errors that are only made if all fail."""

    __slots__ = ("_errors", "reasons")

    def __init__(self) -> None:
        self._errors: list[tuple[str, Callable[[], Exception]]] = []
        self.reasons: list[str] = []

    def failed(self, tier: Tier[..., Any], error: Exception) -> None:
        """A tier raised, or gave what cannot be used."""
        forget_frames(error)
        self._errors.append((tier.name, lambda: error))
        self.reasons.append(f"{tier.name}: {type(error).__name__}")

    def skipped(self, tier: Tier[..., Any], retry_after: float) -> None:
        """A tier's breaker is open; nobody pays for an exception."""
        name = tier.breaker.name if tier.breaker is not None else tier.name
        self._errors.append(
            (
                tier.name,
                lambda: BreakerOpenError(name, "the breaker is open", retry_after=retry_after),
            )
        )
        self.reasons.append(f"{tier.name}: BreakerOpenError")

    def rejected(self, tier: Tier[..., Any], share: str = "") -> None:
        """A tier's gate did not accept its answer."""
        gate = repr(tier.accept)
        self._errors.append((tier.name, lambda: ResultRejectedError(gate, tier.name)))
        self.reasons.append(f"{tier.name}: did not pass {gate}{share}")

    def exhausted(self, name: str, rows: str = "") -> AllTiersFailedError:
        """Return the error that holds all of them."""
        return AllTiersFailedError(
            f"fallback {name!r}: no tier answered{rows}",
            [make() for _, make in self._errors],
            tiers=[tier for tier, _ in self._errors],
        )

    def drop(self) -> None:
        """Let go of the errors: their frames lead back to those that hold this ledger."""
        self._errors.clear()


@final
class Walk:
    """One answer for all of the arguments."""

    __slots__ = ("_answer", "_at", "_stores", "_tiers", "args", "kwargs", "ledger", "tier")

    def __init__(
        self,
        tiers: Sequence[Tier[..., Any]],
        stores: Sequence[tuple[int, Store]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._tiers, self._stores = tiers, stores
        self.args, self.kwargs = args, kwargs
        self.ledger = Ledger()
        self.tier: Tier[..., Any] | None = None
        """The tier to call now; None once there is an answer, or nobody left to ask."""
        self._at = -1
        self._answer: list[Any] = []

    def begun(self) -> Walk:
        """Return this walk at its first tier, which was called already."""
        self._at, self.tier = 0, self._tiers[0]
        return self

    def advance(self) -> Tier[..., Any] | None:
        """Return the next tier to call, or None."""
        while not self._answer and self._at + 1 < len(self._tiers):
            self._at += 1
            self.tier = tier = self._tiers[self._at]
            if tier.kind == "stale":
                self._ask_store(tier)
            elif tier.breaker is None or (wait := tier.breaker.blocked()) is None:
                return tier
            else:
                self.ledger.skipped(tier, wait)
        return None

    def failed(self, error: Exception) -> None:
        """Take the error of the tier that was called."""
        assert self.tier is not None  # noqa: S101 - for the type checker
        self.ledger.failed(self.tier, error)

    def answered(self, answer: Any) -> None:
        """Take the answer of the tier that was called."""
        tier = self.tier
        assert tier is not None  # noqa: S101 - for the type checker
        try:
            passed = tier.accept is None or tier.accept(answer)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - a gate that breaks on an answer does not pass it
            self.ledger.failed(tier, error)
            return
        if not passed:
            self.ledger.rejected(tier)
            return
        self._answer.append(answer)
        self.keep(self._at, answer)

    def keep(self, at: int, answer: Any) -> None:
        """Let the stores below tier *at* keep its answer."""
        for position, store in self._stores:
            if position > at:
                store.keep(store.key(self.args, self.kwargs), answer)

    def finish(self, name: str) -> tuple[Any, dict[int, int]]:
        """Return the answer, and how many rows which tier gave; raise if there is none."""
        if not self._answer:
            raise self.ledger.exhausted(name)
        return self._answer[0], {self._at: 1}

    def names(self) -> tuple[str, ...]:
        """Return the tier of each row."""
        return (self._tiers[self._at].name,)

    def _ask_store(self, tier: Tier[..., Any]) -> None:
        store = dict(self._stores)[self._at]
        found = store.find(store.key(self.args, self.kwargs))
        if found is None:
            self.ledger.failed(tier, store.missing())
        else:
            self._answer.append(found[0])


@final
class RowWalk:
    """An answer for each row of the first argument; rows without a good one go down."""

    __slots__ = (
        "_args",
        "_at",
        "_batch",
        "_out",
        "_pending",
        "_stores",
        "_tiers",
        "_where",
        "kwargs",
        "ledger",
        "tier",
    )

    def __init__(
        self,
        tiers: Sequence[Tier[..., Any]],
        stores: Sequence[tuple[int, Store]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        import numpy as np

        if not args:
            raise ConfigurationError(
                "fallback(per_row=True)(batch)", (), "the batch as the first positional argument"
            )
        n = rows.n_rows("fallback(per_row=True)(batch)", args[0])
        self._tiers, self._stores = tiers, stores
        self._batch, self._args, self.kwargs = args[0], args, kwargs
        self.ledger = Ledger()
        self.tier: Tier[..., Any] | None = None
        """The tier to call now; None once every row has an answer, or nobody is left to ask."""
        self._at = -1
        self._out: Any = None
        self._pending = np.arange(n)
        self._where = np.full(n, -1, dtype=np.int16)  # which tier gave each row

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments for the rows that still lack an answer."""
        if len(self._pending) == len(self._where):
            return self._args
        return (rows.take(self._batch, self._pending), *self._args[1:])

    def advance(self) -> Tier[..., Any] | None:
        """Return the next tier to call, or None."""
        while self._out is None or len(self._pending):
            self._at += 1
            if self._at == len(self._tiers):
                return None
            self.tier = tier = self._tiers[self._at]
            if tier.kind == "stale":
                self._ask_store(tier)
            elif tier.breaker is None or (wait := tier.breaker.blocked()) is None:
                return tier
            else:
                self.ledger.skipped(tier, wait)
        return None

    def failed(self, error: Exception) -> None:
        """Take the error of the tier that was called."""
        assert self.tier is not None  # noqa: S101 - for the type checker
        self.ledger.failed(self.tier, error)

    def answered(self, answer: Any) -> None:
        """Take the answer of the tier that was called."""
        tier, m = self.tier, len(self._pending)
        assert tier is not None  # noqa: S101 - for the type checker
        try:
            if tier.kind == "constant":
                like = self._batch if self._out is None else self._out
                answer = rows.filled(answer, m, like)
            came = rows.n_rows(f"the answer of {tier.name}", answer)
            if came != m:
                raise ValueError(f"{came} rows came back for {m}")
            self._place(answer, self._passed(tier, answer))
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - rows that do not fit are no answer
            self.ledger.failed(tier, error)

    def finish(self, name: str) -> tuple[Any, dict[int, int]]:
        """Return the answer, and how many rows which tier gave; raise if a row has none."""
        if self._out is None or len(self._pending):
            rows_left = f" {len(self._pending)} of {len(self._where)} rows"
            raise self.ledger.exhausted(name, rows_left)
        counts = {at: int((self._where == at).sum()) for at in range(self._at + 1)}
        for position, store in self._stores:
            store.like = rows.copied(self._out[:0])
            for i in (self._where < position).nonzero()[0]:
                store.keep(self._key(store, int(i)), rows.row(self._out, int(i)))
        return self._out, counts

    def names(self) -> tuple[str, ...]:
        """Return the tier of each row."""
        return tuple(self._tiers[at].name for at in self._where.tolist())

    def _passed(self, tier: Tier[..., Any], answer: Any) -> Any:
        import numpy as np

        m = len(self._pending)
        mask = np.ones(m, dtype=bool) if tier.accept is None else tier.accept.mask(answer, m)
        if not mask.all():
            self.ledger.rejected(tier, f" ({m - int(mask.sum())} of {m} rows)")
        return mask

    def _place(self, answer: Any, mask: Any) -> None:
        good = self._pending[mask]
        if self._out is None:  # the first answer: its kind, dtype and device are those of the whole
            self._out = answer if mask.all() else rows.copied(answer)
        elif len(good):
            given = answer if mask.all() else rows.take(answer, mask.nonzero()[0])
            self._out = rows.put(self._out, good, given)
        self._where[good] = self._at
        self._pending = self._pending[~mask]

    def _key(self, store: Store, i: int) -> Any:
        return store.row_key(self._batch[i], self._args[1:], self.kwargs)

    def _ask_store(self, tier: Tier[..., Any]) -> None:
        import numpy as np

        store = dict(self._stores)[self._at]
        found = [store.find(self._key(store, int(i))) for i in self._pending]
        mask = np.array([one is not None for one in found], dtype=bool)
        if not mask.any():
            self.ledger.failed(tier, store.missing())
            return
        # Every row gets one of those found; only the rows that have their own are marked as answered.
        spread = np.maximum(mask.cumsum() - 1, 0)
        if not mask.all():
            self.ledger.reasons.append(
                f"{tier.name}: nothing kept ({int((~mask).sum())} of {len(mask)} rows)"
            )
        try:
            kept = rows.stacked([one[0] for one in found if one is not None], store.like)
            self._place(rows.take(kept, spread), mask)
        except Exception as error:  # noqa: BLE001 - rows of several shapes, or that do not fit, are no answer
            self.ledger.failed(tier, error)
