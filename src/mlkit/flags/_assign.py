"""The decisions of one flag for many units: the same answers as one call each, without most of the work.

Rows are grouped by the values of their columns. In a group a rule depends on the unit alone; where what is left of it is
one split, NumPy hashes all units at once, and everywhere else the rule runs row by row.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from mlkit.errors import ConfigurationError
from mlkit.flags._bucket import text_head
from mlkit.flags._columns import column_of, groups
from mlkit.flags._containers import Coded, opened, opened_table
from mlkit.flags._residual import residual
from mlkit.flags._text import attributes_of
from mlkit.flags._units import Units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mlkit.flags._containers import Opened
    from mlkit.flags._flag import Bound, Details, Flag
    from mlkit.flags._residual import Residual

__all__ = ["Assignment", "assign"]

T = TypeVar("T")
V = TypeVar("V")
_FEW = 16


@final
class Assignment(Generic[T]):
    """The answers of a flag for many units.

    Immutable in effect; `codes` is the caller's to use. Made by `Flag.assign`.

    Attributes:
        codes: For each unit the index of its answer in `answers`, int32 of shape `(n,)`.
        answers: The distinct answers, in the order in which they first occur.

    Examples:
        >>> from mlkit.flags import Flags
        >>> flags = Flags.in_memory({"ranker": "v1"})
        >>> assignment = flags.str("ranker", default="v0").assign(["ann", "bob"])
        >>> assignment.values, assignment.counts()
        (['v1', 'v1'], {'v1': 2})
    """

    __slots__ = ("answers", "codes")
    codes: NDArray[np.int32]
    answers: tuple[Details[T], ...]

    def __init__(self, codes: NDArray[np.int32], answers: tuple[Details[T], ...]) -> None:
        self.codes, self.answers = codes, answers

    @property
    def values(self) -> list[T]:
        """The value for each unit, in order."""
        return self._each([answer.value for answer in self.answers])

    @property
    def variants(self) -> list[str | None]:
        """The name of each unit's variant, in order; None where the handle's default was given."""
        return self._each([answer.variant for answer in self.answers])

    def counts(self) -> dict[str | None, int]:
        """Return how many units have each variant."""
        import numpy as np

        totals: dict[str | None, int] = {}
        for answer, count in zip(
            self.answers, np.bincount(self.codes, minlength=len(self.answers)).tolist(), strict=True
        ):
            totals[answer.variant] = totals.get(answer.variant, 0) + count
        return totals

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> Details[T]:
        return self.answers[int(self.codes[index])]

    def __iter__(self) -> Iterator[Details[T]]:
        return (self.answers[code] for code in self.codes.tolist())

    def _each(self, known: list[V]) -> list[V]:
        import numpy as np

        held = np.empty(len(known), dtype=object)
        for index, value in enumerate(known):  # one by one: NumPy would look into a tuple
            held[index] = value
        made: list[V] = held.take(self.codes).tolist()
        return made

    def __repr__(self) -> str:
        return f"<Assignment of {len(self)} units: {self.counts()}>"


class _Tally(Generic[T]):
    """The distinct answers so far."""

    def __init__(self) -> None:
        self.answers: list[Details[T]] = []
        self._codes: dict[tuple[str | None, str, str | None, str], int] = {}

    def code(self, answer: Details[T]) -> int:
        key = (answer.variant, answer.reason, answer.error, answer.message)
        code = self._codes.setdefault(key, len(self.answers))
        if code == len(self.answers):
            self.answers.append(answer)
        return code


def assign(
    flag: Flag[T], units: Any, table: Any, columns: Mapping[str, Any]
) -> tuple[Assignment[T], Units]:
    """Return what *flag* answers for each of *units*, and the units; see `Flag.assign`."""
    import numpy as np

    ids = Units(opened("Flag.assign(units)", units))
    n = len(ids)
    given = _given(table, columns, n)
    bound, fixed = flag.fixed(n)
    tally: _Tally[T] = _Tally()
    if fixed is not None:
        if n:
            tally.code(fixed)
        return Assignment(np.zeros(n, dtype=np.int32), tuple(tally.answers)), ids
    codes = np.zeros(n, dtype=np.int32)
    if n:
        read = {name: column_of(column()) for name, column in _read(bound, given).items()}
        for places, attributes in groups(read, n):
            codes[slice(None) if places is None else places] = _group(
                flag, bound, ids, places, attributes, tally
            )
    return _in_order(codes, tally.answers), ids


def _given(table: Any, columns: Mapping[str, Any], n: int) -> dict[str, Callable[[], Opened]]:
    """Return what opens each column, after a look at its length.

    Raises:
        ConfigurationError: If a column has another length than there are units, or is given twice.
    """
    made: dict[str, Callable[[], Opened]] = {}
    if table is not None:
        frame = opened_table("Flag.assign(table)", table)
        _check_length("Flag.assign(table)", frame.n, n)
        for name in frame.names:
            if name in columns:
                raise ConfigurationError(f"Flag.assign({name}=...)", name, "no column of the table")
            made[name] = partial(_open, name, partial(frame.column, name), n)
    for name, column in columns.items():
        made[name] = partial(_open, name, partial(_itself, column), n)
        _check_length(f"Flag.assign({name}=...)", _length(column), n)
    return made


def _itself(column: Any) -> Any:
    return column


def _open(name: str, column: Callable[[], Any], n: int) -> Opened:
    argument = f"Flag.assign({name}=...)"
    made = opened(argument, column())
    _check_length(argument, len(made.codes if isinstance(made, Coded) else made.values), n)
    return made


def _length(column: Any) -> int | None:
    """Return how long a column is, None if that shows only when it is read."""
    if isinstance(column, (str, bytes)) or not hasattr(column, "__iter__"):
        raise ConfigurationError(
            "Flag.assign(columns)", column, "a list or a one-dimensional array for each"
        )
    sized = hasattr(column, "__len__") and getattr(column, "ndim", None) != 0
    return len(column) if sized else None


def _check_length(argument: str, length: int | None, n: int) -> None:
    if length is not None and length != n:
        raise ConfigurationError(argument, length, f"one value per unit, {n} in all")


def _read(
    bound: Bound[Any], given: dict[str, Callable[[], Opened]]
) -> dict[str, Callable[[], Opened]]:
    """Return the columns that the flag's rule may read: no other can make a difference."""
    if bound.definition is None:
        return {}
    read = attributes_of(bound.definition.rule, bound.definition.shared.evaluators)
    return {name: column for name, column in given.items() if read is None or name in read}


def _group(  # noqa: PLR0917 - six things that belong together
    flag: Flag[T],
    bound: Bound[T],
    ids: Units,
    places: NDArray[np.intp] | None,
    attributes: dict[str, Any],
    tally: _Tally[T],
) -> NDArray[np.int32]:
    """Return the codes of units that have the same attributes."""
    import numpy as np

    n = len(ids) if places is None else len(places)
    definition = bound.definition
    if n > _FEW and definition is not None:
        facts = {"$flagd": flag.facts()} if bound.flagd else {}
        left = residual(definition.rule, {**attributes, **facts}, definition.scope)
        if left is not None:
            outcomes = left.split.outcomes if left.split else (left.outcome,)
            codes = [tally.code(bound.resolve(one)) for one in outcomes]
            found = _fast(left, ids, places, n, codes)
            slow = ids.odd if places is None else np.flatnonzero(np.isin(places, ids.odd))
            return _slowly(flag, bound, ids, places, attributes, tally, found, slow.tolist())
    found = np.empty(n, dtype=np.int32)
    return _slowly(flag, bound, ids, places, attributes, tally, found, range(n))


def _fast(
    left: Residual, ids: Units, places: NDArray[np.intp] | None, n: int, codes: list[int]
) -> NDArray[np.int32]:
    """Return the codes of all units that have an ordinary id; those of others mean nothing."""
    import numpy as np

    split = left.split
    if split is None:
        return np.full(n, codes[0], dtype=np.int32)

    def prefix(size: int) -> bytes:
        head = text_head(size + len(left.inside)) if left.headed else b""
        return left.before + head + left.inside

    hashes = ids.hashes(places, prefix)
    chosen = np.zeros(n, dtype=np.intp)
    for edge in split.edges[:-1]:
        # `hash * total >> 32` is at least the edge from here on.
        least = -(-(edge << 32) // split.total)
        if least < 2**32:
            chosen += hashes >= np.uint32(least)
    return np.asarray(codes, dtype=np.int32)[chosen]


def _slowly(  # noqa: PLR0917 - as above
    flag: Flag[T],
    bound: Bound[T],
    ids: Units,
    places: NDArray[np.intp] | None,
    attributes: dict[str, Any],
    tally: _Tally[T],
    found: NDArray[np.int32],
    which: Iterable[int],
) -> NDArray[np.int32]:
    """Ask the flag itself for some of the units."""
    for index in which:
        unit = ids.listed()[index if places is None else int(places[index])]
        found[index] = tally.code(flag.answer(bound, unit, dict(attributes)))
    return found


def _in_order(codes: NDArray[np.int32], answers: list[Details[T]]) -> Assignment[T]:
    """Number the answers by first occurrence, and drop those that a split offered and nobody got."""
    import numpy as np

    n, known = len(codes), len(answers)
    if known <= _FEW:
        there = [codes == code for code in range(known)]
        first = np.array([one.argmax() if one.any() else n for one in there], dtype=np.intp)
    else:
        first = np.full(known, n, dtype=np.intp)
        first[codes[::-1]] = np.arange(n - 1, -1, -1)  # of several values for one the last stays
    order = np.argsort(first, kind="stable")[: np.count_nonzero(first < n)]
    if len(order) == known and (order == np.arange(known)).all():
        return Assignment(codes, tuple(answers))
    renumbered = np.zeros(max(len(answers), 1), dtype=np.int32)
    renumbered[order] = np.arange(len(order), dtype=np.int32)
    return Assignment(renumbered[codes], tuple(answers[code] for code in order.tolist()))
