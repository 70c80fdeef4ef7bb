"""What was built from what: the resolved spec of every living object that `build` made."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.errors import RegistryError
from mlkit.registry._spec import Spec
from mlkit.registry._target import qualified

if TYPE_CHECKING:
    from mlkit.registry._planned import Planned

__all__ = ["records", "remember", "spec_of", "tidy", "written_of"]

# By identity: `==` and `hash` belong to the objects. The weak reference has no callback, which would cost as much as all
# the rest of a build; entries of objects that are gone are swept out when there are twice as many as after the last time.
records: dict[int, tuple[weakref.ref[Any], Planned | dict[str, Any]]] = {}
_FEW = 4_000
_limit = _FEW


def remember(made: object, written: Planned | dict[str, Any]) -> None:
    """Note what *made* was built from, for as long as it lives; a no-op for what cannot be referenced weakly."""
    try:
        records[id(made)] = (weakref.ref(made), written)
    except TypeError:
        return


def tidy() -> None:
    """Forget the objects that are gone, if there may be many; once in each build. Two threads may both do this."""
    global _limit  # noqa: PLW0603 - a budget of the table above
    if len(records) <= _limit:
        return
    for key, noted in list(records.copy().items()):
        if noted[0]() is None:
            gone = records.pop(key, noted)
            if gone[0]() is not None:  # the id was given to a younger object in the meantime
                records[key] = gone
    _limit = max(_FEW, 2 * len(records))


def written_of(made: object) -> dict[str, Any] | str | None:
    """Return the resolved data *made* was built from, why there is none, or None if `build` did not make it."""
    found = records.get(id(made))
    if found is None or found[0]() is not made:
        return None
    return found[1] if isinstance(found[1], dict) else found[1].resolved()


def spec_of(built: object) -> Spec:
    """Return the resolved spec of an object that `Registry.build` made.

    It is remembered for as long as the object lives, by identity: a copy or an unpickled twin has none. Objects that
    Python cannot reference weakly (numbers, text, tuples, lists, dicts, instances of classes with `__slots__` and
    without `__weakref__`) are not remembered. Thread-safe; a forked process still knows what was built before.

    Args:
        built: What `build` returned, or an object inside it that was built from a nested spec.

    Returns:
        The spec, versions pinned and defaults filled in. Building it calls the same factories with the same arguments.
        Where a factory returned one object for two specs, it is the later one.

    Raises:
        RegistryError: If `build` did not make it, or made it with live arguments that no spec can hold.

    Examples:
        >>> from mlkit.registry import Registry, spec_of
        >>> models = Registry("models")
        >>> @models.register("mlp")
        ... class MLP:
        ...     def __init__(self, hidden: int = 64) -> None:
        ...         self.hidden = hidden
        >>> spec_of(models.build("mlp"))
        Spec({'type': 'mlp@1', 'hidden': 64})
    """
    written = written_of(built)
    if isinstance(written, dict):
        return Spec(written)
    kind = qualified(type(built))
    if written is not None:
        raise RegistryError(f"no spec says how this {kind} was built: {written}")
    try:
        weakref.ref(built)
    except TypeError:
        raise RegistryError(
            f"specs of {kind} objects are not remembered, because Python cannot reference them weakly: "
            f"{clip(built, 60)}; keep the spec beside the object"
        ) from None
    raise RegistryError(
        f"this {kind} was not made by Registry.build or a compiled spec, so it has no spec"
    )
