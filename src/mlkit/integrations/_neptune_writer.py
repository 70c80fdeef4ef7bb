"""How the values and series of a Neptune run become params, metrics, tags and artifacts of one of ours."""

from __future__ import annotations

import json
import math
import tempfile
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, final

from mlkit._clock import current
from mlkit._suggest import clip
from mlkit.errors import MlkitError
from mlkit.integrations._names import safe_name
from mlkit.integrations._neptune_export import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from mlkit.integrations._neptune_export import ExportedRow, ExportedRun
    from mlkit.tracking import Run

__all__ = ["Writer"]

_MAX_KEY = 1000
_PROBLEMS = "mlkit/import-problems.jsonl"


@final
class Writer:
    """Writes the rows of one run into ours.

    Args:
        run: Ours.
        files: The folder of the exporter's files.
        multiplier: By what steps are multiplied.
        problems: Takes the place and the reason of what cannot be taken over.
    """

    last: float

    def __init__(
        self, run: Run, files: Path, multiplier: int, problems: list[tuple[str, str]]
    ) -> None:
        self.last = 0.0
        """The time of the last point."""
        self._run, self._files, self._multiplier = run, files.resolve(), multiplier
        self._problems = problems
        self._path = ""
        self._points: tuple[list[float], list[int], list[float]] = ([], [], [])
        self._texts: dict[str, Any] = {}
        self._known: set[str] = set()

    def write(self, rows: Iterable[ExportedRow]) -> None:
        """Write all rows; what cannot be taken over is a problem."""
        takers: dict[str, Callable[[ExportedRow], None]] = {
            "float_series": self._point,
            "string_series": self._line,
            "histogram_series": self._line,
            **dict.fromkeys(("file", "artifact", "file_set", "file_series"), self._file),
            **dict.fromkeys(
                ("float", "int", "string", "bool", "datetime", "string_set"), self._value
            ),
        }
        for row in rows:
            try:
                take = takers.get(row.kind)
                if take is None:
                    raise ValueError(f"type {clip(row.kind, 40)!r} is none that is known")
                take(row)
            except (ValueError, OSError, MlkitError) as error:
                self._problems.append((row.place, clip(str(error), 300)))
        self._flush()

    def end(self, source: ExportedRun) -> None:
        """Write what is known only now."""
        for path, file in self._texts.items():
            file.seek(0)
            self._keep(file.read(), f"{path}.jsonl", path)
            file.close()
        self._run.set_tags({"neptune.project": source.project, "neptune.run": source.run})
        self._run.set_tag("neptune.step_multiplier", self._multiplier)
        if self._problems:
            lines = [
                json.dumps(dict(zip(("place", "message"), problem, strict=True))) + "\n"
                for problem in self._problems
            ]
            self._run.log_artifact("".join(lines).encode(), _PROBLEMS)

    def _value(self, row: ExportedRow) -> None:
        value = row.value
        if value is None and row.kind == "float":
            value = math.nan  # pandas, by which the exporter writes, makes a null of it
        if value is None:
            raise ValueError(f"a {row.kind} without a value")
        if row.kind == "datetime":
            value = datetime.fromtimestamp(value / 1e6, UTC).isoformat()
        if row.kind == "string_set":
            value = sorted(str(one) for one in value)
        if row.path in self._known:
            raise ValueError("the attribute has another value already")
        self._known.add(row.path)
        if row.path.startswith(SYSTEM):
            text = json.dumps(value) if isinstance(value, list) else value
            self._run.set_tag(self._key(row.path), text)
        else:
            self._run.log_param(self._key(row.path), value)

    def _point(self, row: ExportedRow) -> None:
        step = self._step(row)
        time = self._time(row)
        if row.path != self._path or len(self._points[0]) >= 20_000:
            self._flush()
            self._path = row.path
        values, steps, times = self._points
        values.append(math.nan if row.value is None else row.value)  # as above
        steps.append(step)
        times.append(time)

    def _flush(self) -> None:
        values, steps, times = self._points
        if values:
            self._run.log_points({self._key(self._path): values}, steps, times)
        self._points = [], [], []

    def _line(self, row: ExportedRow) -> None:
        if row.value is None:
            raise ValueError(f"a point of a {row.kind} without a value")
        fields = {"step": self._step(row), "time": self._time(row), "value": row.value}
        if row.path not in self._texts:
            self._texts[row.path] = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115 - closed by end
        self._texts[row.path].write(json.dumps(fields).encode() + b"\n")

    def _file(self, row: ExportedRow) -> None:
        name = (row.value or {}).get("path")
        if not name:
            raise ValueError(f"a {row.kind} without a path")
        source = (self._files / name).resolve()
        if not source.is_relative_to(self._files):
            raise ValueError(f"the path {clip(name)!r} leads out of the folder of files")
        if source.is_dir():
            self._run.log_artifacts(source, row.path)
        elif not source.is_file():
            raise FileNotFoundError(f"there is no file {clip(str(source), 200)!r}")
        elif row.kind == "file_series":
            self._keep(source, f"{row.path}/step-{self._step(row)}{source.suffix}", row.path)
        else:
            self._keep(source, row.path, row.path)

    def _keep(self, source: Path | bytes, name: str, path: str) -> None:
        """Keep an artifact; a name that cannot be one gets a tag that says what it was."""
        parts = name.split("/")
        bad = {"", ".", ".."}
        if len(name) > _MAX_KEY or bad & set(parts) or set(name) & {"\\", "\0"}:
            name = safe_name(
                name.replace("/", "_"), lambda text: "/" not in text and text.isprintable(), 200
            )
            self._run.set_tag(f"neptune.name.{name}", path)
        self._run.log_artifact(source, name)

    def _key(self, path: str) -> str:
        if len(path) <= _MAX_KEY:
            return path
        name = safe_name(path, str.isprintable, _MAX_KEY)
        self._run.set_tag(f"neptune.name.{name[-900:]}", path)
        return name

    def _step(self, row: ExportedRow) -> int:
        if row.step is None:
            raise ValueError("a point without a step")
        step = row.step * self._multiplier
        if step != int(step):
            raise ValueError(f"step {row.step} times {self._multiplier} is not whole")
        return int(step)

    def _time(self, row: ExportedRow) -> float:
        if row.time is None:
            return current().time()
        self.last = max(self.last, row.time)
        return row.time
