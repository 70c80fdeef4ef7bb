"""What a sink was sent of one run, in a file: for clients that write a run whole, at its end, or not at all.

The offline modes of some trackers keep what they are given in memory until the run ends, and a process that is
killed takes it along. A sink for such a client keeps its own copy here first, and has the client write the
run anew from it as often as need be.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple, final

from mlkit._suggest import clip
from mlkit.errors import SinkRejectedError, SinkUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlkit.tracking import Record, RunInfo

__all__ = ["Row", "Spool", "Story", "rows_of", "story_of"]

_ENDED = {"FINISHED", "FAILED", "KILLED"}


class Row(NamedTuple):
    """The metrics of one call.

    Attributes:
        step: Their step.
        time: Unix time in seconds.
        values: Numbers by name.
    """

    step: int
    time: float
    values: dict[str, float]


class Story(NamedTuple):
    """What is known of a run besides its metrics.

    Attributes:
        run: The fields of its `RunInfo`, by name.
        params: Texts by name.
        tags: Texts by name.
        artifacts: By name, the digest and the path of the content.
        status: `"RUNNING"`, or how it ended.
        time: When that was, Unix time in seconds.
        rows: How many calls logged metrics.
    """

    run: dict[str, Any]
    params: dict[str, str]
    tags: dict[str, str]
    artifacts: dict[str, tuple[str, str]]
    status: str
    time: float
    rows: int


@final
class Spool:
    """Keeps records, each once, in the order in which they come first.

    A line of JSON holds a record, or the metrics of one call. Not thread-safe.

    Args:
        path: The file; made when needed.
    """

    ended: bool
    changed: bool

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done = path.with_suffix(".done")
        self.ended = False
        """Whether the last status says that the run has ended."""
        self.changed = False
        """Whether there is something that the client has not written yet."""
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
        self.ended = False
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
            lines.append({"ids": [record.id], **record._asdict()})
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

    def _write(self, *lines: dict[str, Any]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode("ascii")
        written = os.write(self._file, data)
        if written != len(data):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise SinkUnavailableError(f"{self.path}: no space left for {len(data)} bytes")

    def _learn(self, line: dict[str, Any]) -> None:
        self._known.update(line.get("ids", ()))
        if line.get("kind") == "param":
            self._params[line["key"]] = line["value"]
        elif line.get("kind") == "status":
            self.ended = line["value"] in _ENDED


def rows_of(path: Path, first: int = 0) -> Iterator[Row]:
    """Yield the metrics that a spool holds, call by call, from the call of number *first* on."""
    with path.open("rb") as file:
        number = 0
        for line in file:
            if b'"values": ' in line:  # a quote inside a text has a backslash before it
                if number >= first:
                    found = json.loads(line)
                    yield Row(found["step"], found["time"], found["values"])
                number += 1


def story_of(path: Path) -> Story:
    """Return what a spool says of its run besides the metrics; of tags, artifacts and states the last."""
    kept: dict[str, dict[str, Any]] = {"param": {}, "tag": {}, "artifact": {}}
    run: dict[str, Any] = {}
    status, time, rows = "RUNNING", 0.0, 0
    with path.open("rb") as file:
        for line in file:
            if b'"values": ' in line:  # a quote inside a text has a backslash before it
                rows += 1
                continue
            found = json.loads(line)
            kind = found.get("kind", "")
            if "run" in found:
                run, time = found["run"], found["run"]["start_time"]
            elif kind == "status":
                status, time = found["value"], found["time"]
            elif kind == "artifact":
                kept[kind][found["key"]] = (found["value"], found["path"])
            elif kind == "param":
                kept[kind].setdefault(found["key"], found["value"])
            else:
                kept[kind][found["key"]] = found["value"]
    return Story(run, kept["param"], kept["tag"], kept["artifact"], status, time, rows)
