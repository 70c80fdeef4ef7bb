"""The arguments of a rollout, checked before anything happens."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, final

from mlkit._arguments import fraction, seconds
from mlkit.errors import ConfigurationError
from mlkit.flags._audit import Audit
from mlkit.flags._guard import Guard
from mlkit.flags._progress import as_steps
from mlkit.flags._ramp import marks
from mlkit.flags._shadow import same

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.flags._definition import Definition

__all__ = ["Plan", "seed_of"]


@final
class Plan:
    """The arguments of a rollout, checked; those of `ModelFlag.rollout`."""

    steps: tuple[float, ...]
    min_step: float
    guard: Guard | None
    seed: str | None
    load: Callable[[str], Any]
    unload: Callable[[Any], object] | None
    shadow: float
    compare: Callable[[Any, Any], object]
    folder: str | os.PathLike[str] | None
    audit: Audit | None

    def __init__(
        self,
        *,
        steps: Sequence[float],
        min_step: float,
        guard: Guard | None,
        seed: str | None,
        load: Callable[[str], Any] | None,
        unload: Callable[[Any], object] | None,
        shadow: float,
        compare: Callable[[Any, Any], object] | None,
        folder: str | os.PathLike[str] | None,
        audit: Audit | None,
    ) -> None:
        self.steps = as_steps(steps)
        self.min_step = seconds("rollout(min_step=...)", min_step, zero=True)
        if guard is not None and not isinstance(guard, Guard):
            raise ConfigurationError("rollout(guard=...)", guard, "a Guard")
        if seed is not None and (not isinstance(seed, str) or not seed):
            raise ConfigurationError("rollout(seed=...)", seed, "a non-empty text, or None")
        calls = {"load": load, "unload": unload, "compare": compare}
        for name, call in calls.items():
            if call is not None and not callable(call):
                raise ConfigurationError(f"rollout({name}=...)", call, "a callable, or None")
        self.shadow = fraction("rollout(shadow=...)", shadow, zero=True)
        if folder is not None and not isinstance(folder, (str, os.PathLike)):
            raise ConfigurationError("rollout(folder=...)", folder, "the path of a folder, or None")
        if audit is not None and not isinstance(audit, Audit):
            raise ConfigurationError("rollout(audit=...)", audit, "an Audit, or None")
        self.guard, self.seed, self.folder, self.audit = guard, seed, folder, audit
        self.load, self.unload = load or str, unload
        self.compare = compare or same


def seed_of(
    given: str | None, definition: Definition, candidate: str, incumbent: str
) -> str | None:
    """Return the seed of a rollout: a saved one keeps its own, or it would take in other units."""
    saved = marks(definition)
    if (saved.get("candidate"), saved.get("incumbent")) != (candidate, incumbent):
        return given
    kept = saved.get("seed")
    if given is not None and given != kept:
        raise ConfigurationError(
            "rollout(seed=...)", given, f"{kept!r}, with which it was saved, or None"
        )
    return kept if isinstance(kept, str) else None
