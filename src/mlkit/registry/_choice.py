"""Which strategy fits, and why each of the others does not."""

from __future__ import annotations

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

__all__ = ["Choice", "choose"]

T = TypeVar("T")


@final
class Choice(Frozen, Generic[T]):
    """The strategy that `Registry.select` took, and why each other candidate lost.

    Immutable; thread-safe.

    Attributes:
        entry: What was chosen.
        rejected: Why not, by name, for every other candidate, in the order in which they were considered.

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

    __slots__ = ("_registry", "entry", "rejected")

    entry: Entry
    rejected: Mapping[str, str]

    def __init__(self, entry: Entry, rejected: Mapping[str, str], registry: Registry[T]) -> None:
        put = object.__setattr__
        put(self, "entry", entry)
        put(self, "rejected", MappingProxyType(dict(rejected)))
        put(self, "_registry", registry)

    @property
    def factory(self) -> Callable[..., T]:
        """The chosen factory or function itself, imported now if it was lazy."""
        registry = cast("Registry[T]", self._registry)  # type: ignore[attr-defined]
        return registry._catalogue.factory(self.entry.ref)  # noqa: SLF001 - warns of the caller's line

    def __repr__(self) -> str:
        return f"<Choice {self.entry.ref}, rejected {clip(dict(self.rejected), 200)}>"


def choose(
    registry: Registry[T], candidates: Iterable[Record], context: Any, prefer: Sequence[str]
) -> Choice[T]:
    """Return the first candidate that accepts *context*: preferred ones, then by priority, then by name.

    Raises:
        NoCandidateError: If none does.
    """
    wished = {name: index for index, name in enumerate(prefer)}
    ranked = sorted(
        candidates,
        key=lambda record: (
            wished.get(record.entry.name, len(wished)),
            -record.entry.priority,
            natural(record.entry.name),
        ),
    )
    rejected: dict[str, str] = {}
    for index, record in enumerate(ranked):
        reason = _verdict(registry.name, record, context)
        if reason is None:
            for loser in ranked[index + 1 :]:
                rejected[loser.entry.name] = _outranked(loser.entry, record.entry, wished)
            return Choice(record.entry, rejected, registry)
        rejected[record.entry.name] = reason
    raise NoCandidateError(registry.name, rejected)


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
    if isinstance(answer, str):
        return answer or "declined without a reason"
    # NumPy's booleans count; anything else that happens to be true is most often a forgotten comparison.
    if type(answer).__name__ in {"bool", "bool_"}:
        return None if answer else "declined without a reason"
    return f"its condition returned {clip(answer, 60)}, expected True, False or a reason"


def _outranked(loser: Entry, winner: Entry, wished: dict[str, int]) -> str:
    if winner.name in wished:
        return f"{winner.name!r} is preferred"
    if winner.priority > loser.priority:
        return f"outranked by {winner.name!r} (priority {loser.priority:g} < {winner.priority:g})"
    return f"{winner.name!r} of the same priority comes first by name"
