"""Flags by key and type at run time, for those who speak a protocol instead of making handles."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from mlkit._suggest import clip
from mlkit.flags._flag import Details, Flag
from mlkit.flags._kinds import BoolKind, JsonKind, NumberKind, StrKind
from mlkit.flags._scope import view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlkit.flags._document import Problem, Snapshot
    from mlkit.flags._flags import Flags

__all__ = ["Evaluator", "thaw"]

_SPARE = 1_000


@final
class AnyKind:
    """Whatever a variant may be, read-only."""

    name = "any"
    wanted = "a JSON value"
    names_default = False

    def accept(self, value: Any, variant: str | None, metadata: Mapping[str, Any]) -> Any:
        return value if type(value) in _SCALARS else _JSON.accept(value, variant, metadata)


_JSON = JsonKind()
_SCALARS = frozenset({bool, int, float, str})
_KINDS: dict[str, Any] = {
    "any": AnyKind(),
    "bool": BoolKind(),
    "float": NumberKind(float),
    "int": NumberKind(int),
    "json": _JSON,
    "str": StrKind(),
}


@final
class Evaluator:
    """Answers for flags that are named at run time. Where a handle gives its default, the value is None.

    Thread-safe. Its evaluations count as those of the handles on the same flag.

    Args:
        flags: The flags.
    """

    def __init__(self, flags: Flags) -> None:
        self._store = flags._store  # noqa: SLF001 - a class of this block
        self._handles: dict[tuple[str, str], Flag[Any]] = {}

    def details(self, key: Any, kind: str, unit: Any, attributes: Any) -> Details[Any]:
        """Return the answer of one flag; never raises.

        Args:
            key: The flag.
            kind: `"bool"`, `"int"`, `"float"`, `"str"`, `"json"` or `"any"`.
            unit: Whom to decide for.
            attributes: What rules may ask, by name.
        """
        try:
            flag = self._handles.get((key, kind)) or self._handle(key, kind)
            if flag is not None:
                return flag._decide(unit, dict(attributes))  # noqa: SLF001 - of this block
            error, message = "FLAG_NOT_FOUND", f"there is no flag {clip(key, 60)!r}"
        except Exception as wrong:  # noqa: BLE001 - as for a handle: whatever it is given
            error = "INVALID_CONTEXT"
            message = f"not a key with attributes by name: {type(wrong).__name__}"
        present = self.snapshot
        return Details(None, None, "ERROR", error, message, present.digest, present.metadata)

    @property
    def snapshot(self) -> Snapshot:
        """What this context sees now."""
        return view(self._store).snapshot or self._store.current

    def observe(self, observer: Callable[[Problem | None], object]) -> Callable[[], None]:
        """Call *observer* after every look at the source, until the returned function is called.

        Args:
            observer: A callable of what is wrong with the source, None if nothing is.
        """
        return self._store.observe(observer)

    def _handle(self, key: Any, kind: str) -> Flag[Any] | None:
        store, present = self._store, self.snapshot
        if not isinstance(key, str):
            raise TypeError(clip(key, 40))
        declared = store.declared.get(key)
        if declared is None:
            if key not in present.definitions and key not in present.broken:
                return None  # not remembered: there is no end of the names that callers make up
            declared = store.declare(key, _KINDS["any"], None)
        if len(self._handles) > len(present) * len(_KINDS) + _SPARE:
            self._handles = {}
        # One that is known keeps the type that its own handle declared.
        made = self._handles[key, kind] = Flag(store, key, None, _KINDS[kind], declared)
        return made


def thaw(value: Any) -> Any:
    """Return a read-only JSON *value* as dicts and lists of one's own."""
    kind = type(value)
    if kind is MappingProxyType or kind is dict:
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if kind is tuple or kind is list else value
