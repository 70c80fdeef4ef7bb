"""A handle on the version of a model, which a rollout can replace."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from mlkit.flags._flag import Flag

if TYPE_CHECKING:
    from collections.abc import Sequence

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
                same units first. A saved rollout needs the same again, or it takes in other units.

        Raises:
            ConfigurationError: If an argument is wrong, the flag or a variant does not exist, or another rollout of the
                flag is under way, here or in the file.
        """
        from mlkit.flags._rollout import Rollout

        return Rollout(
            self._store,
            self.key,
            candidate,
            steps=steps,
            min_step=min_step,
            guard=guard,
            incumbent=incumbent,
            seed=seed,
        )
