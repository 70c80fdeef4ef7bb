"""What a journal says, as records: the unit that sinks take and that deliveries count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, final

from mlkit.tracking import _frames
from mlkit.tracking._frames import count_records, frames, metric_values, series_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Record", "RunInfo", "Tail", "begin", "count_from", "param_text", "walk"]

_CHUNK = 64 << 10


class RunInfo(NamedTuple):
    """What is known of a run from its start on.

    Attributes:
        id: Its id, unique wherever runs of several machines are put together.
        experiment: What it belongs to.
        name: Its name, for people.
        parent: Id of the run it is nested in, or None.
        start_time: Unix time in seconds.
    """

    id: str
    experiment: str
    name: str
    parent: str | None
    start_time: float


class Record(NamedTuple):
    """One fact of a run, as a sink gets it.

    Attributes:
        id: Unique in the run and the same whenever the record is sent again.
        kind: `"metric"`, `"param"`, `"tag"`, `"artifact"` or `"status"`.
        key: Name of the metric, param, tag or artifact (a relative path with `/`); `"status"` for a
            status.
        value: A metric's number, exactly as logged (NaN and infinities too); the text of a param,
            tag or status; an artifact's digest.
        step: A metric's step, from -2**63 to 2**63 - 1; 0 for the other kinds.
        time: When it was logged, Unix time in seconds, to the microsecond. Of calls
            with the same keys and step that follow each other in one process, each is at least a
            millisecond later than the one before; calls with other keys may come between them.
        path: Where the bytes of an artifact are; empty for the other kinds.
    """

    id: str
    kind: Literal["metric", "param", "tag", "artifact", "status"]
    key: str
    value: float | str
    step: int = 0
    time: float = 0.0
    path: str = ""

    @property
    def milliseconds(self) -> int:
        """The time in whole milliseconds, which many backends keep."""
        return round(self.time * 1e6) // 1000


def param_text(value: object) -> str:
    """Return the text of a param's value, as MLflow's own client would write it."""
    return value if isinstance(value, str) else str(value)


@final
class Tail:
    """Reads one writer's file while it grows.

    Not thread-safe.

    Args:
        path: The file.
        artifacts: Folder of the run's artifacts.
        offset: Where to go on: the end of a frame, or 0.
    """

    def __init__(self, path: Path, artifacts: Path, offset: int = 0) -> None:
        self._path, self._artifacts = path, artifacts
        self._series: dict[int, list[str]] = {}
        self.offset = 0
        self.more = False
        """Whether the last `read` stopped before the end, as there were enough records."""
        if offset:  # the keys that earlier frames have named are needed, their values are not
            for one in walk(path, 0):
                if one.end > offset:
                    break
                self._learn(one)
            self.offset = offset

    def read(self, max_records: int) -> list[Record]:
        """Return the next records, of whole frames: about *max_records*, none if there is nothing new."""
        records: list[Record] = []
        self.more = True
        for one in walk(self._path, self.offset):
            if one.kind == _frames.SERIES:
                self._learn(one)
            else:
                if records and len(records) + count_records(one) > max_records:
                    return records
                records += self._records(one)
            self.offset = one.end
            if len(records) >= max_records:
                return records
        self.more = False
        return records

    def _learn(self, one: _frames.Frame) -> None:
        if one.kind == _frames.SERIES:
            number, keys = series_keys(one.payload)
            self._series[number] = keys

    def _records(self, one: _frames.Frame) -> Iterator[Record]:
        stem = f"{self._path.stem}:{one.end}"
        if one.kind == _frames.METRICS:
            series, step, microseconds, values = metric_values(one.payload)
            time = microseconds / 1e6
            for index, (key, value) in enumerate(zip(self._series[series], values, strict=True)):
                yield Record(f"{stem}:{index}", "metric", key, value, step, time)
            return
        import json

        microseconds, content = json.loads(one.payload)
        time = microseconds / 1e6
        if one.kind == _frames.PARAMS:
            for index, (key, value) in enumerate(content.items()):
                yield Record(f"{stem}:{index}", "param", key, param_text(value), time=time)
        elif one.kind == _frames.TAGS:
            for index, (key, value) in enumerate(content.items()):
                yield Record(f"{stem}:{index}", "tag", key, value, time=time)
        elif one.kind == _frames.ARTIFACT:
            name, digest = content["name"], content["digest"]
            path = self._artifacts / digest.removeprefix("sha256:")
            yield Record(f"{stem}:0", "artifact", name, digest, time=time, path=str(path))
        elif one.kind == _frames.STATUS:
            yield Record(f"{stem}:0", "status", "status", content["status"], time=time)


def count_from(path: Path, offset: int) -> int:
    """Return how many records a file holds from *offset* on."""
    return sum(count_records(one) for one in walk(path, offset))


def begin(path: Path) -> int:
    """Return where the first frame of a file begins: 0 if it is no journal."""
    with path.open("rb") as file:
        return len(_frames.MAGIC) if file.read(len(_frames.MAGIC)) == _frames.MAGIC else 0


def walk(path: Path, offset: int) -> Iterator[_frames.Frame]:
    """Yield the whole frames of a file from *offset* on, reading in pieces."""
    offset = offset or begin(path)
    if not offset:
        return
    with path.open("rb") as file:
        chunk = _CHUNK
        while True:
            file.seek(offset)
            data = file.read(chunk)
            before = offset
            for one in frames(data, base=before):
                yield one
                offset = one.end
            if offset == before:
                if len(data) < chunk or chunk > _frames.MAX_PAYLOAD:
                    return
                chunk *= 8  # a frame longer than what was read
            else:
                chunk = _CHUNK
