"""The decisions of one flag for many units: the same answers as one call each, without most of the work.

Rows are grouped by the values of their columns. In a group a rule depends on the unit alone; where what is left of it is
one split, NumPy hashes all units at once, and everywhere else the rule runs row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from mlkit.errors import ConfigurationError
from mlkit.flags._bucket import text_head
from mlkit.flags._flag import as_unit
from mlkit.flags._residual import residual

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mlkit.flags._flag import Bound, Details, Flag
    from mlkit.flags._residual import Residual

__all__ = ["Assignment", "as_list", "assign"]

T = TypeVar("T")
_CHUNK = 16_384
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
        values = [answer.value for answer in self.answers]
        return [values[code] for code in self.codes.tolist()]

    @property
    def variants(self) -> list[str | None]:
        """The name of each unit's variant, in order; None where the handle's default was given."""
        names = [answer.variant for answer in self.answers]
        return [names[code] for code in self.codes.tolist()]

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
    flag: Flag[T], units: Iterable[str | int], columns: Mapping[str, Iterable[object]]
) -> Assignment[T]:
    """Return what *flag* answers for each of *units*; see `Flag.assign`."""
    import numpy as np

    rows = as_list("Flag.assign(units)", units)
    table = {name: as_list(f"Flag.assign({name}=...)", column) for name, column in columns.items()}
    for name, column in table.items():
        if len(column) != len(rows):
            raise ConfigurationError(
                f"Flag.assign({name}=...)", len(column), f"one value per unit, {len(rows)} in all"
            )
    bound, fixed = flag.fixed(len(rows))
    tally: _Tally[T] = _Tally()
    if fixed is not None:
        if rows:
            tally.code(fixed)
        return Assignment(np.zeros(len(rows), dtype=np.int32), tuple(tally.answers))
    if not table:
        return _in_order(_group(flag, bound, rows, {}, tally), tally.answers)
    codes = np.zeros(len(rows), dtype=np.int32)
    for places in _groups(table, len(rows)):
        attributes = {name: column[places[0]] for name, column in table.items()}
        members = rows if len(places) == len(rows) else [rows[place] for place in places.tolist()]
        codes[places] = _group(flag, bound, members, attributes, tally)
    return _in_order(codes, tally.answers)


def _group(
    flag: Flag[T], bound: Bound[T], members: list[Any], attributes: dict[str, Any], tally: _Tally[T]
) -> NDArray[np.int32]:
    """Return the codes of units that have the same attributes."""
    import numpy as np

    found = np.empty(len(members), dtype=np.int32)
    slow: Iterable[int] = range(len(members))
    definition = bound.definition
    if len(members) > _FEW and definition is not None:
        facts = {"$flagd": flag.facts()} if bound.flagd else {}
        left = residual(definition.rule, {**attributes, **facts}, definition.scope)
        if left is not None:
            outcomes = left.split.outcomes if left.split else (left.outcome,)
            slow = _fast(left, members, found, [tally.code(bound.resolve(one)) for one in outcomes])
    for index in slow:
        found[index] = tally.code(flag.answer(bound, members[index], dict(attributes)))
    return found


def _fast(
    left: Residual, members: list[Any], found: NDArray[np.int32], codes: list[int]
) -> list[int]:
    """Write the codes of all members that have an ordinary id, and return the places of the others."""
    import numpy as np

    odd: list[int] = []
    try:
        whole = "".join(members)
    except TypeError:
        members, odd = _as_texts(members)
        whole = "".join(members)
    if left.split is None:
        found[:] = codes[0]
        return odd + [index for index, unit in enumerate(members) if not unit]
    try:
        data, sizes = _as_bytes(whole, members)
    except UnicodeEncodeError:
        return list(range(len(members)))
    buckets = _hash_all(data, sizes, left).astype(np.uint64) * np.uint64(left.split.total)
    buckets >>= np.uint64(32)
    chosen = np.zeros(len(members), dtype=np.intp)
    for edge in left.split.edges[:-1]:
        chosen += buckets >= np.uint64(edge)
    found[:] = np.asarray(codes, dtype=np.int32)[chosen]
    return odd + np.flatnonzero(sizes == 0).tolist()


def _as_texts(members: list[Any]) -> tuple[list[str], list[int]]:
    """Return the texts that stand for units, and the places of those that none does."""
    texts, odd = [], []
    for index, unit in enumerate(members):
        ordinary = type(unit) is str or type(unit) is int
        texts.append(unit if type(unit) is str else as_unit(unit) or "" if ordinary else "-")
        if not ordinary:
            odd.append(index)
    return texts, odd


def _as_bytes(whole: str, units: list[str]) -> tuple[bytes, NDArray[np.int64]]:
    """Return the bytes of all units in one piece, and how many each has."""
    import numpy as np

    if whole.isascii():
        return whole.encode(), np.array(list(map(len, units)), dtype=np.int64)
    bodies = [unit.encode() for unit in units]
    return b"".join(bodies), np.array(list(map(len, bodies)), dtype=np.int64)


# --- many rows ---------------------------------------------------------------------------------------------------


def as_list(argument: str, values: Any) -> list[Any]:
    """Return a column as a list.

    Raises:
        ConfigurationError: If it is not a collection of one dimension.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ConfigurationError(argument, values, "a list or a one-dimensional array")
    tolist = getattr(values, "tolist", None)
    if callable(tolist):
        if getattr(values, "ndim", 1) != 1:
            raise ConfigurationError(argument, values, "a one-dimensional array")
        values = tolist()
    return values if type(values) is list else list(values)


def _groups(table: Mapping[str, list[Any]], n: int) -> list[NDArray[np.intp]]:
    """Return the places of rows that agree in every column, in type too; each row alone where that cannot be told."""
    import numpy as np

    codes = np.zeros(n, dtype=np.int64)
    try:
        for column in table.values():
            keys = _keys(column)
            index = {key: code for code, key in enumerate(dict.fromkeys(keys))}
            if len(index) > 1:
                codes *= len(index)
                codes += np.array(list(map(index.__getitem__, keys)), dtype=np.int64)
                codes = np.unique(codes, return_inverse=True)[1]  # as few as there are: no overflow
    except TypeError:  # a list in a column, say
        return [np.array([place]) for place in range(n)]
    if not n:
        return []
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes))[:-1])


def _keys(column: list[Any]) -> list[Any]:
    """Return what tells the values of a column apart, where Python has `1 == 1.0 == True` and `0.0 == -0.0`."""
    kinds = set(map(type, column))
    if len(kinds) == 1 and float not in kinds:
        return column
    return [(type(value), value, str(value) if type(value) is float else "") for value in column]


def _in_order(codes: NDArray[np.int32], answers: list[Details[T]]) -> Assignment[T]:
    """Number the answers by first occurrence, and drop those that a split offered and nobody got."""
    import numpy as np

    used, first = np.unique(codes, return_index=True)
    order = used[np.argsort(first)]
    renumbered = np.zeros(max(len(answers), 1), dtype=np.int32)
    renumbered[order] = np.arange(len(order), dtype=np.int32)
    return Assignment(renumbered[codes], tuple(answers[code] for code in order.tolist()))


def _hash_all(data: bytes, sizes: NDArray[np.int64], left: Residual) -> NDArray[np.uint32]:
    """Return the hash of each unit; units of one size are hashed together."""
    import numpy as np

    buffer = np.frombuffer(data, dtype=np.uint8)
    starts = np.cumsum(sizes) - sizes
    hashes = np.empty(len(sizes), dtype=np.uint32)
    present = np.flatnonzero(np.bincount(sizes)).tolist()
    for size in present:
        head = text_head(size + len(left.inside)) if left.headed else b""
        prefix = np.frombuffer(left.before + head + left.inside, dtype=np.uint8)
        length = len(prefix) + size
        places = np.arange(len(sizes)) if len(present) == 1 else np.flatnonzero(sizes == size)
        for begin in range(0, len(places), _CHUNK):
            part = places[begin : begin + _CHUNK]
            rows = np.zeros((len(part), -(-length // 4) * 4), dtype=np.uint8)
            rows[:, : len(prefix)] = prefix
            if len(present) == 1:
                rows[:, len(prefix) : length] = buffer[
                    begin * size : (begin + len(part)) * size
                ].reshape(len(part), size)
            else:
                rows[:, len(prefix) : length] = buffer[starts[part][:, None] + np.arange(size)]
            hashes[part] = _murmur3(rows, length)
    return hashes


def _murmur3(rows: NDArray[np.uint8], length: int) -> NDArray[np.uint32]:
    """Return MurmurHash3 x86_32, seed 0, of each row of *length* bytes padded with zeros to whole words."""
    import numpy as np

    words = rows.view("<u4")
    hashed = np.zeros(len(rows), dtype=np.uint32)
    for column in range(words.shape[1]):
        mixed = words[:, column] * np.uint32(0xCC9E2D51)
        mixed = (mixed << np.uint32(15)) | (mixed >> np.uint32(17))
        hashed ^= mixed * np.uint32(0x1B873593)
        if column < length // 4:  # the padded last word is the algorithm's tail
            hashed = (hashed << np.uint32(13)) | (hashed >> np.uint32(19))
            hashed = hashed * np.uint32(5) + np.uint32(0xE6546B64)
    hashed ^= np.uint32(length)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashed ^= hashed >> np.uint32(shift)
        hashed *= np.uint32(factor)
    hashed ^= hashed >> np.uint32(16)
    return hashed
