"""The user's function as a step on one batch: where its input goes, under which torch modes it runs, where its output returns."""

from __future__ import annotations

import sys
from threading import local
from typing import TYPE_CHECKING, Any, final

from mlkit._optional import require
from mlkit.errors import ConfigurationError
from mlkit.inference._batch.check import plain_callable
from mlkit.inference._batch.collate import has_leaf
from mlkit.inference._batch.estimator import as_function
from mlkit.inference._batch.modes import PLAIN, Modes
from mlkit.inference._batch.tree import is_array, is_tensor, map_leaves

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

__all__ = ["Model", "Staged", "name_of"]

_NUMBERS = (bool, int, float, complex)
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})


_local = local()  # of each thread that stages: its streams


@final
class Staged:
    """A batch that is ready.

    Args:
        batch: The batch, placed.
        copied: The CUDA event after which it is there; None if it is.
    """

    __slots__ = ("batch", "copied")

    def __init__(self, batch: Any, copied: Any) -> None:
        self.batch, self.copied = batch, copied


@final
class Model:
    """A callable on batches.

    A torch module (or a bound method of one) runs in inference mode on the device of its parameters, and is fed tensors.
    Other functions get what `collate` made, on *device* if one is given.

    Args:
        fn: The user's function.
        device: Where to put tensors, or None for where they are.
        owner: The public call, for error messages: `"map_batches"`.
        modes: How torch runs it.
    """

    __slots__ = (
        "_fn",
        "_modes",
        "_owner",
        "_step",
        "device",
        "identity",
        "module",
        "name",
        "tensors",
    )

    def __init__(
        self, fn: Callable[[Any], Any], device: object, *, owner: str, modes: Modes = PLAIN
    ) -> None:
        fn = as_function(fn)
        plain_callable(f"{owner}(fn)", fn)
        self._fn, self._owner = fn, owner
        self.name = name_of(fn)
        self.module = _module_of(fn)
        # A bound method is made anew each time it is named; what it belongs to stays.
        self.identity = self.module if self.module is not None else getattr(fn, "__self__", fn)
        left = _in_training(self.module)
        if left is not None:
            raise ConfigurationError(
                f"{owner}(fn)",
                left or self.name,
                "a torch module in evaluation mode",
                hint="call model.eval() first; to run in training mode on purpose, pass `lambda batch: model(batch)`",
            )
        self.device: Any = None
        if device is not None:
            torch = require("torch", extra="torch", feature=f"{owner}(device=...)")
            try:
                self.device = torch.device(device)
            except (RuntimeError, TypeError) as error:
                raise ConfigurationError(
                    f"{owner}(device=...)", device, "a torch device such as 'cpu' or 'cuda:0'"
                ) from error
        elif self.module is not None:
            parameter = next(iter(self.module.parameters()), None)
            if parameter is not None and parameter.device.type not in ("cpu", "meta"):
                self.device = parameter.device
        self._modes = modes
        self._step: Callable[[Any], Any] | None = None if modes.compile is not None else fn
        if modes.graphs and not self.runs_behind:
            raise ConfigurationError(
                f"{owner}(graphs=...)", modes.graphs, "False where the device is not CUDA"
            )
        # Casting and compiling are for tensors.
        self.tensors = (
            self.module is not None or self.device is not None or self._modes is not PLAIN
        )

    def check_device(self) -> None:
        """Refuse a device that this machine has not.

        Not done in the constructor: asking may start the driver, and then a forked child cannot use it.
        """
        if self.device is None or self.device.type == "cpu":
            return
        import torch

        backend: Any = getattr(torch, self.device.type, None)  # torch.cuda, torch.xpu, ...
        if not hasattr(backend, "is_available"):
            return  # a backend that cannot be asked says it itself, at the first batch
        n_devices = backend.device_count() if backend.is_available() else 0
        if (self.device.index or 0) >= n_devices:
            raise ConfigurationError(
                f"{self._owner}(device=...)",
                str(self.device),
                "a device that is there",
                hint=f"torch sees {n_devices} {self.device.type} device{'s'[: n_devices != 1]}",
            )

    @property
    def runs_behind(self) -> bool:
        """Whether a call may return before the device has done its work."""
        return self.device is not None and self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.runs_behind:
            import torch

            torch.cuda.synchronize(self.device)

    def leave_thread(self) -> None:
        """Before another thread runs the model: fix which device `"cuda"` means, which is this thread's current one."""
        self.check_device()
        if self.device is not None and self.device.type == "cuda" and self.device.index is None:
            import torch

            self.device = torch.device("cuda", torch.cuda.current_device())

    def enter_thread(self) -> None:
        """Give this thread the torch settings of the process: they are kept per thread."""
        torch = sys.modules.get("torch")
        if torch is None:
            return
        # A new thread would use every core whatever the program set (pytorch issue 37259).
        torch.set_num_threads(torch.get_num_threads())
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def __call__(self, batch: Any, row: Any) -> Any:
        """Return the function's output for *batch*, on the side where *row*, one of its rows, lives.

        Its arrays and tensors are copies, without a graph: a function may write its next output over this one.
        """
        if not self.tensors:
            output = self._fn(batch)
            if type(output) is list and _PLAIN.issuperset(map(type, output)):
                return output  # there is nothing to copy; finding that out row by row costs a Batcher a tenth
            return map_leaves(_copied, output)
        batch = map_leaves(self._place, batch)
        if self.module is None and self._modes is PLAIN:
            output = self._fn(batch)
        else:
            output = self._moded(batch)
        if has_leaf(row, is_tensor):
            stays = self.device is None or has_leaf(row, _on_a_device)
            return map_leaves(_copied if stays else _to_cpu, output)
        if has_leaf(row, lambda leaf: is_array(leaf) or isinstance(leaf, _NUMBERS)):
            return map_leaves(_to_numpy, output)
        return map_leaves(_to_cpu, output)

    def _moded(self, batch: Any) -> Any:
        """Run the function under torch's modes, which belong to the thread."""
        import torch

        if self._step is None or (self._modes.graphs and self._step is self._fn):
            self._step = self._made()
        if self.module is None:
            with self._casting():
                return self._step(batch)
        with torch.inference_mode(), self._casting():
            return self._step(batch)

    def _casting(self) -> AbstractContextManager[Any]:
        return self._modes.casting("cpu" if self.device is None else self.device.type)

    def _made(self) -> Callable[[Any], Any]:
        """Return the function compiled, or as graphs."""
        if self._modes.graphs:
            from mlkit.inference._batch.graphs import Graphs

            return Graphs(self._fn, self.name)
        import torch

        compiled: Callable[[Any], Any] = torch.compile(self._fn, **(self._modes.compile or {}))
        return compiled

    def staged(self, batch: Any) -> Staged:
        """Return *batch* placed where the function wants it; on CUDA the copy runs beside whatever the device does."""
        if not self.runs_behind:
            return Staged(map_leaves(self._place, batch) if self.tensors else batch, None)
        import torch

        beside = _stream_of(self.device)
        with torch.cuda.stream(beside):
            placed = map_leaves(self._place, batch)
            copied = torch.cuda.Event()
            copied.record(beside)
        return Staged(placed, copied)

    def unstaged(self, staged: Staged) -> Any:
        """Return the batch for use now: the device waits for the copy, this thread does not."""
        if staged.copied is not None:
            import torch

            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(staged.copied)
            # Else the allocator could give its memory away while this stream still reads it.
            map_leaves(
                lambda leaf: leaf.record_stream(stream) if is_tensor(leaf) else None, staged.batch
            )
        return staged.batch

    def _place(self, leaf: Any) -> Any:
        if is_array(leaf):
            import torch

            try:
                leaf = torch.from_numpy(leaf)
            except TypeError:  # text, dates and objects have no tensor
                return leaf
        if self.device is None or not is_tensor(leaf) or leaf.device == self.device:
            return leaf
        if self.device.type == "cuda" and leaf.device.type == "cpu":
            # The caching allocator keeps the pinned block until the copy is done.
            return leaf.pin_memory().to(self.device, non_blocking=True)
        return leaf.to(self.device)


def _stream_of(device: Any) -> Any:
    """Return this thread's stream for copies to *device*."""
    import torch

    streams = vars(_local).setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]


def name_of(fn: Any) -> str:
    """Return the name of *fn* for messages and metrics."""
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


def _in_training(module: Any) -> str | None:
    """Return which part of *module* is in training mode: empty for all of it, None for no part."""
    if module is None:
        return None
    if "eval" in vars(module):  # an exported program keeps its mode, and refuses eval()
        return None
    if getattr(module, "training", False):  # frozen TorchScript has no mode any more
        return ""
    left = [
        (path, part) for path, part in module.named_modules() if getattr(part, "training", False)
    ]
    if not left:
        return None
    # A part without parts of its own says more than the container around it.
    path, part = next((each for each in left if not any(each[1].children())), left[0])
    return f"{type(module).__qualname__}.{path} ({type(part).__qualname__})"


def _module_of(fn: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    for candidate in (fn, getattr(fn, "__self__", None), getattr(fn, "__wrapped__", None)):
        if isinstance(candidate, torch.nn.Module):
            return candidate
    return None


def _on_a_device(leaf: Any) -> bool:
    return is_tensor(leaf) and leaf.device.type != "cpu"


def _copied(leaf: Any) -> Any:
    if is_tensor(leaf):
        return leaf.detach().clone()  # a graph would keep all activations of the batch
    return leaf.copy() if is_array(leaf) else leaf


def _to_cpu(leaf: Any) -> Any:
    return leaf.detach().cpu() if _on_a_device(leaf) else _copied(leaf)


def _to_numpy(leaf: Any) -> Any:
    if not is_tensor(leaf):
        return _copied(leaf)
    leaf = _to_cpu(leaf)
    if str(leaf.dtype) == "torch.bfloat16":  # numpy has none; float32 holds each of its values
        leaf = leaf.float()
    return leaf.numpy()
