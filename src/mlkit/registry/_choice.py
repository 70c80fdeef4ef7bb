"""Which strategy fits, and why each of the others does not."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final

from mlkit._suggest import clip
from mlkit.errors import NoCandidateError
from mlkit.registry._entry import Frozen
from mlkit.registry._listing import natural
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mlkit.registry._entry import Entry, Record
    from mlkit.registry._registry import Registry

__all__ = ["Choice", "choose", "ranked"]

T = TypeVar("T")


@final
class Choice(Frozen, Generic[T]):
    """The strategy that `Registry.select` took, and why each other candidate lost.

    Immutable; thread-safe.

    Attributes:
        entry: What was chosen.

    Examples:
        >>> from mlkit.registry import Registry
        >>> kernels = Registry("kernels")
        >>> @kernels.register("fused", priority=20, when=lambda c: c["device"] == "cuda" or "needs CUDA")
        ... def fused(x: int) -> int:
        ...     return x
        >>> @kernels.register("plain")
        ... def plain(x: int) -> int:
        ...     return x
        >>> choice = kernels.select({"device": "cpu"})
        >>> choice.entry.name, dict(choice.rejected)
        ('plain', {'fused': 'needs CUDA'})
        >>> choice.factory is plain
        True
    """

    __slots__ = ("_declined", "_outranked", "_registry", "entry")

    entry: Entry

    def __init__(
        self,
        registry: Registry[T],
        entry: Entry,
        declined: dict[str, str],
        outranked: Callable[[], dict[str, str]],
    ) -> None:
        put = object.__setattr__
        put(self, "entry", entry)
        put(self, "_registry", registry)
        put(self, "_declined", declined)
        put(self, "_outranked", outranked)

    @property
    def rejected(self) -> Mapping[str, str]:
        """Why not, by name, for every other candidate, in the order in which they were considered."""
        declined: dict[str, str] = self._declined  # type: ignore[attr-defined]
        return MappingProxyType({**declined, **self._outranked()})  # type: ignore[attr-defined]

    @property
    def factory(self) -> Callable[..., T]:
        """The chosen factory or function itself, imported now if it was lazy."""
        registry = cast("Registry[T]", self._registry)  # type: ignore[attr-defined]
        return registry._catalogue.factory(self.entry.ref)  # noqa: SLF001 - warns of the caller's line

    def __repr__(self) -> str:
        return f"<Choice {self.entry.ref}, rejected {clip(dict(self.rejected), 200)}>"


def ranked(candidates: Iterable[Record], prefer: Sequence[str] = ()) -> list[Record]:
    """Return *candidates* in the order in which they are asked: preferred ones, by priority, by name."""
    wished = {name: index for index, name in enumerate(prefer)}
    return sorted(
        candidates,
        key=lambda record: (
            wished.get(record.entry.name, len(wished)),
            -record.entry.priority,
            natural(record.entry.name),
        ),
    )


def choose(
    registry: Registry[T], candidates: Sequence[Record], context: Any, prefer: Sequence[str]
) -> Choice[T]:
    """Return the first of *candidates* that accepts *context*.

    Raises:
        NoCandidateError: If none does.
    """
    declined: dict[str, str] = {}
    for index, record in enumerate(candidates):
        reason = _verdict(registry.name, record, context)
        if reason is None:
            # Why the others lost is put into words when somebody asks.
            losers = partial(_losers, candidates, index, prefer)
            return Choice(registry, record.entry, declined, losers)
        declined[record.name] = reason
    raise NoCandidateError(registry.name, declined)


def _losers(candidates: Sequence[Record], index: int, prefer: Sequence[str]) -> dict[str, str]:
    winner = candidates[index].entry
    return {
        loser.name: _outranked(loser.entry, winner, prefer) for loser in candidates[index + 1 :]
    }


def _verdict(registry: str, record: Record, context: Any) -> str | None:
    """Return why *record* declines, or None if it accepts."""
    if record.claims:
        return "several installed distributions claim its name"
    if record.said.when is None:
        return None
    try:
        answer: Any = record.said.when(context)
    except Exception as error:  # noqa: BLE001 - one broken predicate must not take the other strategies down
        emit(
            "registry.predicate.failed",
            registry,
            entry=record.entry.ref,
            error=type(error).__name__,
        )
        return f"its condition failed: {type(error).__name__}: {clip(str(error), 80)}"
    if answer is True:
        return None
    if answer is False:
        return "declined without a reason"
    if isinstance(answer, str):
        return answer or "declined without a reason"
    # NumPy's booleans count; anything else that happens to be true is most often a forgotten comparison.
    if type(answer).__name__ in {"bool", "bool_"}:
        return None if answer else "declined without a reason"
    return f"its condition returned {clip(answer, 60)}, expected True, False or a reason"


def _outranked(loser: Entry, winner: Entry, prefer: Sequence[str]) -> str:
    if winner.name in prefer:
        return f"{winner.name!r} is preferred"
    if winner.priority > loser.priority:
        return f"outranked by {winner.name!r} (priority {loser.priority:g} < {winner.priority:g})"
    return f"{winner.name!r} of the same priority comes first by name"
