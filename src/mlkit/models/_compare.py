"""What differs between two versions, from the spec down to single tensors, for people and for programs."""

from __future__ import annotations

from math import prod
from typing import IO, TYPE_CHECKING, Any, NamedTuple, final

from mlkit._suggest import clip
from mlkit.errors import IntegrityError
from mlkit.models._version import ModelVersion, parse_payload, read_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = ["Comparison", "Difference", "compare"]

_PARTS = ("spec", "signature", "manifest")
_MAX_HEADER = 100 << 20  # safetensors' own limit
_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


class Difference(NamedTuple):
    """One place where two versions differ.

    Attributes:
        part: `"spec"`, `"signature"`, `"manifest"`, `"weights"`, `"metrics"`, `"tags"`, `"format"` or `"run"`.
        path: Where in it: `"layers[2].units"`, a metric, a tensor; empty for all of it.
        before: What the first version has there, None if nothing; of a tensor its dtype and shape.
        after: What the second has there.
        change: How far a number moved, or the largest absolute change of a tensor's values; None where that says
            nothing.
    """

    part: str
    path: str
    before: Any
    after: Any
    change: float | None = None

    def __str__(self) -> str:
        place = f"{self.part}.{self.path}" if self.path else self.part
        if self.before == self.after and self.change is not None:
            return f"{place}: {_shown(self.after)}, changed by up to {self.change:.3g}"
        if self.before == self.after:
            return f"{place}: {_shown(self.after)}, other values"
        if self.before is None:
            return f"{place}: only in the second: {_shown(self.after)}"
        if self.after is None:
            return f"{place}: only in the first: {_shown(self.before)}"
        moved = "" if self.change is None else f" ({self.change:+.4g})"
        return f"{place}: {_shown(self.before)} -> {_shown(self.after)}{moved}"


@final
class Comparison:
    """What differs between two versions; printed, one difference a line. Immutable, picklable.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from mlkit.models import ModelStore
        >>> store = ModelStore(tempfile.mkdtemp())
        >>> for hidden, accuracy in ((32, 0.89), (64, 0.93)):
        ...     weights = {"bias": np.zeros(2), "out": np.full((2, 2), float(hidden))}
        ...     _ = store.save("digits", weights, spec={"hidden": hidden}, metrics={"accuracy": accuracy})
        >>> print(store.compare("digits@1", "digits@2"))
        digits@1 -> digits@2
          spec.hidden: 32 -> 64 (+32)
          metrics.accuracy: 0.89 -> 0.93 (+0.04)
          weights.out: F64 (2, 2), changed by up to 32
          1 of 2 tensors are equal
    """

    first: ModelVersion
    second: ModelVersion
    differences: tuple[Difference, ...]
    n_equal_tensors: int | None

    __slots__ = ("differences", "first", "n_equal_tensors", "second")

    def __init__(
        self,
        first: ModelVersion,
        second: ModelVersion,
        differences: tuple[Difference, ...],
        n_equal_tensors: int | None,
    ) -> None:
        self.first, self.second, self.differences = first, second, differences
        self.n_equal_tensors = n_equal_tensors
        """How many tensors are the same in both; None if the weights are not tensors, or need not be read."""

    @property
    def same_content(self) -> bool:
        """Whether weights, spec, signature and manifest are equal: whether the digests are."""
        return self.first.digest == self.second.digest

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "first": self.first.ref,
            "second": self.second.ref,
            "same_content": self.same_content,
            "differences": [one._asdict() for one in self.differences],
            "n_equal_tensors": self.n_equal_tensors,
        }

    def __str__(self) -> str:
        lines = [f"{self.first.ref} -> {self.second.ref}"]
        lines += [f"  {one}" for one in self.differences]
        changed = sum(one.part == "weights" and one.path != "" for one in self.differences)
        if self.n_equal_tensors is not None and changed:
            lines.append(
                f"  {self.n_equal_tensors} of {self.n_equal_tensors + changed} tensors are equal"
            )
        if self.same_content:
            lines.append("  the content is the same: " + clip(self.first.digest, 24))
        return "\n".join(lines)

    def __repr__(self) -> str:
        n = len(self.differences)
        return f"<Comparison {self.first.ref} -> {self.second.ref}, {n} differences>"


def compare(
    first: ModelVersion,
    second: ModelVersion,
    opened: Callable[[ModelVersion], AbstractContextManager[IO[bytes]]],
) -> Comparison:
    """Return what differs between two versions.

    Args:
        first: One.
        second: The other.
        opened: Opens the checked weights of a version.
    """
    found: list[Difference] = []
    one, other = read_document(first), read_document(second)
    for part in _PARTS:
        found += _differ(part, "", one[part], other[part])
    for part in ("metrics", "tags"):
        found += _differ(part, "", dict(getattr(first, part)), dict(getattr(second, part)))
    for part in ("format", "run"):
        found += _differ(part, "", getattr(first, part), getattr(second, part))
    mine, theirs = parse_payload(one), parse_payload(other)
    n_equal: int | None = None
    if (mine.digest, dict(mine.ties)) != (theirs.digest, dict(theirs.ties)):
        if {mine.format, theirs.format} <= {"torch", "numpy"}:
            with opened(first) as a, opened(second) as b:
                tensors, n_equal = _differ_in_tensors(
                    _Tensors(first.ref, a, mine.ties), _Tensors(second.ref, b, theirs.ties)
                )
            found += tensors
        elif first.format == second.format:
            sizes = (f"{mine.n_bytes:,} bytes", f"{theirs.n_bytes:,} bytes")
            found.append(Difference("weights", "", *sizes))
    return Comparison(first, second, tuple(found), n_equal)


class _Tensors:
    """The tensors of a safetensors file, read one at a time. The format: 8 bytes of length, a JSON header, the data."""

    def __init__(self, ref: str, file: IO[bytes], ties: Mapping[str, str]) -> None:
        import json

        self._file = file
        try:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size) if size <= _MAX_HEADER else b"")
            header.pop("__metadata__", None)
            self.about: dict[str, Any] = header | {
                name: header[kept] for name, kept in ties.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                ref, expected="safetensors", got=f"something else ({error})"
            ) from None
        self._start = 8 + size

    def described(self, name: str) -> str | None:
        """Return the dtype and shape of a tensor, None if there is none of that name."""
        about = self.about.get(name)
        return None if about is None else f"{about['dtype']} {tuple(about['shape'])}"

    def data(self, name: str) -> bytes:
        begin, end = self.about[name]["data_offsets"]
        self._file.seek(self._start + begin)
        return self._file.read(end - begin)


def _differ_in_tensors(first: _Tensors, second: _Tensors) -> tuple[list[Difference], int]:
    found, n_equal = [], 0
    for name in sorted(first.about.keys() | second.about.keys()):
        before, after = first.described(name), second.described(name)
        if before != after:
            found.append(Difference("weights", name, before, after))
            continue
        old, new = first.data(name), second.data(name)
        if old == new:
            n_equal += 1
        else:
            about = first.about[name]
            largest = _largest(about["dtype"], old, new) if prod(about["shape"]) else None
            found.append(Difference("weights", name, before, after, largest))
    return found, n_equal


def _largest(dtype: str, old: bytes, new: bytes) -> float | None:
    """Return the largest absolute change, None for dtypes that NumPy does not have; NaN if NaN came or went."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        a, b = ((np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4") for data in (old, new))
    elif dtype in _NUMPY:
        a, b = (np.frombuffer(data, _NUMPY[dtype]) for data in (old, new))
    else:
        return None
    wide = np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(a.astype(wide) - b.astype(wide))
    gap[(a == b) | ((a != a) & (b != b))] = 0.0  # noqa: PLR0124 - both NaN, or the same infinity
    return float(gap.max())


def _differ(part: str, path: str, before: Any, after: Any) -> Iterator[Difference]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            inner = f"{path}.{key}" if path else key
            yield from _differ(part, inner, before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list):
        for place in range(max(len(before), len(after))):
            old, new = (one[place] if place < len(one) else None for one in (before, after))
            yield from _differ(part, f"{path}[{place}]", old, new)
    elif type(before) is not type(after) or (before != after and not _both_nan(before, after)):
        yield Difference(part, path, before, after, _moved(before, after))


def _both_nan(before: Any, after: Any) -> bool:
    return bool(before != before and after != after)  # noqa: PLR0124 - NaN is what is not itself


def _moved(before: Any, after: Any) -> float | None:
    if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in (before, after)):
        return None
    try:
        return float(after - before)
    except OverflowError:
        return None


def _shown(value: Any) -> str:
    import json

    return clip(value if isinstance(value, str) else json.dumps(value), 80)
