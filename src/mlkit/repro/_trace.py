"""A digest of every torch operation that a call runs, and the first one that differs from another call's.

torch's own `torch.utils._debug_mode.DebugMode` does not see reordered elements and flipped signs, because it sums.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mlkit.errors import FingerprintError
from mlkit.repro._compare import frozen
from mlkit.repro._generators import loaded_torch
from mlkit.repro._steps import Step
from mlkit.repro._tensors import as_array, is_dense, parts_of, shape_of
from mlkit.repro._torch_mersenne import ask_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlkit.repro._steps import Head, Steps

__all__ = [
    "Mismatch",
    "Operation",
    "Sink",
    "Trace",
    "hasher",
    "tracing",
    "users_line",
]


class Mismatch(NamedTuple):
    """The first step that differs from the reference: its number, what was expected and came, and the user's line."""

    call: int
    expected: Step | None
    got: Step | None
    values: Any
    line: str


class Sink(Protocol):
    """What takes the operations of a block as they come."""

    def add(self, operation: Operation, module: str, values: list[Any]) -> None:
        """Take note of an operation and of the tensors that it wrote."""

    def finish(self) -> None:
        """Take note that the block ended without an error."""


class Trace:
    """The steps of one call.

    Args:
        steps: Where they are written.
        reference: The steps to compare with.
        keep: The number of the step whose values are kept.
    """

    def __init__(
        self,
        steps: Steps | None = None,
        *,
        reference: Steps | None = None,
        keep: int | None = None,
    ) -> None:
        self._steps = steps
        self._reading = None if reference is None else reference.read()
        self.mismatch: Mismatch | None = None
        self.kept: Any = None
        self._keep = keep
        self._count = 0
        self._paused = False
        self._content = hasher(kept=False)

    def add(self, operation: Operation, module: str, values: list[Any]) -> None:
        """Take note of an operation and of the tensors that it wrote."""
        if self._paused:
            return
        # Most of them; each microsecond here is a tenth of the operation's own time.
        if len(values) == 1:
            value = values[0]
            shape = shape_of(value) if value.is_nested else value.shape
            head: Head = (operation.name, module, value.dtype, shape)
            content = b"" if operation.views else self._content(value)
        else:
            kinds = [part for value in values for part in (value.dtype, shape_of(value))]
            head = (operation.name, module, *kinds)
            content = b"" if operation.views else b"".join(map(self._content, values))
        self._take(head, content, values)

    def note(self, op: str, value: object) -> None:
        """Take note of a value that no operation of torch made, if it has a fingerprint."""
        from mlkit.repro._fingerprint import fingerprint

        try:
            with self.paused():  # the fingerprint of a tensor takes operations, too
                content = fingerprint(value)
        except FingerprintError:
            return
        self._take((op, ""), content.encode(), [value])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take no note of the operations of the block."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _take(self, head: Head, content: bytes, values: list[Any]) -> None:
        call, self._count = self._count, self._count + 1
        if call == self._keep:
            self.kept = frozen(values)
        if self._steps is not None:
            self._steps.append(head, content)
        if self._reading is None or self._reading.goes_on(head, content):
            return
        expected, self._reading = self._reading.next(), None
        step = Step.of(head, content)
        self.mismatch = Mismatch(call, expected, step, frozen(values), users_line())

    def finish(self) -> None:
        """Take note that the call is over: it may have stopped short of the reference."""
        expected = None if self._reading is None else self._reading.next()
        if expected is not None:
            self.mismatch = Mismatch(self._count, expected, None, None, "")


@contextmanager
def tracing(trace: Sink) -> Iterator[None]:
    """Add every operation of torch that runs in the block to *trace*; none if it is not loaded."""
    torch = loaded_torch()
    if torch is None:
        yield
        trace.finish()
        return
    # Its operations are not the block's, and only the first use of a generator has them.
    ask_layout(torch)
    from torch.nn.modules import module as hooks
    from torch.utils._python_dispatch import TorchDispatchMode

    running: list[str] = []
    names: dict[int, str] = {}
    known: dict[int, Operation] = {}  # by identity: hashing an operation runs Python code
    add, dense = trace.add, torch.Tensor
    eager = getattr(torch.compiler, "set_stance", None)  # from torch 2.6 on

    def enter(module: Any, _: Any) -> None:
        if not running:  # the outermost module names the ones inside it
            names.clear()
            root = type(module).__name__
            for name, inner in module.named_modules():
                names[id(inner)] = f"{root}.{name}" if name else root
        running.append(names.get(id(module), type(module).__name__))

    def leave(*_: Any) -> None:
        running.pop()

    class Mode(TorchDispatchMode):  # type: ignore[misc]
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            """Say whether each call is to be wrapped such that torch.compile stays out, a third of what a mode costs."""
            return eager is None

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **kwargs) if kwargs else func(*args)
            operation = known.get(id(func)) or known.setdefault(id(func), Operation.of(func))
            if not operation.uninitialised:
                values = [result] if type(result) is dense else _tensors(torch, result)
                if operation.scratch:
                    del values[-1]
                if operation.writes:
                    values += _written(torch, operation.writes, args, kwargs or {})
                add(operation, running[-1] if running else "", values)
            return result

    before = hooks.register_module_forward_pre_hook(enter)
    after = hooks.register_module_forward_hook(leave, always_call=True)
    try:
        # Under a mode, what is compiled runs as it is written: once said here, it need not be said at each operation.
        with nullcontext() if eager is None else eager("force_eager"), Mode():
            yield
    finally:
        before.remove()
        after.remove()
    trace.finish()


# What these return is whatever the memory held; it counts once something is written to it.
_UNINITIALISED = ("empty", "new_empty", "resize_", "set_")
# The last output of these is memory for their backward pass, most of which nobody has written to.
_SCRATCH = {"aten::mkldnn_rnn_layer", "aten::_cudnn_rnn", "aten::miopen_rnn", "aten::_ctc_loss"}


def _tensors(torch: Any, value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(torch, item)]
    return []


class Operation(NamedTuple):
    """What the schema of an operation says.

    `views`: its outputs are other views of its arguments' memory, which was compared when it was written. `writes`:
    the arguments, by position and name, that it writes to without returning them (`_foreach_add_`). `scratch`: its
    last output is no result.
    """

    name: str
    uninitialised: bool
    scratch: bool
    views: bool
    writes: tuple[tuple[int, str], ...]

    @classmethod
    @cache
    def of(cls, func: Any) -> Operation:
        """Return what the schema of torch's *func* says."""
        schema = func._schema  # noqa: SLF001 - the schema is how torch names an operation
        aliases = [one.alias_info for one in schema.returns]
        written = [
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return cls(
            schema.name,
            uninitialised=schema.name.partition("::")[2].startswith(_UNINITIALISED),
            scratch=schema.name in _SCRATCH,
            views=bool(aliases)
            and all(one is not None and not one.is_write for one in aliases)
            and not schema.name.endswith("lift_fresh"),  # where data enters torch
            writes=() if schema.returns else tuple(written),
        )


def _written(torch: Any, writes: tuple[tuple[int, str], ...], args: Any, kwargs: Any) -> list[Any]:
    """Return the tensors that an operation wrote to."""
    return [
        tensor
        for position, name in writes
        for tensor in _tensors(torch, args[position] if position < len(args) else kwargs.get(name))
    ]


def hasher(*, kept: bool) -> Callable[[Any], bytes]:
    """Return what digests all bytes of a tensor; fast, for nobody forges it.

    Args:
        kept: Whether digests of another process may be compared with these. If not, xxhash is used where it happens to
            be installed: it takes half the time.
    """
    import numpy as np
    from mmh3 import mmh3_x64_128_digest

    digest: Callable[[Any], bytes] = mmh3_x64_128_digest
    if not kept:
        with suppress(ImportError):
            from xxhash import xxh3_128_digest

            digest = xxh3_128_digest

    def content(tensor: Any) -> bytes:
        try:
            array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
        except (TypeError, RuntimeError):
            # Not on the CPU, not dense, or of a type that NumPy lacks.
            torch = sys.modules["torch"]
            if not is_dense(torch, tensor):
                return b"".join(map(content, parts_of(torch, tensor)))
            array = as_array(torch, tensor)
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        return digest(array)

    return content


def users_line() -> str:
    """Return `file:line` of the innermost frame that is neither torch's nor ours."""
    frame = sys._getframe(1)  # noqa: SLF001 - CPython's documented way to the caller
    while frame.f_back is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"


@cache
def _is_users(file: str) -> bool:
    from pathlib import Path

    torch = loaded_torch()
    folders = [str(Path(__file__).parent)]
    if torch is not None:
        folders.append(str(Path(torch.__file__ or "").parent))
    return not file.startswith(tuple(folders)) and not file.endswith("contextlib.py")
