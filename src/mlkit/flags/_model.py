"""A handle on the version of a model, which a rollout can replace."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from mlkit.flags._flag import Flag

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from typing import Any

    from mlkit.flags._audit import Audit
    from mlkit.flags._guard import Guard
    from mlkit.flags._rollout import Rollout

__all__ = ["ModelFlag"]


@final
class ModelFlag(Flag[str]):
    """A handle on the version of a model: it gives a URI, and `details` the variant's name.

    On any trouble it gives its default variant, so that `details(...).variant` is always a name. As safe to share as
    `Flag`. Made by `Flags.model`.
    """

    __slots__ = ()

    def rollout(
        self,
        candidate: str,
        *,
        steps: Sequence[float] = (0.01, 0.05, 0.25, 1.0),
        min_step: float = 0.0,
        guard: Guard | None = None,
        incumbent: str | None = None,
        seed: str | None = None,
        load: Callable[[str], Any] | None = None,
        unload: Callable[[Any], object] | None = None,
        shadow: float = 0.0,
        compare: Callable[[Any, Any], object] | None = None,
        folder: str | os.PathLike[str] | None = None,
        audit: Audit | None = None,
    ) -> Rollout:
        """Return a rollout of one variant, which does nothing until it is advanced.

        A rollout that was saved in the file goes on where it was.

        Args:
            candidate: The variant to bring in.
            steps: Its shares of the units, growing, within (0, 1].
            min_step: Seconds that a step lasts at least.
            guard: What must not happen; None to roll back by hand only.
            incumbent: The variant that serves the others; if None, the candidate of a finished rollout of the flag, or else
                the flag's default variant.
            seed: Text that is hashed with the unit in place of the flag's key, so that flags of equal seed take in the
                same units first. It is saved with the rollout, and taken from there.
            load: Returns the model of a URI, for `Rollout.serve`; if None, the URI itself is the model.
            unload: Called with a model that is no longer wanted, once nobody uses it.
            shadow: The share of the incumbent's requests, within [0, 1], that the candidate answers too, after the answer is
                given and in another thread; see `Rollout.shadowing`.
            compare: Whether two results are equal enough, for the shadow runs; `==` in every element if None.
            folder: A folder through which all processes are one rollout, and which a restart goes on from.
            audit: Where decisions are recorded; if None, `audit.jsonl` in the folder, if there is one.

        Raises:
            ConfigurationError: If an argument is wrong, the flag or a variant does not exist, or another rollout of the
                flag is under way, here or in the file.
            OSError: If the folder cannot be used.
            FlagFileError: If what the folder says of the rollout cannot be read.
        """
        from mlkit.flags._plan import Plan
        from mlkit.flags._rollout import Rollout

        plan = Plan(
            steps=steps,
            min_step=min_step,
            guard=guard,
            seed=seed,
            load=load,
            unload=unload,
            shadow=shadow,
            compare=compare,
            folder=folder,
            audit=audit,
        )
        return Rollout(self, self._store, candidate, incumbent=incumbent, plan=plan)
