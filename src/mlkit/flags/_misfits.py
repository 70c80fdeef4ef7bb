"""Variants that a handle cannot take: told with the file's problems, once there is a handle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlkit._suggest import clip
from mlkit.flags._document import Problem
from mlkit.flags._locate import MAX_SCANNED, scan

if TYPE_CHECKING:
    from mlkit.flags._store import Declared, Store

__all__ = ["misfits"]


def misfits(store: Store) -> tuple[Problem, ...]:
    """Return a problem for each variant in force that the last handle on its flag does not take."""
    made: list[Problem] = []
    definitions = store.document.definitions
    for key, declared in sorted(store.declared.items()):
        definition = definitions.get(key)
        if definition is None:
            continue
        for name, value in definition.variants.items():
            found = _misfit(declared, value, name, definition.metadata)
            if found is not None:
                message, steps = found
                place = ("flags", key, "variants", name, *steps)
                pointer = "".join(f"/{_step(step)}" for step in place)
                made.append(Problem(key, pointer, message, kept=False))
    if not made or len(store.data) > MAX_SCANNED:
        return tuple(made)
    places = scan(store.data, {problem.pointer for problem in made}).places
    return tuple(
        problem._replace(line=places[problem.pointer][0], column=places[problem.pointer][1])
        for problem in made
    )


def _misfit(
    declared: Declared, value: Any, name: str, metadata: Any
) -> tuple[str, tuple[str | int, ...]] | None:
    try:
        declared.kind.accept(value, name, metadata)
    except (TypeError, ValueError) as error:
        wanted = f"the handle of type {declared.kind.name} does not take it"
        return f"{wanted}: {error}", getattr(error, "steps", ())
    return None


def _step(step: str | int) -> str:
    return clip(str(step), 60).replace("~", "~0").replace("/", "~1")
