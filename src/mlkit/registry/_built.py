"""What was built from what: the resolved spec of every living object that `build` made."""

from __future__ import annotations

import weakref
from typing import Any

from mlkit._suggest import clip
from mlkit.errors import RegistryError
from mlkit.registry._spec import Spec
from mlkit.registry._target import qualified

__all__ = ["remember", "spec_of", "written_of"]

# By identity: `==` and `hash` belong to the objects. The value is the resolved data, or why there is none.
_built: dict[int, tuple[weakref.ref[Any], dict[str, Any] | str]] = {}


def remember(made: object, written: dict[str, Any] | str) -> None:
    """Note what *made* was built from, for as long as it lives; a no-op for what cannot be referenced weakly."""
    key = id(made)

    def forget(gone: weakref.ref[Any]) -> None:
        found = _built.get(key)
        if found is not None and found[0] is gone:  # the id may have been given to a younger object
            _built.pop(key, None)

    try:
        _built[key] = (weakref.ref(made, forget), written)
    except TypeError:
        return


def written_of(made: object) -> dict[str, Any] | str | None:
    """Return the resolved data *made* was built from, why there is none, or None if `build` did not make it."""
    found = _built.get(id(made))
    return found[1] if found is not None and found[0]() is made else None


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
    raise RegistryError(f"this {kind} was not made by Registry.build, so it has no spec")
