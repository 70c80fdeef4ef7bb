"""Several devices at once, each with a copy of the model and a thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.inference._batch.runner import Failure, Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlkit.inference._offline.steps import Way

__all__ = ["Lane", "Lanes", "replicas"]

_FIRST = 32


class Lane(NamedTuple):
    """One device.

    Attributes:
        runner: Runs batches there.
        way: How it is given many rows; None for batch after batch.
    """

    runner: Runner
    way: Way | None

    def run(self, rows: list[Any], *, hasty: bool, ahead: bool) -> list[Any]:
        """Return for each row its result or a `Failure`, in order."""
        if self.way is not None:
            return self.way.run(rows, hasty=hasty, ahead=ahead, done=_nobody)
        return self.runner.run(rows)


@final
class Lanes:
    """Deals rows out to several devices in turn, row by row, so that each has its share of the long ones.

    One thread at a time calls it; it starts one more per device for the time of a call. Holds on to no row or result.

    Args:
        lanes: The devices, at least one.

    Attributes:
        failed: Whether some rows of the last run may have failed.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self.failed = False

    def run(
        self,
        rows: Sequence[Any],
        *,
        hasty: bool,
        ahead: bool,
        done: Callable[[int], object],  # noqa: ARG002 - it is for one thread
    ) -> list[Any]:
        """Return for each row its result or a `Failure`, in order; None after a failure if *hasty*."""
        from concurrent.futures import ThreadPoolExecutor
        from contextvars import copy_context
        from functools import partial

        first = self._lanes[0].runner
        results: list[Any] = [None] * len(rows)
        n = len(self._lanes)
        try:
            # The first rows alone settle what all rows must look like.
            begin = 0 if first.example else min(first.limit, len(rows), _FIRST)
            if begin:
                results[:begin] = self._lanes[0].run(list(rows[:begin]), hasty=hasty, ahead=ahead)
            for lane in self._lanes[1:]:
                lane.runner.resume(first.example, lane.runner.learned, worked=first.worked)
            for lane in self._lanes:
                lane.runner.leave_thread()
            with ThreadPoolExecutor(n, thread_name_prefix="mlkit-lane") as pool:
                shares = [
                    pool.submit(
                        copy_context().run,
                        partial(
                            _share, lane, list(rows[begin + turn :: n]), hasty=hasty, ahead=ahead
                        ),
                    )
                    for turn, lane in enumerate(self._lanes)
                ]
                for turn, share in enumerate(shares):
                    results[begin + turn :: n] = share.result()
            self.failed = any(isinstance(one, Failure) for one in results)
            return results
        finally:
            del rows, results  # an error that somebody keeps also keeps this frame


def _nobody(_: int) -> None:
    """Tell nobody: the lanes' threads are not the caller's."""


def _share(lane: Lane, rows: list[Any], *, hasty: bool, ahead: bool) -> list[Any]:
    if not rows:
        return []
    lane.runner.enter_thread()
    return lane.run(rows, hasty=hasty, ahead=ahead)


def replicas(fn: Any, devices: Sequence[Any]) -> list[Callable[[Any], Any]]:
    """Return *fn* for each device: with a copy of its torch module, or itself if it has none.

    A copy is not made for the device where the module is.
    """
    from copy import deepcopy

    import torch

    owner = fn if isinstance(fn, torch.nn.Module) else getattr(fn, "__self__", None)
    if not isinstance(owner, torch.nn.Module):
        return [fn] * len(devices)
    found: list[Callable[[Any], Any]] = []
    parameter = next(owner.parameters(), None)
    for place, device in enumerate(devices):
        here = parameter is not None and parameter.device == torch.device(device)
        module = owner if here and place == 0 else deepcopy(owner).to(device)
        found.append(module if owner is fn else getattr(module, fn.__name__))
    return found
