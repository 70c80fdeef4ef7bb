"""The ids of many units as bytes, so that they are hashed at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from mlkit.flags._containers import Arrow, Coded, Numbers, Sequence
from mlkit.flags._murmur import hash_words

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from mlkit.flags._containers import Opened

    _Bytes = tuple[NDArray[np.uint8], NDArray[np.intp], NDArray[np.intp]]  # starts and sizes, too

__all__ = ["Units"]

_WORD = 4


@final
class Units:
    """Ids of units.

    Args:
        given: The ids.

    Attributes:
        odd: The places of ids that no hash is made of here: empty, none, or no text.
    """

    odd: NDArray[np.intp]

    def __init__(self, given: Opened) -> None:
        import numpy as np

        self._given = given
        self._listed: list[Any] | None = (
            given.values if type(given) is Sequence and given.nulls is None else None
        )
        self._words: NDArray[np.uint32] | None = None  # of all, where all are of one size
        self._read(given)
        self.odd = np.flatnonzero(self._sizes == 0)

    def __len__(self) -> int:
        return len(self._sizes)

    def listed(self) -> list[Any]:
        """Return the ids as Python values."""
        if self._listed is None:
            self._listed = _listed(self._given)
        return self._listed

    def hashes(
        self, places: NDArray[np.intp] | None, prefix: Callable[[int], bytes]
    ) -> NDArray[np.uint32]:
        """Return the hash of each id; of odd ones anything.

        Args:
            places: Whose, None for all.
            prefix: What is hashed before an id of so many bytes.
        """
        import numpy as np

        if self._words is not None:
            words = self._words if places is None else self._words[places]
            size = int(self._sizes[0])
            return hash_words(prefix(size), words, size)
        places = np.arange(len(self)) if places is None else places
        sizes = self._sizes[places]
        made = np.zeros(len(places), dtype=np.uint32)
        for size in np.flatnonzero(np.bincount(sizes)).tolist():
            if size:
                these = np.flatnonzero(sizes == size)
                words = self._words_at(places[these], size)
                made[these] = hash_words(prefix(size), words, size)
        return made

    def _words_at(self, places: NDArray[np.intp], size: int) -> NDArray[np.uint32]:
        """Return the words of ids of one size."""
        import numpy as np

        width = -(-size // _WORD) * _WORD
        rows = np.zeros((len(places), width), dtype=np.uint8)
        starts = self._starts[places]
        step = int(starts[1] - starts[0]) if len(starts) > 1 else size
        if step >= size and (np.diff(starts) == step).all():  # in a row: no need to gather
            span = self._data[starts[0] :]
            rows[:, :size] = np.lib.stride_tricks.as_strided(span, (len(places), size), (step, 1))
        else:
            for column in range(size):
                rows[:, column] = self._data[starts + column]
        return rows.view("<u4")

    # --- reading -------------------------------------------------------------------------------------------------

    def _read(self, given: Opened) -> None:
        if isinstance(given, Arrow) and _of_texts(given.values):
            self._take(*_from_arrow(given.values))
        elif isinstance(given, Numbers) and given.nulls is None:
            made = _spelled(given.values)
            self._join(self.listed()) if made is None else self._take(*made)
        else:
            self._join(self.listed())

    def _join(self, units: list[Any]) -> None:
        """Put texts into one piece, each followed by as many zeros as make the words of texts of one size meet."""
        import numpy as np

        first = units[0] if units else ""
        size = len(first.encode("utf-8", "replace")) if type(first) is str else 0
        pad = _WORD - size % _WORD
        zeros = "\0" * pad
        try:
            data = np.frombuffer((zeros.join(units) + zeros).encode(), dtype=np.uint8)
        except (TypeError, UnicodeEncodeError):
            self._join(list(map(_text, units)))
            return
        if not units:
            self._take(data, np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp))
            return
        if len(data) - np.count_nonzero(data) != pad * len(units):  # an id has a zero in it
            bodies = [unit.encode() for unit in units]
            sizes = np.fromiter(map(len, bodies), dtype=np.intp, count=len(bodies))
            self._take(np.frombuffer(b"".join(bodies), dtype=np.uint8), _starts(sizes), sizes)
            return
        width = size + pad
        if (
            size
            and len(data) == width * len(units)
            and not any(data[size + column :: width].any() for column in range(pad))
        ):
            self._words = data.view("<u4").reshape(len(units), width // _WORD)
            self._take(data, np.arange(0, len(data), width), np.full(len(units), size))
            return
        ends = np.flatnonzero(data == 0)[::pad]
        starts = np.concatenate([[0], ends[:-1] + pad])
        self._take(data, starts, ends - starts)

    def _take(
        self, data: NDArray[np.uint8], starts: NDArray[np.intp], sizes: NDArray[np.intp]
    ) -> None:
        self._data, self._starts, self._sizes = data, starts, sizes


def _spelled(values: NDArray[Any]) -> _Bytes | None:
    """Return the bytes of whole numbers and of ASCII texts, None for what it does not know how to spell."""
    import numpy as np

    n, kind = len(values), values.dtype.kind
    if not n or (kind == "i" and values.min() < 0) or kind not in "iuU":
        return None
    if kind != "U":
        return _digits(values.astype(np.uint64))
    width = values.dtype.itemsize // 4
    if not width or not values.dtype.isnative:
        return None
    letters = np.ascontiguousarray(values).view(np.uint32).reshape(n, width)
    if letters.max() > 127:
        return None
    there = letters[:, ::-1] != 0  # NumPy's texts end where nothing but zeros follows
    sizes = np.where(there.any(axis=1), width - there.argmax(axis=1), 0)
    return letters.astype(np.uint8).ravel(), np.arange(0, n * width, width), sizes


def _digits(values: NDArray[np.uint64]) -> _Bytes:
    import numpy as np

    most = len(str(values.max()))
    powers = np.array([10**power for power in range(1, most)], dtype=np.uint64)
    sizes = np.searchsorted(powers, values, side="right") + 1
    rows = np.zeros((most, len(values)), dtype=np.uint8)  # the last digit in the last row
    for row in rows[::-1]:
        rest = values // np.uint64(10)
        row[:] = values - rest * np.uint64(10) + np.uint64(48)
        values = rest
    starts = np.arange(most, most * (len(sizes) + 1), most) - sizes
    return np.ascontiguousarray(rows.T).ravel(), starts, sizes


def _starts(sizes: NDArray[np.intp]) -> NDArray[np.intp]:
    import numpy as np

    starts: NDArray[np.intp] = np.cumsum(sizes) - sizes
    return starts


def _text(unit: Any) -> str:
    """Return the text that stands for a unit, empty where the scalar path has to tell."""
    try:
        if type(unit) is int:
            return int.__repr__(unit)
        if type(unit) is str:
            unit.encode()
            return unit
    except ValueError:  # half a surrogate pair, or more digits than Python writes
        pass
    return ""


def _of_texts(values: Any) -> bool:
    return str(values.type) in {"string", "large_string"}


def _from_arrow(values: Any) -> _Bytes:
    """Return bytes, starts and sizes as Arrow has them; nothing is copied but the offsets."""
    import numpy as np

    kind = np.int32 if str(values.type) == "string" else np.int64
    _, offsets, data = values.buffers()
    n, begin = len(values), values.offset
    if not n:
        return np.zeros(0, np.uint8), np.zeros(0, np.intp), np.zeros(0, np.intp)
    edges = np.frombuffer(offsets, dtype=kind)[begin : begin + n + 1].astype(np.intp)
    sizes = np.diff(edges)
    if values.null_count:
        sizes[values.is_null().to_numpy(zero_copy_only=False)] = 0
    held = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, dtype=np.uint8)
    return held, edges[:-1], sizes


def _listed(given: Opened) -> list[Any]:
    if isinstance(given, Arrow):
        made: list[Any] = (
            given.values.to_numpy(zero_copy_only=False).tolist()
            if _of_texts(given.values)
            else given.values.to_pylist()
        )
        return made
    if isinstance(given, Coded):
        values = [*given.values, None]
        return [values[code] for code in given.codes.tolist()]
    listed: list[Any] = given.values.tolist() if isinstance(given, Numbers) else list(given.values)
    nulls = given.nulls
    if nulls is None:
        return listed
    return [None if null else value for value, null in zip(listed, nulls.tolist(), strict=True)]
