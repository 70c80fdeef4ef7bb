"""Traces in files: what one process did, operation by operation, to be compared with what another did."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._arguments import whole
from mlkit.errors import ConfigurationError, TraceError
from mlkit.repro._compare import Difference, results_differ
from mlkit.repro._divergence import Divergence
from mlkit.repro._fingerprint import fingerprint
from mlkit.repro._generators import loaded_torch
from mlkit.repro._steps import kind_of
from mlkit.repro._tensors import as_array, densely, is_dense, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from mlkit.repro._trace import Operation

__all__ = ["UNKNOWN", "TraceRecorder", "compare", "record"]

_SCHEMA = "mlkit.trace/1"
_SMALL = 64  # bytes of values that are kept without being asked for: a loss, a count
_NOTE = "note"
UNKNOWN = "its values differ"  # and were not kept


@final
class TraceRecorder:
    """The writer of a trace, from `record`.

    Constant memory: each operation is one line of the file. Not thread-safe; operations of other threads are not seen.
    """

    __slots__ = ("_content", "_count", "_file", "_keep", "_line", "_noting")

    def __init__(self, file: TextIO, keep: int | None) -> None:
        from mlkit.repro._trace import hasher, users_line

        self._file, self._keep = file, keep
        self._count = 0
        self._noting = False
        self._content = hasher(kept=True)
        self._line = users_line

    def note(self, name: str, value: object) -> None:
        """Write down a value that is no operation of torch: a batch of NumPy arrays, the order of files, a metric.

        Args:
            name: What it is; compared, too.
            value: Anything that `fingerprint` takes. The values of a mapping with text keys are notes of their own.

        Raises:
            ConfigurationError: If *name* is no text.
            FingerprintError: If the value has no faithful content hash.
        """
        from collections.abc import Mapping

        if not isinstance(name, str) or not name:
            raise ConfigurationError("note(name)", name, "a name (str) that is not empty")
        if isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
            keys = list(value)
            self._note(name, "keys", keys)
            for key in keys:
                self.note(f"{name}[{key!r}]", value[key])
            return
        self._note(name, type(value).__name__, value)

    def _note(self, name: str, kind: str, value: object) -> None:
        self._noting = True  # the fingerprint of a tensor takes operations, too
        try:
            self._write(_NOTE, name, kind, fingerprint(value), [value])
        finally:
            self._noting = False

    def add(self, operation: Operation, module: str, values: list[Any]) -> None:
        """Write down an operation of torch: called by torch."""
        if self._noting:
            return
        content = b"" if operation.views else b"".join(map(self._content, values))
        written = tuple([(tensor.dtype, shape_of(tensor)) for tensor in values])
        self._write(operation.name, module, kind_of(written), content.hex(), values)

    def finish(self) -> None:
        """Write down that the block ended: called at its end."""
        import json

        self._file.write(json.dumps({"end": self._count}) + "\n")

    def _write(self, op: str, module: str, kind: str, content: str, values: list[Any]) -> None:
        import json

        call, self._count = self._count, self._count + 1
        kept = _plain_values(values, limit=None if call == self._keep else _SMALL)
        self._file.write(json.dumps([op, module, kind, content, self._line(), kept]) + "\n")


@contextmanager
def record(path: str | os.PathLike[str], *, keep: int | None = None) -> Iterator[TraceRecorder]:
    """Write every torch operation of the block to a file: its name, module, line, and a digest of what it computed.

    Record the same block in two processes, on two machines or at two commits, and `compare` the files. The block runs
    with the generators as they are: seed it, or use `isolated(seeds)`.

    Args:
        path: The file; an old one is replaced.
        keep: The number of an operation whose values are written down whole: record both again with the number that
            `compare` named, and it can say which elements differ and by how much.

    Returns:
        The block; it gives a recorder for notes.

    Raises:
        ConfigurationError: If *keep* is no number of an operation.
        OSError: If the file cannot be written.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> for run, order in enumerate(["ab", "ba"]):
        ...     with record(f"{folder}/{run}") as trace:
        ...         trace.note("files", list(order))
        >>> print(compare(f"{folder}/0", f"{folder}/1").reason)
        'a' became 'b'

    Note:
        One line of about 150 bytes an operation, besides the time that `check` takes.
    """
    import json
    from pathlib import Path

    from mlkit.repro._trace import tracing

    wanted = None if keep is None else whole("record(keep=...)", keep)
    with Path(path).open("w", encoding="ascii") as file:
        file.write(json.dumps({"schema": _SCHEMA, "setting": _setting()}) + "\n")
        trace = TraceRecorder(file, wanted)
        with tracing(trace):
            yield trace


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Divergence | None:
    """Return where the second of two recorded traces first differs from the first, or None.

    Args:
        first: A file that `record` wrote.
        second: Another one.

    Raises:
        TraceError: If a file is no trace, is damaged, or stops before the two differ (its process was killed).
        OSError: If one cannot be read.

    Note:
        Reads both once, line by line, in constant memory.
    """
    from pathlib import Path

    with Path(first).open("rb") as one, Path(second).open("rb") as other:
        pair = _Steps(one, str(first)), _Steps(other, str(second))
        setting = _settings_differ(pair[0].setting, pair[1].setting)
        call = 0
        while True:
            expected, got = next(pair[0], None), next(pair[1], None)
            if expected is None and got is None:
                return None
            if expected is None or got is None or expected[:4] != got[:4]:
                return _divergence(call, expected, got, setting)
            call += 1


class _Line(NamedTuple):
    """One line of a trace."""

    op: str
    module: str
    kind: str
    content: str
    line: str
    values: list[Any] | None


class _Steps:
    """The operations of a trace file, one after the other."""

    def __init__(self, file: Any, source: str) -> None:
        self._file, self._source = file, source
        self._ended = False
        header = self._read()
        schema = header.get("schema") if isinstance(header, dict) else None
        if schema != _SCHEMA:
            raise TraceError(f"{source}: expected a trace of schema {_SCHEMA!r}, found {schema!r}")
        self.setting: dict[str, str] = header.get("setting", {})

    def __iter__(self) -> Iterator[_Line]:
        return self

    def __next__(self) -> _Line:
        if self._ended:
            raise StopIteration
        found = self._read()
        if isinstance(found, dict) and "end" in found:
            self._ended = True
            raise StopIteration
        if not isinstance(found, list) or len(found) != 6:
            raise TraceError(f"{self._source}: a line is no operation; the file is damaged")
        return _Line._make(found)

    def _read(self) -> Any:
        import json

        text = self._file.readline()
        try:
            return json.loads(text)
        except ValueError:
            why = "is damaged" if text.endswith(b"\n") else "stops in the middle: its process ended"
            raise TraceError(f"{self._source}: the trace {why}") from None


def _divergence(call: int, expected: _Line | None, got: _Line | None, setting: str) -> Divergence:
    step = got or expected
    assert step is not None  # noqa: S101 - one of them is there
    op, module = (step.op, step.module) if step.op != _NOTE else ("", "")
    difference = _lines_differ(call, expected, got)
    path = difference.path
    if step.op == _NOTE:
        path = step.module + difference.path.removeprefix("$")
    return Divergence(1, setting, op, module, call, step.line, path, *difference[1:])


def _lines_differ(call: int, expected: _Line | None, got: _Line | None) -> Difference:
    if expected is None or got is None:
        return Difference("$", f"only the {'second' if expected is None else 'first'} trace has it")
    if (expected.op, expected.module) != (got.op, got.module):
        was = f"{expected.op} in {expected.module}" if expected.module else expected.op
        return Difference("$", f"the first trace has {was} here")
    if expected.kind != got.kind:
        return Difference("$", f"{expected.kind} became {got.kind}")
    if expected.values is not None and got.values is not None:
        found = results_differ(_values(expected.values), _values(got.values))
        if found is not None:
            return found._replace(path="$" + found.path.removeprefix("$[0]").removeprefix("$"))
    return Difference("$", f"{UNKNOWN}; record both again with keep={call} for how")


def _settings_differ(one: dict[str, str], other: dict[str, str]) -> str:
    return ", ".join(
        f"{name} {other.get(name)} instead of {one.get(name)}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    )


def _setting() -> dict[str, str]:
    """Return what two processes are most likely to have different."""
    import platform

    torch = loaded_torch()
    return {
        "hash seed": os.environ.get("PYTHONHASHSEED", "random"),
        "python": platform.python_version(),
        **({} if torch is None else {"torch": torch.__version__}),
        **({} if torch is None else {"threads": str(torch.get_num_threads())}),
    }


def _plain_values(values: list[Any], limit: int | None) -> list[Any] | None:
    """Return values as JSON data, or None if one is larger than *limit* bytes or of no such form."""
    plain = []
    for value in values:
        one = _plain_value(value, limit)
        if one is None:
            return None
        plain.append(one)
    return plain


def _plain_value(value: Any, limit: int | None) -> dict[str, Any] | None:
    import json

    most = inf if limit is None else limit
    torch, numpy = loaded_torch(), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        if limit is None:
            value = densely(torch, value)
        if not is_dense(torch, value) or value.nbytes > most:
            return None
        value = as_array(torch, value)
    if numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        if value.nbytes > most:
            return None
        data = value.tobytes().hex()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return None
    return {"plain": value} if len(text) <= 4 * most else None


def _values(plain: list[Any]) -> list[Any]:
    import numpy as np

    return [
        one["plain"]
        if "plain" in one
        else np.frombuffer(bytes.fromhex(one["data"]), one["dtype"]).reshape(one["shape"])
        for one in plain
    ]
