"""What a caller asked for and who has answered how much of it: one answer for the whole call, or one for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final

from mlkit.errors import ConfigurationError, RowsMismatchError
from mlkit.resilience import _rows as rows

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from mlkit.resilience._store import Store
    from mlkit.resilience._tiers import Tier

__all__ = ["Asked", "AskedRows", "AskedWhole", "RowArguments"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


class Asked(Protocol):
    """What is still to be answered. It is given the answers of tiers in turn, and keeps what passes their gates."""

    @property
    def open(self) -> bool:
        """Whether some of it has no answer yet."""

    @property
    def where(self) -> Any:
        """The position of the tier that gave each row."""

    def call(self) -> Call:
        """Return the arguments for the next tier: those of the rows that are open."""

    def take(self, at: int, tier: Tier[..., Any], answer: Any) -> str | None:
        """Take the answer of the tier at position *at*; return which share its gate rejected, or None if nothing."""

    def recall(self, at: int, store: Store) -> str | None:
        """Take what *store* has kept; return for which share it had nothing, or None."""

    def keep(self, position: int, store: Store) -> None:
        """Let *store*, which is at *position*, keep what the tiers above gave."""

    def counts(self) -> dict[int, int]:
        """Return how many rows each tier gave, by its position."""

    def result(self) -> Any:
        """Return the whole answer; only if nothing is open."""

    def left(self) -> tuple[int, ...]:
        """Return the rows that are open."""


@final
class AskedWhole:
    """One answer for all of the arguments."""

    __slots__ = ("_answer", "_args", "_kwargs", "open", "where")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args, self._kwargs = args, kwargs
        self._answer: Any = None
        self.open = True
        self.where: Any = []

    def call(self) -> Call:
        return self._args, self._kwargs

    def take(self, at: int, tier: Tier[..., Any], answer: Any) -> str | None:
        gate = tier.accept
        if gate is not None and not gate(answer, *self._args, **self._kwargs):
            return ""
        self._answer, self.open, self.where = answer, False, [at]
        return None

    def recall(self, at: int, store: Store) -> str | None:
        found = store.find(store.key(self._args, self._kwargs))
        if found is None:
            return ""
        self._answer, self.open, self.where = found[0], False, [at]
        return None

    def keep(self, position: int, store: Store) -> None:
        if self.where[0] < position:
            store.keep(store.key(self._args, self._kwargs), self._answer)

    def counts(self) -> dict[int, int]:
        return {self.where[0]: 1}

    def result(self) -> Any:
        return self._answer

    def left(self) -> tuple[int, ...]:
        return ()


@final
class RowArguments:
    """Which arguments of a fallback are batches."""

    __slots__ = ("_names", "_positions")

    def __init__(self, names: tuple[str, ...] | None, parameters: Sequence[str]) -> None:
        self._names = names
        self._positions = {name: at for at, name in enumerate(parameters)}

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any], skip: int) -> list[int | str]:
        """Return the positions and keywords of the batches, or raise `ConfigurationError`.

        Args:
            args: What the fallback was called with.
            kwargs: The same, by keyword.
            skip: How many positional arguments the caller did not write, as the `self` of a method.
        """
        if self._names is None:
            if len(args) > skip:
                return [skip]
            first = [name for name, at in self._positions.items() if at == skip]
            found: list[int | str] = [name for name in first if name in kwargs]
            if not self._positions and len(kwargs) == 1:  # of a builtin that names no parameters
                found = [*kwargs]
            if found:
                return found
            raise ConfigurationError(
                "a fallback with per_row=True", "no batch", "a batch as its first argument"
            )
        found = [name for name in self._names if name in kwargs]
        found += [
            at for name in self._names if (at := self._positions.get(name, len(args))) < len(args)
        ]
        if not found:
            raise ConfigurationError(
                "a fallback with per_row=(...)",
                "none of them",
                f"a batch as at least one of the arguments {list(self._names)}",
            )
        return found


@final
class AskedRows:
    """An answer for each row of the batches among the arguments."""

    __slots__ = ("_args", "_batches", "_kwargs", "_out", "_own", "_pending", "where")

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], batches: Sequence[int | str]
    ) -> None:
        import numpy as np

        self._args, self._kwargs = args, kwargs
        self._batches = {key: args[key] if isinstance(key, int) else kwargs[key] for key in batches}
        given = self._batches if len(batches) > 1 else self._batches[batches[0]]
        n = rows.n_rows("the batch of a fallback with per_row", given)
        self._pending = np.arange(n)
        self.where: Any = np.full(n, -1)
        self._out: tuple[Any] | None = None  # the answers so far
        self._own = False  # whether `_out` is ours to change

    @property
    def open(self) -> bool:
        return self._out is None or len(self._pending) > 0

    def call(self) -> Call:
        if len(self._pending) == len(self.where):
            return self._args, self._kwargs
        return self._call_of(self._pending)

    def take(self, at: int, tier: Tier[..., Any], answer: Any) -> str | None:
        m = len(self._pending)
        if tier.kind == "constant":
            like = rows.example(self._batches) if self._out is None else self._out[0]
            answer = rows.filled(answer, m, like)
        came = rows.n_rows(f"the answer of {tier.name}", answer)
        if came != m:
            raise RowsMismatchError(tier.name, "answer", f"{came} rows came back for {m}")
        if tier.accept is None:
            return self._place(at, tier.name, answer, None)
        args, kwargs = self.call() if tier.accept.arguments else ((), {})
        mask = tier.accept.mask(answer, m, *args, **kwargs)
        return self._place(at, tier.name, answer, None if mask.all() else mask)

    def recall(self, at: int, store: Store) -> str | None:
        import numpy as np

        found = [store.find(self._key(store, int(i))) for i in self._pending]
        kept = [one[0] for one in found if one is not None]
        if not kept:
            return ""
        # Every row gets one of those found; only the rows that have their own are marked as answered.
        mask = np.array([one is not None for one in found], dtype=bool)
        try:
            spread = rows.take(rows.joined(kept), np.maximum(mask.cumsum() - 1, 0))
        except (TypeError, ValueError, RuntimeError) as error:  # rows of several shapes
            raise RowsMismatchError(store.name, "answer", str(error)) from None
        return self._place(at, store.name, spread, None if mask.all() else mask)

    def keep(self, position: int, store: Store) -> None:
        for i in ((self.where >= 0) & (self.where < position)).nonzero()[0].tolist():
            store.keep(self._key(store, i), rows.take(self.result(), [i]))

    def counts(self) -> dict[int, int]:
        import numpy as np

        found = np.bincount(self.where)
        return {int(at): int(found[at]) for at in found.nonzero()[0]}

    def result(self) -> Any:
        assert self._out is not None  # noqa: S101 - for the type checker
        return self._out[0]

    def left(self) -> tuple[int, ...]:
        return tuple(self._pending.tolist())

    def _place(self, at: int, tier: str, answer: Any, mask: Any) -> str | None:
        """Put the rows of *answer* that *mask* names in their places; None is all of them."""
        good = self._pending if mask is None else self._pending[mask]
        if self._out is None:  # the first answer: its kind, dtype and device are those of the whole
            self._out, self._own = (answer,), False
        elif len(good):
            self._put(tier, good, answer if mask is None else rows.take(answer, mask.nonzero()[0]))
        self.where[good] = at
        total = len(self._pending)
        self._pending = self._pending[:0] if mask is None else self._pending[~mask]
        left = len(self._pending)
        return f" ({left} of {total} rows)" if left else None

    def _put(self, tier: str, good: Any, given: Any) -> None:
        assert self._out is not None  # noqa: S101 - for the type checker
        base = self._out[0] if self._own else rows.copied(self._out[0])
        try:
            self._out, self._own = (rows.put(base, good, given),), True
        except rows.MisfitError as error:
            if len(good) == len(self.where):  # nobody's rows are there yet, so nobody's kind counts
                self._out, self._own = (given,), False
                return
            raise RowsMismatchError(tier, f"answer{error.place}", str(error)) from None

    def _key(self, store: Store, i: int) -> Hashable | None:
        """Return the key of row *i*; the other arguments are part of it, unless the user says what is."""
        if store.keyed:
            given = {key: rows.one(batch, i) for key, batch in self._batches.items()}
            named = {key: one for key, one in given.items() if isinstance(key, str)}
            return store.key(
                tuple(one for key, one in given.items() if isinstance(key, int)), named
            )
        args, kwargs = self._call_of([i])
        return store.key(args, kwargs)

    def _call_of(self, index: Any) -> Call:
        """Return the arguments with only the rows at *index* of the batches."""
        args, kwargs = list(self._args), dict(self._kwargs)
        for key, batch in self._batches.items():
            some = rows.take(batch, index)
            if isinstance(key, int):
                args[key] = some
            else:
                kwargs[key] = some
        return tuple(args), kwargs
