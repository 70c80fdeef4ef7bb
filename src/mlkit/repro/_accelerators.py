"""Seeding what torch runs on besides the CPU, without starting it.

`torch.manual_seed` does it too, but writes down the whole Python stack for an error that hardly ever comes: 120 to 800 us,
more the deeper it is called. Where torch keeps what it will do once CUDA starts as we know it, that is done without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["accelerator_step", "queued", "requeue"]


def accelerator_step(torch: Any, seed: int) -> Callable[[], object] | None:
    """Return what seeds all devices of this build, now or when they start; None if it can only use the CPU.

    Args:
        torch: The module.
        seed: The seed, of 64 bits.
    """
    version, cuda = torch.version, torch.cuda
    others = getattr(version, "xpu", None) or torch.backends.mps.is_built()
    if not (version.cuda or version.hip or others):
        return None
    tracker = _tracker(torch)
    if others or tracker is None:
        return lambda: torch.manual_seed(seed)

    def seed_devices() -> None:
        for generator in cuda.default_generators:
            generator.manual_seed(seed)

    def step() -> None:
        if cuda.is_initialized():
            seed_devices()
        else:
            tracker.queue_seed_all(seed_devices, ["by mlkit.repro.seed_all\n"])

    return step


def queued(torch: Any) -> dict[str, Any] | None:
    """Return how CUDA will be seeded when it starts, if it has not and torch keeps that as we know it."""
    tracker = None if torch.cuda.is_initialized() else _tracker(torch)
    return None if tracker is None else dict(vars(tracker))


def requeue(torch: Any, kept: dict[str, Any] | None) -> None:
    """Let CUDA be seeded when it starts as `queued` told, if it still has not started."""
    tracker = None if kept is None or torch.cuda.is_initialized() else _tracker(torch)
    if tracker is not None:
        vars(tracker).update(kept)


def _tracker(torch: Any) -> Any:
    """Return torch's list of what to do once CUDA starts, or None if this torch has another one."""
    tracker = getattr(torch.cuda, "_lazy_seed_tracker", None)
    return tracker if hasattr(tracker, "queue_seed_all") and hasattr(tracker, "__dict__") else None
