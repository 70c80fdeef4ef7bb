"""Where records go: what a backend must be able to do, how an address finds its sink, and a sink of plain files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, final

from mlkit.errors import ConfigurationError, SinkUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mlkit.tracking._records import Record, RunInfo

__all__ = ["JsonlSink", "Sink", "checked_folder", "make_sinks", "maker", "sink_key"]

ENTRY_POINTS = "mlkit.sinks"


class Sink(Protocol):
    """A backend that takes the records of one run.

    Only the shipper calls it, from one thread, outside the training loop: `open` once, then `send`
    again and again, then `close`. Records arrive at least once, so a sink must make replays
    harmless. Laws, each tested by `mlkit.testing.SinkContract`:

    1. *Replay*: sending a batch again, also after a new `open`, changes nothing.
    2. *Order*: metrics, params and artifacts may come in any order; of two tags or statuses of one
       key the one that is sent later wins.
    3. *All or an error*: when `send` returns, every record of the batch is stored.
       `SinkUnavailableError` and `OSError` mean "not now": the same batch comes again. Any other
       error, `SinkRejectedError` above all, means "never like this": the batch is halved until the
       culprit is alone and set aside, so a refused batch may be stored in part.
    4. *Exactness*: a number is stored as it is, or visibly elsewhere, but never as another number;
       different names stay different; a text is never cut in silence.
    5. *One run*: `open` of a run that the backend knows goes on with it.

    The constructor takes the address without its scheme, checks it, and does no I/O. An installed
    package offers a sink under the entry-point group `mlkit.sinks`; the name there is the scheme.
    """

    @property
    def uri(self) -> str:
        """The whole address, `scheme:rest`, the same from every working folder: how another process makes the sink."""
        ...

    @property
    def max_records(self) -> int:
        """The largest batch worth sending at once."""
        ...

    def open(self, run: RunInfo) -> None:
        """Find the run in the backend, or create it.

        Args:
            run: The run whose records follow.

        Raises:
            SinkUnavailableError: If the backend cannot be reached now.
        """
        ...

    def send(self, batch: Sequence[Record]) -> None:
        """Store *batch*.

        Args:
            batch: 1 to about `max_records` records; more, if one call of the user logged more.

        Raises:
            SinkUnavailableError: If that is not possible now.
            SinkRejectedError: If it will never be possible.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


@final
class JsonlSink:
    """Writes each run to a file of its own, one JSON object a line, for `jq`, pandas or a look.

    Numbers that JSON cannot say are the texts `"NaN"`, `"Infinity"` and `"-Infinity"`. Artifacts
    are named by digest and stay in the run's folder. Not thread-safe. Its address is
    `jsonl:FOLDER`.

    Args:
        folder: Where the files go; made when needed.

    Examples:
        >>> JsonlSink("exports").uri.startswith("jsonl:/")
        True
    """

    folder: Path

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = checked_folder("JsonlSink", folder)
        """Where the files go."""
        self._file = -1
        self._known: set[str] = set()

    @property
    def uri(self) -> str:
        """`"jsonl:"` and the absolute path of the folder."""
        return f"jsonl:{self.folder}"

    @property
    def max_records(self) -> int:
        """1000."""
        return 1000

    def open(self, run: RunInfo) -> None:
        """Open the run's file, and drop a last line that a killed process did not finish.

        Args:
            run: The run.
        """
        import json

        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{run.id}.jsonl"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)
        self._known = {json.loads(line)["id"] for line in content[:whole].splitlines()}

    def send(self, batch: Sequence[Record]) -> None:
        """Append the records that the file does not have.

        Args:
            batch: The records.

        Raises:
            SinkUnavailableError: If the file cannot be written to now.
        """
        fresh = {record.id: record for record in batch if record.id not in self._known}
        data = b"".join(_line(record) for record in fresh.values())
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise SinkUnavailableError(f"{self.folder}: no space left for {len(data)} bytes")
        self._known.update(fresh)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __repr__(self) -> str:
        return f"JsonlSink({str(self.folder)!r})"


def _line(record: Record) -> bytes:
    import json
    import math

    value = record.value
    if isinstance(value, float) and not math.isfinite(value):
        value = "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    fields: dict[str, object] = {"id": record.id, "kind": record.kind, "key": record.key}
    fields["value"] = value
    if record.kind == "metric":
        fields["step"] = record.step
    fields["time"] = record.time
    return json.dumps(fields, allow_nan=False).encode("ascii") + b"\n"


def checked_folder(where: str, folder: object) -> Path:
    """Return the absolute path of a folder that the constructor *where* was given, or refuse what is none."""
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise ConfigurationError(f"{where}(folder)", folder, "the path of a folder")
    from pathlib import Path

    return Path(os.fspath(folder)).absolute()


def make_sinks(where: str, sinks: object) -> list[Sink]:
    """Return the sinks that a user lists; those that are addresses are made.

    Raises:
        ConfigurationError: If that is no list, or one of them is no sink or is there twice.
    """
    if not isinstance(sinks, (list, tuple)):
        hint = f"pass [{sinks!r}]" if isinstance(sinks, str) else ""
        raise ConfigurationError(where, sinks, "a list of addresses or sinks", hint=hint)
    made: dict[str, Sink] = {}
    for one in sinks:
        sink = _make(one, where) if isinstance(one, str) else one
        uri = getattr(sink, "uri", None)
        if not isinstance(uri, str):
            raise ConfigurationError(where, one, "addresses or sinks")
        if uri in made:
            raise ConfigurationError(where, uri, "each sink once")
        made[uri] = sink
    return list(made.values())


def _make(uri: str, where: str = "start_run(sinks=...)") -> Sink:
    """Return the sink of an address.

    Raises:
        ConfigurationError: If the address has no scheme, or one that no installed package offers.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or not rest:
        raise ConfigurationError(where, uri, "addresses like 'mlflow:sqlite:///mlflow.db'")
    if scheme == "jsonl":
        return JsonlSink(rest)
    if scheme == "tensorboard":
        from mlkit.tracking._tensorboard import TensorboardSink

        return TensorboardSink(rest)
    from importlib.metadata import entry_points

    found = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if scheme not in found:
        from mlkit._suggest import did_you_mean, listing

        known = ["jsonl", "tensorboard", *found]
        near = did_you_mean(scheme, known)
        if not near and rest.startswith("//"):
            near = f"; if it is MLflow's, 'mlflow:{uri}'"
        raise ConfigurationError(
            where,
            uri,
            f"a scheme among {listing(known)}",
            hint=near[2:] or f"install the package that offers {scheme!r}",
        )
    factory: Callable[[str], Sink] = found[scheme].load()
    return factory(rest)


def maker(uri: str, given: Sink | None = None) -> Callable[[], Sink]:
    """Return what makes the sinks of an address, one for each run.

    Args:
        uri: The address.
        given: An object that the user has made; it is handed out first.
    """
    rest = [] if given is None else [given]
    return lambda: rest.pop() if rest else _make(uri)


def sink_key(uri: str) -> str:
    """Return the name of a sink in the run's folder: its scheme, and what tells it from others of the scheme."""
    from mlkit._digest import digest, short

    scheme = "".join(char for char in uri.partition(":")[0] if char.isalnum())
    return f"{scheme}-{short(digest(uri))}"
