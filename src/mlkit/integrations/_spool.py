"""What a sink was sent of one run, in a file: for clients that write a run whole, at its end, or not at all.

The offline modes of some trackers keep what they are given in memory until the run ends, and a process that is
killed takes it along. A sink for such a client keeps its own copy here first, and has the client write the
run anew from it as often as need be.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._suggest import clip
from mlkit.errors import SinkRejectedError, SinkUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlkit.tracking import Record, RunInfo

__all__ = ["Follower", "Row", "Spool"]

_ENDED = {"FINISHED", "FAILED", "KILLED"}


class Row(NamedTuple):
    """The metrics of one call.

    Attributes:
        number: Which it is, counted from 0.
        step: Their step.
        time: Unix time in seconds.
        values: Numbers by name.
    """

    number: int
    step: int
    time: float
    values: dict[str, float]


@final
class Spool:
    """Keeps records, each once, in the order in which they come first.

    A line of JSON holds a record, or the metrics of one call. Not thread-safe.

    Args:
        path: The file; made when needed.
    """

    ended: bool
    changed: bool
    rows: int
    content_bytes: int

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done = path.with_suffix(".done")
        self.ended = False
        """Whether the last status says that the run has ended."""
        self.changed = False
        """Whether there is something that the client has not written yet."""
        self.rows = 0
        """How many calls logged metrics."""
        self.content_bytes = 0
        """The size of all artifacts."""
        self._file = -1
        self._known: set[str] = set()
        self._params: dict[str, str] = {}

    def open(self, run: RunInfo) -> None:
        """Open the file, and drop a last line that a killed process did not finish."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)
        self._known, self._params = set(), {}
        self.ended, self.rows, self.content_bytes = False, 0, 0
        if not whole:
            self._write({"run": run._asdict()})
        for line in content[:whole].splitlines():
            self._learn(json.loads(line))
        try:
            self.changed = int(self._done.read_text("ascii")) != whole
        except (OSError, ValueError):
            self.changed = bool(whole)

    def done(self) -> None:
        """Note that the client has written all that is kept."""
        beside = self._done.with_suffix(".new")
        beside.write_text(str(self.path.stat().st_size), "ascii")
        beside.replace(self._done)
        self.changed = False

    def add(self, batch: Sequence[Record]) -> None:
        """Keep the records that the file does not have.

        Raises:
            SinkRejectedError: If a param changes its value. Then none is kept.
            SinkUnavailableError: If the file cannot be written to now.
        """
        params = dict(self._params)
        lines: list[dict[str, Any]] = []
        row: dict[str, Any] = {}
        call = ""
        fresh = {record.id: record for record in batch if record.id not in self._known}
        for record in fresh.values():
            if record.kind == "metric":
                stem = record.id.rpartition(":")[0]
                if not row or stem != call or record.key in row["values"]:
                    row = {"ids": [], "step": record.step, "time": record.time, "values": {}}
                    call = stem
                    lines.append(row)
                row["ids"].append(record.id)
                row["values"][record.key] = record.value
                continue
            row = {}
            if (
                record.kind == "param"
                and params.setdefault(record.key, str(record.value)) != record.value
            ):
                raise SinkRejectedError(f"param {clip(record.key)!r} has two values")
            if record.kind == "artifact":
                self._keep(record)
            line = {"kind": record.kind, "key": record.key, "value": record.value}
            lines.append({"ids": [record.id], **line, "time": record.time})
        if lines:
            self._write(*lines)
            self.changed = True
            for line in lines:
                self._learn(line)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _keep(self, record: Record) -> None:
        """Keep an artifact's content, which may be gone when the client asks for it.

        Raises:
            SinkRejectedError: If it is gone already.
        """
        place = _contents(self.path) / str(record.value).removeprefix("sha256:")
        if place.exists():
            return
        place.parent.mkdir(exist_ok=True)
        source, fresh = Path(record.path), place.with_suffix(".new")
        try:
            fresh.unlink(missing_ok=True)
            try:
                fresh.hardlink_to(source)
            except OSError:  # another disk
                shutil.copyfile(source, fresh)
        except FileNotFoundError as error:
            raise SinkRejectedError(f"the content of {clip(record.key)!r} is gone") from error
        fresh.replace(place)

    def _write(self, *lines: dict[str, Any]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode("ascii")
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise SinkUnavailableError(f"{self.path}: no space left for {len(data)} bytes")

    def _learn(self, line: dict[str, Any]) -> None:
        self._known.update(line.get("ids", ()))
        self.rows += "values" in line
        if line.get("kind") == "artifact":
            content = _contents(self.path) / line["value"].removeprefix("sha256:")
            self.content_bytes += content.stat().st_size if content.exists() else 0
        elif line.get("kind") == "param":
            self._params[line["key"]] = line["value"]
        elif line.get("kind") == "status":
            self.ended = line["value"] in _ENDED


@final
class Follower:
    """Reads what a spool says of a run, from where it has read to before.

    Args:
        path: The spool.
    """

    run: dict[str, Any]
    params: dict[str, str]
    tags: dict[str, str]
    artifacts: dict[str, tuple[str, Path]]
    status: str
    rows: int

    def __init__(self, path: Path) -> None:
        self.params = {}
        """Texts by name."""
        self.tags = {}
        """Texts by name, of each the last."""
        self.artifacts = {}
        """By name, the digest and the file of the content, of each the last."""
        self.status = "RUNNING"
        """`"RUNNING"`, or how the run ended."""
        self.rows = 0
        """How many calls that logged metrics have been read."""
        self._path = path
        with path.open("rb") as file:
            self.run = json.loads(file.readline())["run"]
            """The fields of the run's `RunInfo`, by name."""
            self._offset = file.tell()

    def read(self) -> Iterator[Row]:
        """Yield what is new of the metrics, and take in the rest."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                found = json.loads(line)
                if "values" in found:
                    self.rows += 1
                    yield Row(self.rows - 1, found["step"], found["time"], found["values"])
                else:
                    self._take_in(found["kind"], found["key"], found["value"])
            self._offset = file.tell()

    def _take_in(self, kind: str, key: str, value: str) -> None:
        if kind == "param":
            self.params.setdefault(key, value)
        elif kind == "tag":
            self.tags[key] = value
        elif kind == "artifact":
            self.artifacts[key] = value, _contents(self._path) / value.removeprefix("sha256:")
        else:
            self.status = value


def _contents(path: Path) -> Path:
    """Return the folder of the artifacts' contents."""
    return path.with_suffix(".files")
