"""Calls of a model on CUDA that are recorded once per shape and replayed: no Python and no launches in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit.inference._batch.tree import is_tensor, map_leaves
from mlkit.telemetry import emit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Graphs"]

_MOST = 64  # shapes; each holds its own input and output on the device
_WARM = 3  # calls before the recording, which choose kernels and allocate


class _Recorded(NamedTuple):
    inputs: list[Any]
    output: Any
    graph: Any


@final
class Graphs:
    """A function of a batch on a CUDA device, as graphs.

    A shape that cannot be recorded, and those after the sixty-fourth, run as they are. One thread at a time.

    Args:
        fn: The function; it must do the same operations for equal shapes.
        name: What events call it.
    """

    def __init__(self, fn: Callable[[Any], Any], name: str) -> None:
        self._fn, self._name = fn, name
        self._recorded: dict[Any, _Recorded | None] = {}
        self._pool: Any = None  # memory that all graphs share, since one runs at a time

    def __call__(self, batch: Any) -> Any:
        """Return the function's output for *batch*, whose tensors are on the device."""
        tensors: list[Any] = []
        others: list[Any] = []
        map_leaves(lambda leaf: (tensors if is_tensor(leaf) else others).append(leaf), batch)
        if not tensors or others:  # text takes part in no graph
            return self._fn(batch)
        key = tuple((tuple(one.shape), one.dtype) for one in tensors)
        if key not in self._recorded:
            if len(self._recorded) >= _MOST:
                return self._fn(batch)
            self._recorded[key] = self._record(batch)
        recorded = self._recorded[key]
        if recorded is None:
            return self._fn(batch)
        for mine, theirs in zip(recorded.inputs, tensors, strict=True):
            mine.copy_(theirs, non_blocking=True)
        recorded.graph.replay()
        # The next replay writes over what this one made.
        return map_leaves(lambda leaf: leaf.clone() if is_tensor(leaf) else leaf, recorded.output)

    def _record(self, batch: Any) -> _Recorded | None:
        import torch

        inputs: list[Any] = []

        def kept(leaf: Any) -> Any:
            inputs.append(leaf.clone())
            return inputs[-1]

        fixed = map_leaves(kept, batch)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM):
                self._fn(fixed)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                output = self._fn(fixed)
        except RuntimeError as error:  # it waits for the device, or asks for a value
            emit("inference.graph.refused", self._name, error_type=type(error).__name__)
            return None
        return _Recorded(inputs, output, graph)
